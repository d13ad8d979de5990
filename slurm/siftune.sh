#!/usr/bin/env bash
# siftune in the image, on this very machine and with its network: slurm/siftune.sh fetch --all
set -euo pipefail
# shellcheck source=slurm/site.sh
. "$(dirname "$0")/site.sh"
check_image
load_modules
SIFTUNE_JOB=$(mktemp -d)
export SIFTUNE_JOB HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}
trap 'rm -rf "$SIFTUNE_JOB"' EXIT
slurm/node.sh "$@"
