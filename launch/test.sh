#!/usr/bin/env bash
# The whole test suite from an empty machine: set-up, format, lint, types, tests.
#   bash launch/test.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup.sh test
bin=${VENV:-.venv}/bin
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
export HF_HUB_OFFLINE=1
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"
# A file stays with one worker: else both make its fixtures, and compile the same. Files
# run in the order of collection, which tests/conftest.py sets: the longest first.
"$bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15 "$@"
