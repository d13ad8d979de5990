# A site: what is special about one cluster. Copy it to slurm/sites/NAME.sh, fill it in, and say
# `export SIFTUNE_SITE=NAME` (in ~/.bashrc). What the environment says already is left as it is.
# shellcheck shell=bash disable=SC2034

# Slurm's own variables: they beat the #SBATCH lines, and an option on the command line beats them. Exported, they hold
# for `slurm/train.sh`; for `sbatch slurm/train.sh` as well, where your shell has sourced this file.
export SBATCH_PARTITION=${SBATCH_PARTITION:-gpu}
export SBATCH_ACCOUNT=${SBATCH_ACCOUNT:-}
# What must be set before anything is submitted.
SIFTUNE_REQUIRED="SBATCH_ACCOUNT SBATCH_PARTITION"
# More options of sbatch, for `slurm/train.sh`: mail, for one.
SIFTUNE_SBATCH=(--time=1-00:00:00 "--mail-type=END,FAIL,REQUEUE")

# cuda, volta (V100) or cpu
SIFTUNE_VARIANT=${SIFTUNE_VARIANT:-cuda}
# `module load` these: Apptainer, mostly.
SIFTUNE_MODULES="apptainer"
# Folders that the image must see besides this one and the hubs' caches: data, models, a shared DVC cache.
SIFTUNE_BINDS=(/project/shared)
# On each node, for temporary files and private caches; it becomes the image's /tmp.
SIFTUNE_SCRATCH=/local/scratch
# A mirror of the hub, and where what was fetched is kept; the nodes must see it.
# export HF_ENDPOINT=…
export HF_HOME=${HF_HOME:-/project/$USER/huggingface}
