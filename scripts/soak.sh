#!/usr/bin/env bash
# Kills and resumes runs for MINUTES: bash scripts/soak.sh [MINUTES, default 60] [SEED, default 0]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minutes=${1:-60} seed=${2:-0}
if ! [[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ && $seed =~ ^[0-9]+$ ]]; then
    echo "error: scripts/soak.sh $*: expected a number of minutes and a whole number as the seed" >&2
    exit 2
fi
bash scripts/setup.sh --tests
source .venv/bin/activate
printf '== %s\n' "killing runs for $minutes minutes, seed $seed"
PYTHONPATH=.:tests python tests/soak.py "$minutes" "$seed"
