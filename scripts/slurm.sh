#!/usr/bin/env bash
# A SLURM job that trains with one of the scripts or train.py on all GPUs of its nodes, and goes on where it was ended.
# Usage: sbatch [options that win over those below] scripts/slurm.sh ./scripts/train_r50os16_gtav_isw.sh [flags]
#        sbatch --nodes=2 scripts/slurm.sh ./scripts/launch.sh train.py --dataset gtav ... --exp NAME
# Five minutes before its time is up SLURM sends SIGUSR1 to all processes; they save their step and exit with 75, upon
# which the job queues again and resumes (docs/cluster.md). Without a time limit of the partition give --time.
#SBATCH --job-name=diia
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
if [[ -z ${SLURM_JOB_ID:-} || $# == 0 ]]; then
  echo "error: start it with sbatch scripts/slurm.sh COMMAND [flags], for instance ./scripts/train_r50os16_gtav_isw.sh" >&2
  exit 2
fi
if [[ " $* " == *" --resume"* ]]; then
  echo "error: the job adds --resume auto itself; start from weights with --snapshot FILE --restore_optimizer" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"

# torchrun's variables, which scripts/launch.sh reads: one torchrun per node, which meet on the first of them.
names=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # one a line
export PET_NNODES=$SLURM_JOB_NUM_NODES PET_RDZV_BACKEND=c10d PET_RDZV_ID=$SLURM_JOB_ID
export PET_RDZV_ENDPOINT=${names%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))
export PET_MAX_RESTARTS=${PET_MAX_RESTARTS:-3} # a process that dies: all start again from the last checkpoint

code=0
srun --kill-on-bad-exit=0 "$@" --resume auto || code=$?
if [[ $code == 75 ]]; then # "try again": a signal ended the run at a whole step
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
