#!/usr/bin/env bash
# Bring the experiments and runs of a sweep here: slurm/collect.sh NAME. sweep.sh submits it; again does no harm.
#SBATCH --job-name=siftune-collect
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm/logs/%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
folder=work/sweeps/$1
missing=''
mkdir -p work/runs
for clone in "$folder"/*/; do
    task=$(basename "$clone")
    result=$(git -C "$clone" for-each-ref --format='%(refname)' refs/exps | grep "/$1-$task$") &&
        git fetch --quiet "$clone" "$result:$result" || missing+=" $task"
    # Files are the truth: MLflow's store gets them from here, one after the other.
    cp -r --update "$clone"work/runs/. work/runs/ 2>/dev/null || true
done
slurm/siftune.sh sync
echo "siftune: dvc exp show has the experiments $1-1, $1-2, …; make ui shows the runs"
[ -z "$missing" ] || { echo "siftune: no result of the tasks$missing: what their logs say, then slurm/sweep.sh again" >&2; exit 1; }
