#!/usr/bin/env bash
# Scores all runs of a suite on C-like corruptions, by the statistics of training and by those of what is shown.
# Usage: bash scripts/robustness.sh SUITE_FOLDER [key=value ...], as data.root=data/part for a part of the images.
# Each run gets RUN/robustness.jsonl, and RUN/robustness.txt with the tables; those that have them are left alone.
# SEVERITIES="1 3 5" takes a part of them.
set -euo pipefail

folder=${1:-}
if ! compgen -G "$folder/*/last.pt" >/dev/null; then
    echo "error: SUITE_FOLDER '$folder': expected the folder of a suite with finished runs" >&2
    exit 2
fi
shift
corruptions=()
for severity in ${SEVERITIES:-1 2 3 4 5}; do corruptions+=("all:$severity"); done
eval=$(dirname "${BASH_SOURCE[0]}")/../eval.py
for run in "$folder"/*/; do
    run=${run%/}
    [[ -f $run/last.pt && ! -f $run/robustness.jsonl ]] || continue
    echo "$run"
    python "$eval" "$run" "$@" --statistics none full batch partial:16 --corrupt "${corruptions[@]}" \
        > "$run/robustness.part" 2> "$run/robustness.txt" || { tail -n 1 "$run/robustness.txt" >&2; exit 1; }
    mv "$run/robustness.part" "$run/robustness.jsonl"
done
