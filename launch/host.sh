#!/usr/bin/env bash
# On one host of a slice: installs, starts a training that outlives its shell, waits for it, stops it.
set -euo pipefail

usage() {
  cat <<'END'
What launch/tpu_pod.sh does on every host of a slice; by hand, on each of them:

  launch/host.sh install tpu            .venv with JAX for the accelerator: tpu, cuda12, or cpu
  launch/host.sh start COMMAND...       starts COMMAND with MOTUS_HOSTS=auto unless one is running; log in run.log
  launch/host.sh wait                   shows the log until the command ends; its exit code
  launch/host.sh status                 running, ended with CODE, or nothing
  launch/host.sh stop                   SIGTERM: a training saves first
  launch/host.sh stopped                whether that was asked for, as exit code
  launch/host.sh kill                   SIGTERM, and SIGKILL after MOTUS_GRACE seconds (60)
END
}

# What is started outlives this shell, and writes down how it ended, so that whoever asks later knows.
# shellcheck disable=SC2016  # expanded by the shell that runs it
keeper='
  "$@" & child=$!
  trap "kill -TERM $child" TERM
  code=0; wait $child || code=$?
  while kill -0 $child 2>/dev/null; do code=0; wait $child || code=$?; done
  echo $code > run.exit'
cd "$(dirname "${BASH_SOURCE[0]}")/.."

alive() {  # whether the process of the last start runs; one that only waits to be reaped does not
  local state
  state=$(ps -o stat= -p "$(cat run.pid)" 2>/dev/null) && [[ $state != Z* ]]
}

status() {
  if [ -f run.exit ]; then
    echo "ended with $(cat run.exit)"
  elif [ -f run.pid ] && alive; then
    echo running
  elif [ -f run.pid ]; then
    echo "ended with 137"  # killed, or the machine was started anew: nobody wrote down how
  else
    echo nothing
  fi
}

case "${1:-}" in
  -h | --help) usage ;;
  install)
    # shellcheck source=launch/environment.sh
    source launch/environment.sh
    accelerator=${2:?"expected tpu, cuda12 or cpu"}
    install ''
    if [ "$accelerator" != cpu ]; then
      version=$(.venv/bin/python -c 'import jax; print(jax.__version__)')
      .venv/bin/pip install -qq --disable-pip-version-check "jax[$accelerator]==$version"
    fi
    ;;
  start)
    shift
    if [ "$(status)" = running ]; then
      echo "a command is running already (process $(cat run.pid))"
      exit 0
    fi
    rm -f run.exit run.stopped
    MOTUS_HOSTS=${MOTUS_HOSTS-auto} PYTHONUNBUFFERED=1 nohup setsid bash -c "$keeper" bash "$@" \
      < /dev/null > run.log 2>&1 &
    echo $! > run.pid
    echo "started (process $!)"
    ;;
  wait)
    touch run.log
    tail -n +1 -F run.log 2>/dev/null &
    tail=$!
    trap 'kill $tail 2>/dev/null || true' EXIT
    while [ "$(status)" = running ]; do sleep "${MOTUS_POLL:-5}"; done
    sleep 1  # for the last lines
    found=$(status)
    if [ "$found" = nothing ]; then echo "error: expected a command that was started; found none" >&2; exit 2; fi
    exit "${found##* }"
    ;;
  status) status ;;
  stop)
    if [ "$(status)" = running ]; then
      touch run.stopped
      kill -TERM "$(cat run.pid)"
      echo "told to stop"
    else
      status
    fi
    ;;
  stopped) [ -f run.stopped ] ;;
  kill)
    if [ "$(status)" = running ]; then
      kill -TERM "$(cat run.pid)"
      for ((k = 0; k < ${MOTUS_GRACE:-60}; k++)); do
        if [ "$(status)" != running ]; then break; fi
        sleep 1
      done
      kill -KILL -- "-$(cat run.pid)" 2>/dev/null || true
      while [ "$(status)" = running ]; do sleep 0.1; done
    fi
    status
    ;;
  *) usage >&2; exit 2 ;;
esac
