#!/usr/bin/env bash
# Sets up .venv, then runs ruff, mypy and the tests. Arguments go to pytest: ./scripts/test.sh tests/test_config.py -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$python" -m ruff check .
"$python" -m mypy .
workers=$("$python" -c 'import os; print(min(4, os.cpu_count() or 1))') # every worker holds a network or two
exec "$python" -m pytest -q -n "$workers" --dist loadfile "$@"
