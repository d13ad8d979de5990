# Nodes with eight V100 (32 GB) each, as on Taiwania 2: `export SIFTUNE_SITE=taiwania2 SBATCH_ACCOUNT=…`.
# shellcheck shell=bash disable=SC2034
export SBATCH_PARTITION=${SBATCH_PARTITION:-gp4d} # up to 4 days
export SBATCH_ACCOUNT=${SBATCH_ACCOUNT:-}
SIFTUNE_REQUIRED="SBATCH_ACCOUNT SBATCH_PARTITION"
SIFTUNE_SBATCH=(--time=4-00:00:00)
# V100 has no bf16 and no FlashAttention 2, and CUDA 13 has no code for it.
SIFTUNE_VARIANT=volta
SIFTUNE_MODULES=${SIFTUNE_MODULES:-singularity}
