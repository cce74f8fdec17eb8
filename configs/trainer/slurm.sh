#!/bin/bash
# A training on two nodes of 8 GPUs that goes on with its own run whenever its time is up, or it is preempted:
#   sbatch configs/trainer/slurm.sh --config configs/text/mlm_nsp.yaml
# 120 seconds before the end SLURM sends SIGUSR1: the step is finished, last.ckpt saved and the job queued anew; started
# again, the same command goes on with its run (docs/resuming.md). Set nodes, GPUs and time to those of your cluster.
#SBATCH --job-name=lit_pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
srun --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}" python -m lit_pretrain fit "$@" --config configs/trainer/nodes.yaml \
  --trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
