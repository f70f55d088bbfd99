#!/usr/bin/env bash
# Four nodes of eight GPUs. Submit with: sbatch examples/slurm.sh DATA RUN
# The same job submitted again continues the run; so does one that Slurm preempts and requeues.
#SBATCH --job-name=lookalike
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
#SBATCH --output=lookalike-%j.log
set -euo pipefail
data=$1 run=$2
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# --signal sends SIGTERM two minutes before the end: every rank finishes its step, the first one saves, exit code 143.
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=8 --max-restarts=3 \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:29500" \
  -m lookalike pretrain "$data" --out "$run" --recipe moco_v2 --batch 1024
