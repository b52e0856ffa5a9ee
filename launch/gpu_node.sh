#!/usr/bin/env bash
# Trains an experiment on all GPUs of one machine, or of several machines that run this command each.
set -euo pipefail

usage() {
  cat <<'END'
Trains on every GPU of this machine; one process drives them all.

  launch/gpu_node.sh experiments/phase3.py --workdir=runs/phase3 --config.data.path=DATASET

On several machines, the same on each, with the address of the first and the number of this one:

  launch/gpu_node.sh experiments/phase3.py --workdir=/shared/phase3 --nodes=4 --node=0 --coordinator=10.0.0.1:1234

  launch/gpu_node.sh EXPERIMENT.py --workdir=DIR [--nodes=N --node=K --coordinator=HOST:PORT] [--dry_run] [--config.key=value ...]

Started by Slurm (srun, one task a machine) it needs neither --nodes nor the others. --dry_run prints every command and
runs none. The first run makes .venv and installs JAX for CUDA 12.
END
}

fail() { echo "error: $*" >&2; exit 2; }

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "" | -*) usage >&2; exit 2 ;;
esac
experiment=$1
shift
workdir="" nodes=1 node="" coordinator="" dry_run=""
config=()
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    --workdir=*) workdir=$value ;;
    --nodes=*) nodes=$value ;;
    --node=*) node=$value ;;
    --coordinator=*) coordinator=$value ;;
    --dry_run) dry_run=1 ;;
    --config.*) config+=("$argument") ;;
    *) fail "unknown argument $argument (see --help)" ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
[ -f "$experiment" ] || fail "expected an experiment file, e.g. experiments/phase3.py; found no $experiment"
[ -n "$workdir" ] || fail "--workdir is missing: expected e.g. --workdir=runs/phase3"
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes: expected a number from 1, found $nodes"

do_it() {
  if [ -n "$dry_run" ]; then show "$@"; else "$@"; fi
}

# Collectives run beside products, and start as early as their data are there.
flags="--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_pipelined_all_gather=true"
flags+=" --xla_gpu_enable_pipelined_reduce_scatter=true"
variables=(XLA_FLAGS="$flags ${XLA_FLAGS:-}" XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}")
if [ "$nodes" -gt 1 ]; then
  [ -n "$node" ] && [ -n "$coordinator" ] || fail "--nodes=$nodes: expected --node=K and --coordinator=HOST:PORT too"
  [ "$node" -lt "$nodes" ] || fail "--node: expected a number below $nodes, found $node"
  variables+=(JAX_COORDINATOR_ADDRESS="$coordinator" JAX_NUM_PROCESSES="$nodes" JAX_PROCESS_ID="$node")
elif [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
  variables+=(MOTUS_HOSTS=auto)
fi
do_it launch/host.sh install cuda12
do_it env "${variables[@]}" .venv/bin/python -m motus_jax.train --config="$experiment" --workdir="$workdir" \
  --config.platform=gpu "${config[@]}"
