#!/usr/bin/env bash
# The three training phases at demo size, one after the other: latent actions -> 1 -> labels -> 2 -> 3 -> evaluation.
set -euo pipefail

usage() {
  cat <<'END'
Trains everything that Motus is made of, at demo size, on a laptop, and reports what came out.

  launch/recipe.sh          on the packaged data, as below
  launch/recipe.sh lift     on two tasks that a model of this size can do: `lift` in place of `demo` and `aloha_sim`,
                            runs/latent_action_lift; experiments/lift.py says how to record datasets/lift first

  runs/latent_action    optical flow becomes 14 numbers; runs/latent_action/latents/index.html shows them
  runs/phase1_demo      the video expert learns futures
  latents/aloha_sim     every frame pair of the packaged data gets its latent action
  runs/phase2_demo      all experts learn latent actions
  runs/phase3_demo      the model learns the robot's own actions from 32 episodes; runs/phase3_demo/report/index.html

Run it again to go on where it stopped; what is done says so. Options that begin with --config. go to every training.
The first run makes .venv and installs the package. Set PYTHON to choose the interpreter of a new .venv.
END
}

latents=latent_action.py run=latent_action data=aloha_sim size=demo
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  lift) latents=latent_action.py:lift run=latent_action_lift data=lift size=lift; shift ;;
esac
case "${1:-}" in
  "" | --config.*) ;;
  *) usage >&2; exit 2 ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source launch/environment.sh
python=.venv/bin/python
source launch/report.sh
install ''

train() {  # experiment, run, flags
  say "Train experiments/$1 into runs/$2"
  "$python" -m motus_jax.train --config="experiments/$1" --workdir="runs/$2" "${@:3}"
}

if [ ! -f "datasets/$data/meta/info.json" ]; then
  echo "error: datasets/$data: expected a recording; found none (experiments/lift.py says how to make it)" >&2
  exit 2
fi
train "$latents" "$run" "$@"
if [ ! -f "runs/$run/latents/index.html" ]; then
  say "What the latent actions carry"
  "$python" -m motus_jax.evaluation.latents --workdir="runs/$run"
fi
train "phase1.py:$size" "phase1_$size" "$@"
say "Label"
"$python" -m motus_jax.data label --workdir="runs/$run" --path="datasets/$data" --out="latents/$data"
train "phase2.py:$size" "phase2_$size" "$@"
train "phase3.py:$size" "phase3_$size" "$@"
report "runs/phase3_$size"
