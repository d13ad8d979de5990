#!/usr/bin/env bash
# Your jobs: where each runs or why it waits, how far its training is, and what its GPUs do.
set -euo pipefail
command -v squeue >/dev/null || { echo "siftune: there is no squeue here: run this on a login node" >&2; exit 78; }
format='%-14s %-24s %-10s %-11s %-11s %-5s %s\n'
# shellcheck disable=SC2059 # the same columns in each line
printf "$format" JOB NAME STATE TIME LIMIT NODES 'WHERE, OR WHY NOT'
squeue --me --array --noheader --format='%i|%j|%T|%M|%l|%D|%R|%Z' | while IFS='|' read -r job name state used limit nodes where folder; do
    # shellcheck disable=SC2059
    printf "$format" "$job" "$name" "$state" "$used" "$limit" "$nodes" "$where"
    # Its last words on the step: step, loss, rate, time left.
    grep '^step ' "$folder/slurm/logs/$name-$job.log" 2>/dev/null | tail -n 1 | sed 's/^/    /' || true
    [ "$state" = RUNNING ] || continue
    timeout 20 srun --jobid="$job" --overlap --nodes="$nodes" --ntasks-per-node=1 nvidia-smi --format=csv,noheader \
        --query-gpu=name,utilization.gpu,memory.used,memory.total </dev/null 2>/dev/null | sed 's/^/    GPU: /' || true
done
