#!/usr/bin/env bash
# Sets up and runs all checks: ruff, mypy, all tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
source .venv/bin/activate
say() { printf '== %s\n' "$*"; }

say "ruff"
ruff check .
ruff format --check .
say "mypy"
mypy
say "tests"
cores=$(nproc)
python -m pytest -n $((cores < 4 ? cores : 4)) "$@"
