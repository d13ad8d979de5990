#!/usr/bin/env bash
# siftune in the image, on this node: node.sh COMMAND [ARGUMENT...]. run.sh starts one on each node of a job.
set -euo pipefail
# shellcheck source=slurm/site.sh
. "$(dirname "$0")/site.sh"

program=$(command -v apptainer || command -v singularity) ||
    stop "there is neither apptainer nor singularity on $(hostname): name the module that brings it in SIFTUNE_MODULES of the site file."
# What an earlier start of this job left on this node goes.
rm -rf "$SIFTUNE_JOB"
mkdir -p "$SIFTUNE_JOB/home"
chmod 700 "$SIFTUNE_JOB"

mounts=()
# Quoted as CSV, so that a path may have commas, colons and quotes.
see() { mounts+=(--mount "type=bind,\"source=${1//\"/\"\"}\",\"destination=${2//\"/\"\"}\""); }
see "$SIFTUNE_JOB" /tmp
see "$SIFTUNE_JOB" /var/tmp
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface} MODELSCOPE_CACHE=${MODELSCOPE_CACHE:-$HOME/.cache/modelscope}
# The hubs' caches are written to even when they are read: locks.
for folder in "$HF_HOME" "$MODELSCOPE_CACHE" ${HF_HUB_CACHE:+"$HF_HUB_CACHE"} ${HF_DATASETS_CACHE:+"$HF_DATASETS_CACHE"}; do
    mkdir -p "$folder"
    see "$folder" "$folder"
done
# A DVC cache elsewhere, which several checkouts share.
mapfile -t caches < <(sed -n 's|^ *dir *= *\(/.*\)|\1|p' .dvc/config .dvc/config.local 2>/dev/null)
for path in "$root" "${caches[@]}" "${SIFTUNE_BINDS[@]}"; do
    see "$path" "$path"
done

# Of the surroundings only this enters the image; through the environment, as all can see a command line.
case $program in *apptainer) prefix=APPTAINERENV_ ;; *) prefix=SINGULARITYENV_ ;; esac
pass() { export "$prefix$1=$2"; }
for name in $(compgen -e); do
    case $name in
    APPTAINER* | SINGULARITY*) unset "$name" ;;
    SLURM_* | SLURMD_NODENAME | SIFTUNE_* | CUDA_VISIBLE_DEVICES | CUDA_DEVICE_ORDER | NCCL_* | GLOO_* | UCX_* | FI_* | \
        OMP_NUM_THREADS | PYTORCH_* | MLFLOW_* | HF_* | MODELSCOPE_* | GIT_AUTHOR_* | GIT_COMMITTER_* | *_proxy | *_PROXY | \
        USER | LOGNAME | LANG | LC_* | TZ) pass "$name" "${!name}" ;;
    esac
done
# DVC signs the commits of experiments, and the image sees no ~/.gitconfig; who has none there is known by the login name.
git_name=$(git config user.name 2>/dev/null || id -un)
git_email=$(git config user.email 2>/dev/null || echo "$(id -un)@$(hostname)")
for role in AUTHOR COMMITTER; do
    name=GIT_${role}_NAME email=GIT_${role}_EMAIL
    pass "$name" "${!name:-$git_name}"
    pass "$email" "${!email:-$git_email}"
done
pass HF_HUB_OFFLINE "${HF_HUB_OFFLINE:-1}"
pass DVC_NO_ANALYTICS 1
pass PYTHONPATH "$root/src"
pass PYTHONNOUSERSITE 1
pass PYTHONSAFEPATH 1
pass PYTHONUNBUFFERED 1
pass SIFTUNE_JOB /tmp

gpus=() && [ ! -e /dev/nvidiactl ] || gpus=(--nv)
# In the place of this shell: Slurm signals this process, and Apptainer passes that on.
exec "$program" --quiet exec "${gpus[@]}" --cleanenv --no-eval --no-home --no-mount cwd,tmp --pwd "$root" "${mounts[@]}" \
    "$image" env HOME=/tmp/home python -m siftune "$@"
