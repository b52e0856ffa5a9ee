#!/usr/bin/env bash
# Trains an experiment on TPUs of a Kubernetes cluster (GKE) through xpk.
set -euo pipefail

usage() {
  cat <<'END'
Submits a training to a GKE cluster with TPU nodes that xpk has made (`xpk cluster create`). xpk puts this folder into a
container, starts it on every host and starts it again when a node is lost; the run goes on from its last checkpoint.

  launch/xpk.sh experiments/phase2.py --name=motus --cluster=CLUSTER --type=v5p-32 --workdir=gs://BUCKET/phase2 \
      --config.data.path=gs://BUCKET/data

  launch/xpk.sh EXPERIMENT.py --name=NAME --cluster=CLUSTER --type=TYPE --workdir=gs://... [option ...] [--config.key=value ...]

  --zone, --project   of the cluster; default: gcloud's own
  --slices=N          that many slices (default: 1); set --config.mesh.replica to a multiple of it
  --restarts=N        how often a lost job is started again (default: 100)
  --image=IMAGE       what the folder is laid upon (default: python:3.12)
  --dry_run           prints the command and does not run it

Watch it with `xpk workload list --cluster=CLUSTER`, end it with `xpk workload delete --workload=NAME --cluster=CLUSTER`.
END
}

fail() { echo "error: $*" >&2; exit 2; }

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "" | -*) usage >&2; exit 2 ;;
esac
experiment=$1
shift
name="" cluster="" type="" workdir="" slices=1 restarts=100 image=python:3.12 dry_run=""
place=() config=()
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    --name=*) name=$value ;;
    --cluster=*) cluster=$value ;;
    --type=*) type=$value ;;
    --workdir=*) workdir=$value ;;
    --slices=*) slices=$value ;;
    --restarts=*) restarts=$value ;;
    --image=*) image=$value ;;
    --zone=* | --project=*) place+=("$argument") ;;
    --dry_run) dry_run=1 ;;
    --config.*) config+=("$argument") ;;
    *) fail "unknown argument $argument (see --help)" ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
[ -f "$experiment" ] || fail "expected an experiment file, e.g. experiments/phase2.py; found no $experiment"
for needed in name cluster type; do [ -n "${!needed}" ] || fail "--$needed is missing (see --help)"; done
[[ $workdir == gs://* ]] || fail "--workdir: expected a place that all hosts see, gs://BUCKET/RUN; found ${workdir:-nothing}"
[ -n "$dry_run" ] || command -v xpk > /dev/null || fail "xpk is not installed: pip install xpk"

printf -v command ' %q' .venv/bin/python -m motus_jax.train --config="$experiment" --workdir="$workdir" "${config[@]}"
submit=(xpk workload create --workload="$name" --cluster="$cluster" --tpu-type="$type" --num-slices="$slices"
  --max-restarts="$restarts" --base-docker-image="$image" --script-dir=. "${place[@]}"
  --command="rm -rf .venv && launch/host.sh install tpu && exec env MOTUS_HOSTS=auto$command")
if [ -n "$dry_run" ]; then show "${submit[@]}"; else "${submit[@]}"; fi
