#!/usr/bin/env bash
# Base against tuned: sbatch slurm/evaluate.sh [STAGE...] [-S KEY=VALUE...], in the repository's root. docs/cluster.md has more.
#SBATCH --job-name=siftune-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --output=slurm/logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
slurm=$(dirname "$0") && [ -e "$slurm/run.sh" ] || slurm=$SLURM_SUBMIT_DIR/slurm # Slurm runs a copy, elsewhere
[ -e "$slurm/run.sh" ] || { echo "siftune: submit in the repository's root, not in $SLURM_SUBMIT_DIR" >&2; exit 78; }
case ${1:-} in "" | -*) set -- compare samples "$@" ;; esac
exec "$slurm/run.sh" evaluate "$@"
