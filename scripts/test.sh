#!/usr/bin/env bash
# Sets up .venv, then runs ruff, mypy and the tests. Arguments go to pytest: ./scripts/test.sh tests/test_config.py -x
# ./scripts/test.sh --oldest [arguments] runs the tests alone, in .venv-oldest: every requirement at its lower bound.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ${1:-} == --oldest ]]; then
  shift
  unset DIIA_PYTHON
  DIIA_OLDEST=1
fi
source scripts/setup.sh

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [[ -z ${DIIA_OLDEST:-} ]]; then
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m mypy .
fi
workers=$("$python" -c 'import os; print(min(4, os.cpu_count() or 1))') # every worker holds a network or two
exec "$python" -m pytest -q -n "$workers" --dist loadfile --no-loadscope-reorder --durations=15 "$@"
