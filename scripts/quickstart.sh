#!/usr/bin/env bash
# From a fresh machine to a comparison: sets up, prepares Fashion-MNIST, trains a small ResNet with BN, SN and EN by one
# recipe in two processes, evaluates each, and prints the table, beside earlier scores of several seeds. Steps that are
# already done are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
source .venv/bin/activate
say() { printf '== %s\n' "$*"; }

config=configs/quickstart/fashion_mnist.yaml
data=data/fashion-mnist
runs=runs/quickstart
cores=$(nproc)
export OMP_NUM_THREADS=$((cores > 2 ? cores / 2 : 1))
launch=(torchrun --standalone --nproc-per-node 2)

if [ -f "$data/classes.json" ]; then
    say "data: $data is prepared"
else
    say "data: preparing Fashion-MNIST"
    python scripts/prepare_data.py fashion-mnist "$data" --storage raw
fi

finished() { # whether a run has done all its epochs
    python - "$1/summary.json" 2>/dev/null <<'END' || echo no
import json, sys
summary = json.load(open(sys.argv[1]))
print("yes" if summary["epochs_done"] == summary["epochs"] else "no")
END
}

for norm in bn sn en; do
    run=$runs/$norm
    if [ "$(finished "$run")" = yes ]; then
        say "training: $run is finished"
        continue
    fi
    say "training: a small ResNet with $norm, 2 processes"
    "${launch[@]}" train.py "$config" norm.name="$norm" run_dir="$run" --resume auto
done

for norm in bn sn en; do
    say "evaluation: $norm"
    "${launch[@]}" eval.py "$runs/$norm"
done

say "ratios: $runs/en/ratios"
python scripts/ratios.py "$runs/en"

say "report: $runs/report"
python scripts/report.py "$runs/bn" "$runs/sn" "$runs/en" --out "$runs/report" --measured docs/quickstart_scores.yaml
