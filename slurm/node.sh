#!/usr/bin/env bash
# siftune in the image, on this node: node.sh COMMAND [ARGUMENT...]. run.sh starts one on each node.
set -euo pipefail
# shellcheck source=slurm/site.sh
. "$(dirname "$0")/site.sh"

program=$(command -v apptainer || command -v singularity) ||
    stop "there is neither apptainer nor singularity on $(hostname): name its module in SIFTUNE_MODULES of the site file."
# What an earlier start of this job left on this node goes.
rm -rf "$SIFTUNE_JOB"
mkdir -p "$SIFTUNE_JOB/home"
chmod 700 "$SIFTUNE_JOB"

mounts=()
mount() { mounts+=(--mount "type=bind,\"source=${1//\"/\"\"}\",\"destination=${2//\"/\"\"}\""); }
mount "$SIFTUNE_JOB" /tmp
mount "$SIFTUNE_JOB" /var/tmp
mount "$root" "$root"
# A worktree's history, and the cache that it shares, are where it was made from.
[ ! -f .git ] || mount_of_worktree=$(sed -n 's|^gitdir: \(.*\)/\.git/worktrees/.*|\1|p' .git)
[ -z "${mount_of_worktree:-}" ] || mount "$mount_of_worktree" "$mount_of_worktree"
export HF_HOME=${HF_HOME:-$HOME/.cache/huggingface}
for path in "$HF_HOME" "${SIFTUNE_BINDS[@]}"; do
    [ ! -e "$path" ] || mount "$path" "$path"
done

# Of the surroundings, only this enters the image; through the environment, as a command line is seen by all.
case $program in *apptainer) prefix=APPTAINERENV_ ;; *) prefix=SINGULARITYENV_ ;; esac
pass() { export "$prefix$1=$2"; }
for name in $(compgen -e); do
    case $name in
    APPTAINER* | SINGULARITY*) unset "$name" ;;
    SLURM_* | SIFTUNE_* | CUDA_VISIBLE_DEVICES | CUDA_DEVICE_ORDER | NCCL_* | GLOO_* | UCX_* | FI_* | OMP_NUM_THREADS | \
        PYTORCH_* | MLFLOW_* | HF_* | MODELSCOPE_* | DVC_* | GIT_AUTHOR_* | GIT_COMMITTER_* | *_proxy | *_PROXY | \
        USER | LOGNAME | LANG | LC_* | TZ)
        pass "$name" "${!name}"
        ;;
    esac
done
pass HF_HUB_OFFLINE "${HF_HUB_OFFLINE:-1}"
pass DVC_NO_ANALYTICS 1
pass PYTHONPATH "$root/src"
pass PYTHONNOUSERSITE 1
pass PYTHONSAFEPATH 1
pass PYTHONUNBUFFERED 1
pass SIFTUNE_JOB /tmp

gpus=()
[ "$variant" = cpu ] || gpus=(--nv)
# In the place of this shell: Slurm's signals go to this process, and Apptainer passes them on.
exec "$program" --quiet exec "${gpus[@]}" --cleanenv --no-eval --no-home --no-mount cwd,tmp --pwd "$root" "${mounts[@]}" \
    "$image" env HOME=/tmp/home python -m siftune "$@"
