#!/usr/bin/env bash
# Decodes damaged JPEG files under sanitizers: bash scripts/fuzz.sh [FILES, default 300000] [SEED, default 0]
# By clang's libFuzzer, which looks for new ways through the code: bash scripts/fuzz.sh --libfuzzer SECONDS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
[ "${1:-}" = --libfuzzer ] && { libfuzzer=yes; shift; }
{ [ $# -le 2 ] && [[ ${1:-0} =~ ^[0-9]+$ && ${2:-0} =~ ^[0-9]+$ ]] && [ $# = 1 -o -z "${libfuzzer:-}" ]; } ||
    fail "scripts/fuzz.sh ${libfuzzer:+--libfuzzer }$*: expected FILES and SEED, or --libfuzzer and SECONDS, whole numbers"
[ -z "${libfuzzer:-}" ] || command -v clang++ >/dev/null || fail "there is no clang++, which --libfuzzer needs"

bash scripts/setup.sh --tests
source .venv/bin/activate
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
mkdir "$made/seeds"
PYTHONPATH=.:tests python tests/fuzz_seeds.py "$made/seeds"
options=(-std=c++17 -O1 -g -march=native -ffp-contract=off -fno-sanitize-recover=all -Ien/data/jpeg_native)
if [ -n "${libfuzzer:-}" ]; then
    found=runs/fuzz # what libFuzzer has found stays, and is begun with the next time
    mkdir -p "$found/corpus"
    clang++ "${options[@]}" -fsanitize=fuzzer,address,undefined -DLIBFUZZER tests/jpeg_fuzz.cpp -o "$made/fuzz"
    say "libFuzzer for $1 s; findings go to $found"
    "$made/fuzz" -max_total_time="$1" -max_len=20000 -artifact_prefix="$found/" "$found/corpus" "$made/seeds"
else
    g++ "${options[@]}" -fsanitize=address,undefined tests/jpeg_fuzz.cpp -o "$made/fuzz"
    say "decoding ${1:-300000} damaged JPEG files, seed ${2:-0}; how many came to which status:"
    "$made/fuzz" "${1:-300000}" "${2:-0}" "$made"/seeds/*
fi
