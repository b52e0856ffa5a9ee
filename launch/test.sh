#!/usr/bin/env bash
# From a fresh machine to a tested repository: makes .venv, installs the test extra, checks the style, runs the tests.
set -euo pipefail

usage() {
  cat <<'END'
Checks the style and runs the tests.

  launch/test.sh                        the fast suite, on two processes
  launch/test.sh tests/test_modes.py    pytest's arguments, passed on
  launch/test.sh -m thorough            tests that compile much; .ci/run runs them with the rest
  launch/test.sh -m compiler            the 8B step for TPUs that are not there (pip install 'libtpu==0.0.42.*')
  launch/test.sh -m heavy               minutes of compute
  launch/test.sh -m simulator           needs the simulator extra (README)

The first run makes .venv and installs the package. Set PYTHON to choose the interpreter of a new .venv.
END
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install test
.venv/bin/ruff check .
# Two test processes on two cores: threads of numpy and torch would only wait for each other, spinning.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# Tests of a module share what they compile, so a module stays on one process; tests/conftest.py orders them.
if [ $# -eq 0 ]; then set -- -n 2 --dist loadscope --no-loadscope-reorder; fi
exec .venv/bin/python -m pytest "$@"
