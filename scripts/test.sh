#!/usr/bin/env bash
# Sets up and runs all checks: ruff, mypy, all tests, and beside them the site and damaged JPEG files under sanitizers.
# Arguments go to pytest, and nothing runs beside it then.
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
if [ $# = 0 ]; then # in the time that the tests leave idle
    said=$(mktemp)
    set -m # a process group of its own, which is ended whole
    nice -n 19 bash -c 'bash scripts/docs.sh && bash scripts/fuzz.sh' >"$said" 2>&1 &
    set +m
    beside=$!
    trap 'kill -- -$beside 2>/dev/null || true; rm -f "$said"' EXIT
fi
cores=$(nproc)
# worksteal: neighbours, which share what they set up, stay in one process.
python -m pytest -n $((cores < 4 ? cores : 4)) --dist worksteal --durations-to test-durations.tsv "$@"
if [ $# = 0 ]; then
    found=0
    wait $beside || found=$?
    cat "$said"
    [ $found = 0 ] || { echo "error: scripts/docs.sh or scripts/fuzz.sh ended with $found" >&2; exit 1; }
fi
