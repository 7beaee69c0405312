#!/usr/bin/env bash
# A template for several nodes with requeue: sbatch scripts/slurm.sh CONFIG run_dir=RUN [key=value ...]
# Adapt the resources. Two minutes before the time limit, or when preempted, the run writes a checkpoint and the job is
# requeued; it resumes from there. The run folder has to be on a disk that all nodes share.
# A suite as a job array, see scripts/ablate.py --slurm: sbatch --array=0-17%4 scripts/slurm.sh --suite SUITE [...]
#SBATCH --job-name=en
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail

root=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
cd "$root"
source .venv/bin/activate
if [ "${1:-}" = --suite ]; then
    shift
    run=$(python scripts/ablate.py "$@" --show "$SLURM_ARRAY_TASK_ID")
    mapfile -t arguments <<<"$run"
    set -- "${arguments[@]}"
fi
if [[ "$*" != *run_dir=* ]]; then
    echo "error: scripts/slurm.sh: expected run_dir=RUN among the arguments, so that a requeued job finds its run" >&2
    exit 2
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=0 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29500" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 100 \
    train.py "$@" --resume auto &
step=$!

requeue() {
    trap '' USR1 TERM
    echo "== signal received: forwarding it, then requeueing"
    kill -USR1 "$step" || true # srun forwards it to torchrun on every node, torchrun to the ranks
    wait "$step" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1 TERM
wait "$step"
