#!/usr/bin/env bash
# Runs a profile on the machines that Slurm allocates, each of them a node of one Ray cluster:
#   sbatch docs/slurm.sh paper
# from this folder, which must be on a disk that all machines share. Adapt the lines below to your cluster.
#SBATCH --job-name=dwa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
set -euo pipefail

profile=${1:?usage: sbatch docs/slurm.sh PROFILE}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_ADDRESS="$head:6379"

# Starts Ray on every machine, runs the command on the first one, and stops Ray when it ends.
srun .venv/bin/ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  .venv/bin/python -m dwa_paper fleet "$profile"

# The records are there; now tables and figures.
make reproduce PROFILE="$profile"
