# shellcheck shell=bash
# Sourced by the launchers: samples, evaluates and reports a trained run, unless that was done at its newest step.
: "${python:?the interpreter}" "${root:?the repository}"

say() { printf '\n== %s\n' "$*"; }

summary() {
  "$python" - "$1" <<'END'
import json, pathlib, sys
from motus_jax.evaluate import summary
print(summary(json.loads((pathlib.Path(sys.argv[1]) / "metrics.json").read_text())))
END
  echo
  echo "report: $root/$1/report/index.html"
}

report() {  # of the run $1
  local run=$1 step mode
  step=$(find "$run/checkpoints" -maxdepth 1 -name '[0-9]*' -exec basename {} \; | sort -n | tail -n 1)
  if [ -f "$run/report/index.html" ] && [ "$(cat "$run/reported_step" 2>/dev/null)" = "$step" ]; then
    say "Done before: step $step of $run is sampled, evaluated and reported"
    summary "$run"
    return
  fi
  say "Sample"
  for mode in $("$python" -c 'from motus_jax.modes import MODES; print(*MODES)'); do
    "$python" -m motus_jax.sample --workdir="$run" --mode="$mode" --episode=0 --frame=5 --out="$run/samples"
  done
  say "Evaluate"
  "$python" -m motus_jax.evaluate --workdir="$run"
  say "Report"
  "$python" -m motus_jax.evaluation.report --workdir="$run"
  echo "$step" > "$run/reported_step"
  say "Done"
  summary "$run"
}
