#!/usr/bin/env bash
# Trains an experiment on slices of TPUs in Google Cloud, on all of their hosts, and goes on after every preemption.
set -euo pipefail

usage() {
  cat <<'END'
Trains an experiment on a TPU slice: asks for it (or takes the one that is there), copies this folder to every host,
installs, starts, shows the log of the first host, and starts anew from the last checkpoint when the slice is preempted.

  launch/tpu_pod.sh experiments/phase2.py --name=motus --type=v5p-32 --zone=us-east5-a --workdir=gs://BUCKET/phase2 \
      --config.data.path=gs://BUCKET/data

  launch/tpu_pod.sh EXPERIMENT.py --name=NAME --type=TYPE --zone=ZONE --workdir=gs://... [option ...] [--config.key=value ...]
  launch/tpu_pod.sh logs|status|stop|delete --name=NAME --zone=ZONE [--project=ID] [--slices=N]

  --name      of the queued resource and its nodes
  --type      accelerator type: v5litepod-64, v5p-32, v6e-16, ...
  --workdir   of the run: all hosts write there, and a new slice goes on from there
  --project   default: gcloud's own
  --slices=N  that many slices, joined by the data-centre network; set --config.mesh.replica to a multiple of it
  --spot      may be preempted at any time, and costs less
  --runtime   software of the hosts; default: the one for the type
  --retries=N how often a training that failed for another reason than preemption is started again (default: 3)
  --setup=COMMAND  also run on every host after the installation
  --dry_run   prints every command and runs none

`logs` shows the first host's log again, `stop` lets the training save and end and leaves the slice, `delete` gives the
slice back. Interrupting this command leaves the training running; the same command takes it up again. Exit codes: that
of the training; 2 bad input.
END
}

fail() { echo "error: $*" >&2; exit 2; }

# Runs a command of gcloud; a dry run shows it instead.
cloud() {
  if [ -n "$dry_run" ]; then
    show gcloud compute tpus "$@" "${place[@]}"
  else
    gcloud compute tpus "$@" "${place[@]}"
  fi
}

nodes() {
  if [ "$slices" = 1 ]; then echo "$name"; else for ((k = 0; k < slices; k++)); do echo "$name-$k"; done; fi
}

# Runs a command in the folder on hosts: all, or the first of the first slice.
on_all() {
  local node waiting=() code=0
  for node in $(nodes); do
    cloud tpu-vm ssh "$node" --worker=all --command="cd $folder && $1" < /dev/null &
    waiting+=($!)
  done
  for process in "${waiting[@]}"; do wait "$process" || code=$?; done
  return $code
}
on_first() {
  local first
  first=$(nodes)
  cloud tpu-vm ssh "${first%%$'\n'*}" --worker=0 --command="cd $folder && $1" < /dev/null
}

state() {  # of the queued resource: NONE if there is no such
  local found
  if [ -n "$dry_run" ]; then echo "$dry_state"; return; fi
  if found=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)' 2>&1); then
    echo "${found##*$'\n'}"
  elif [[ $found == *NOT_FOUND* || $found == *"not found"* ]]; then
    echo NONE
  else
    echo "error: gcloud could not tell the state of $name: ${found##*$'\n'}" >&2
    return 1
  fi
}

create() {
  local given=(--accelerator-type="$type" --runtime-version="$runtime" "${spot[@]}")
  if [ "$slices" = 1 ]; then given+=(--node-id="$name"); else given+=(--node-count="$slices" --node-prefix="$name"); fi
  echo "asking for $slices x $type"
  cloud queued-resources create "$name" "${given[@]}"
  dry_state=ACTIVE
}

delete() {
  echo "giving $name back ($1)"
  cloud queued-resources delete "$name" --force --quiet
  dry_state=NONE
}

ensure_active() {  # returns when the slice is there
  local now before="" misses=0
  while true; do
    if now=$(state); then misses=0; else now=UNKNOWN; misses=$((misses + 1)); fi
    if [ $misses -ge 5 ]; then fail "the state of $name could not be found out 5 times"; fi
    if [ "$now" != "$before" ]; then echo "$name: $now"; before=$now; fi
    case $now in
      ACTIVE) return ;;
      NONE) create; continue ;;
      FAILED | SUSPENDED) delete "$now"; continue ;;
    esac
    sleep "$poll"
  done
}

push() {  # this folder, without what git ignores, to all hosts
  local archive node
  archive=${TMPDIR:-/tmp}/$name.tar.gz
  if [ -z "$dry_run" ]; then
    git ls-files --cached --others --exclude-standard -z \
      | while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done \
      | tar --create --gzip --null --files-from=- --file="$archive"
  fi
  for node in $(nodes); do
    cloud tpu-vm scp "$archive" "$node:$folder.tar.gz" --worker=all
    cloud tpu-vm ssh "$node" --worker=all --command="mkdir -p $folder && tar xzf $folder.tar.gz -C $folder" < /dev/null
  done
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  "" | -*) usage >&2; exit 2 ;;
esac
what=$1
shift
name="" type="" zone="" workdir="" project="" slices=1 spot=() runtime="" retries=3 setup="" dry_run="" dry_state=NONE
config=()
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    --name=*) name=$value ;;
    --type=*) type=$value ;;
    --zone=*) zone=$value ;;
    --workdir=*) workdir=$value ;;
    --project=*) project=$value ;;
    --slices=*) slices=$value ;;
    --runtime=*) runtime=$value ;;
    --retries=*) retries=$value ;;
    --setup=*) setup=$value ;;
    --spot) spot=(--spot) ;;
    --dry_run) dry_run=1 ;;
    --config.*) config+=("$argument") ;;
    *) fail "unknown argument $argument (see --help)" ;;
  esac
done
poll=${MOTUS_POLL:-30}
folder=motus_jax_$name
[ -n "$name" ] || fail "--name is missing: expected e.g. --name=motus"
[ -n "$zone" ] || fail "--zone is missing: expected e.g. --zone=us-east5-a"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices: expected a number from 1, found $slices"
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries: expected a number from 0, found $retries"
place=(--zone="$zone" ${project:+--project="$project"})
[ -n "$dry_run" ] || command -v gcloud > /dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

case $what in
  logs) on_first "launch/host.sh wait"; exit ;;
  status) echo "$name: $(state)"; on_all "launch/host.sh status"; exit ;;
  stop) on_all "launch/host.sh stop"; exit ;;
  delete) delete "asked for"; exit ;;
esac
[ -f "$what" ] || fail "expected an experiment file, e.g. experiments/phase2.py; found no $what"
[ -n "$type" ] || fail "--type is missing: expected e.g. --type=v5p-32"
[[ $workdir == gs://* ]] || fail "--workdir: expected a place that all hosts see, gs://BUCKET/RUN; found ${workdir:-nothing}"
case $type in
  v6e-*) known=v2-alpha-tpuv6e ;;
  v5p-*) known=v2-alpha-tpuv5 ;;
  v5litepod-*) known=v2-alpha-tpuv5-lite ;;
  v4-* | v3-* | v2-*) known=tpu-ubuntu2204-base ;;
  *) known="" ;;
esac
runtime=${runtime:-$known}
[ -n "$runtime" ] || fail "--runtime is missing: none is known for $type"

printf -v command ' %q' .venv/bin/python -m motus_jax.train --config="$what" --workdir="$workdir" "${config[@]}"

follow() {  # the first host's log until the training has ended, then its exit code; 255 if the slice cannot be reached
  local code told lost=0
  while true; do
    code=0
    on_first "launch/host.sh wait" || code=$?
    if [ $code = 0 ] || [ -n "$dry_run" ]; then return 0; fi
    told=$(on_first "launch/host.sh status" 2> /dev/null) || told=unreachable
    told=${told##*$'\n'}
    case $told in
      "ended with "*) return "${told##* }" ;;
      running) lost=0; echo "the connection was lost, the training goes on: looking again" ;;
      *) lost=$((lost + 1)) ;;
    esac
    if [ $lost -gt 3 ] || { [ $lost -gt 0 ] && [ "$(state)" != ACTIVE ]; }; then return 255; fi
    sleep "$poll"
  done
}

failures=0
while true; do
  ensure_active
  code=0
  if push && on_all "launch/host.sh install tpu${setup:+ && $setup}" && on_all "launch/host.sh start$command"; then
    follow || code=$?
  else
    code=1
  fi
  if [ -n "$dry_run" ]; then exit 0; fi
  case $code in
    0) echo "trained; the slice is still there: launch/tpu_pod.sh delete --name=$name --zone=$zone"; exit 0 ;;
    2) exit 2 ;;
    143) if on_first "launch/host.sh stopped"; then echo "stopped, as asked for; saved"; exit 143; fi ;;
  esac
  now=$(state) || now=UNKNOWN
  if [ "$now" != ACTIVE ]; then
    echo "the slice is gone ($now): going on with another"
    continue
  fi
  if [ $code = 143 ]; then
    echo "a host was told to stop, for maintenance perhaps: going on from what was saved"
  elif [ $failures -ge "$retries" ]; then
    echo "error: the training failed $((failures + 1)) times, last with exit code $code; the slice is still there" >&2
    exit "$code"
  else
    failures=$((failures + 1))
    echo "the training ended with exit code $code: starting it again ($failures of $retries)"
  fi
  on_all "launch/host.sh kill" || true
  sleep "$poll"
done
