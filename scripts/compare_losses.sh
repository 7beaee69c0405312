#!/usr/bin/env bash
# Proves a refactor: ten training steps of every normalizer, on one rank and on two, with both loaders, at a commit and
# in the working tree; every rank's losses and the weights after each step have to be equal to the bit.
# bash scripts/compare_losses.sh REV
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ $# -eq 1 ] || { echo "error: scripts/compare_losses.sh: expected one commit, e.g. HEAD" >&2; exit 2; }
commit=$(git rev-parse --verify --quiet "$1^{commit}") ||
    { echo "error: scripts/compare_losses.sh: $1: expected a commit of this repository" >&2; exit 2; }
bash scripts/setup.sh --tests
source .venv/bin/activate
work=$(mktemp -d)
trap 'git worktree remove --force "$work/then"; rm -rf "$work"' EXIT
git worktree add --quiet --detach "$work/then" "$commit"
PYTHONPATH=.:tests python tests/compare_losses.py "$work/then" "$work"
