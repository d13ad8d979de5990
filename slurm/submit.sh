#!/usr/bin/env bash
# Submit a batch script with what the site says: submit.sh [OPTION OF sbatch...] SCRIPT [ARGUMENT...]
set -euo pipefail
# shellcheck source=slurm/site.sh
. "$(dirname "$0")/site.sh"

command -v sbatch >/dev/null || stop "there is no sbatch here: run this on a login node of the cluster. Without Slurm: siftune repro"
check_site
exec sbatch "${SIFTUNE_SBATCH[@]}" "$@"
