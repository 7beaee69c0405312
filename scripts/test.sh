#!/usr/bin/env bash
# Sets up and runs all checks: ruff, mypy, all tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh --tests
source .venv/bin/activate
say() { printf '== %s\n' "$*"; }

say "ruff"
ruff check .
ruff format --check .
say "mypy"
mypy
say "tests"
cores=$(nproc)
# worksteal: neighbours, which share what they set up, stay in one process.
python -m pytest -n $((cores < 4 ? cores : 4)) --dist worksteal --durations-to test-durations.tsv "$@"
