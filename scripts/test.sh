#!/usr/bin/env bash
# Sets up and runs all checks: ruff, all tests, and beside them mypy, the site, and damaged JPEG files under sanitizers.
# Arguments go to pytest, and only mypy runs beside it then.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh --tests
source .venv/bin/activate
say() { printf '== %s\n' "$*"; }

# In the time that the tests leave idle: files NAME.said and NAME.pid in $beside.
beside=$(mktemp -d)
start_beside() {
    local name=$1
    shift
    set -m # a process group of its own, which is ended whole
    nice -n 19 "$@" >"$beside/$name.said" 2>&1 &
    set +m
    echo $! >"$beside/$name.pid"
}
wait_for() {
    local found=0
    wait "$(cat "$beside/$1.pid")" || found=$?
    rm "$beside/$1.pid"
    say "$1"
    cat "$beside/$1.said"
    [ $found = 0 ] || { echo "error: $1 ended with $found" >&2; exit 1; }
}
end_all() {
    for pid in "$beside"/*.pid; do
        [ ! -f "$pid" ] || kill -- "-$(cat "$pid")" 2>/dev/null || true
    done
    rm -rf "$beside"
}
trap end_all EXIT

say "ruff"
ruff check .
ruff format --check .
start_beside mypy mypy
[ $# != 0 ] || start_beside "the site and damaged files" bash -c 'bash scripts/docs.sh && bash scripts/fuzz.sh 100000'
say "tests"
cores=$(nproc)
# One process more than there are cores, as many tests wait for processes of their own; worksteal: neighbours, which
# share what they set up, stay in one process.
python -m pytest -n $((cores < 4 ? cores + 1 : 4)) --dist worksteal --durations-to test-durations.tsv "$@"
wait_for mypy
[ $# != 0 ] || wait_for "the site and damaged files"
