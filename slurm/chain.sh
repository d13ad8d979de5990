#!/usr/bin/env bash
# Train, then evaluate, then export: slurm/chain.sh [-S KEY=VALUE...], on a login node. Each waits until the one
# before has finished; if that fails, it is taken from the queue.
set -euo pipefail
cd "$(dirname "$0")/.."
after() { slurm/submit.sh --parsable --dependency="afterok:$1" --kill-on-invalid-dep=yes "slurm/$2.sh" | cut -d ';' -f 1; }
train=$(slurm/submit.sh --parsable slurm/train.sh sft "$@" | cut -d ';' -f 1)
evaluate=$(after "$train" evaluate)
export=$(after "$evaluate" export)
echo "siftune: job $train trains, then $evaluate evaluates, then $export exports"
