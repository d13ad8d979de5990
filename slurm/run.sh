#!/usr/bin/env bash
# `siftune repro` in the image, in this Slurm job: run.sh NAME [ARGUMENT...], for slurm/NAME.sh.
# Outside a job it submits slurm/NAME.sh instead.
set -euo pipefail
# shellcheck source=slurm/site.sh
. "$(dirname "$0")/site.sh"
name=$1 && shift
say() { echo "siftune: $1" >&2; }
again=$(printf ' %q' sbatch "slurm/$name.sh" "$@")

[ -n "${SLURM_JOB_ID:-}" ] || exec slurm/submit.sh "slurm/$name.sh" "$@"

# On this node and the others, made by node.sh; the image sees it as /tmp.
export SIFTUNE_JOB=${SIFTUNE_SCRATCH:-${TMPDIR:-/tmp}}/siftune-$SLURM_JOB_ID
stopped=''
# Slurm's warning. A file, as a signal to the step would also hit what mounts the image: `siftune repro` looks for it.
trap 'touch "$SIFTUNE_JOB/warned"' USR1
# scancel, or the end of the time: Slurm tells the step itself, and it must not be queued again.
trap 'stopped=1' TERM

check_site
SIFTUNE_IMAGE_SHA256=$(sha256sum "$image" | cut -d ' ' -f 1)
[ "$SIFTUNE_IMAGE_SHA256" = "$(locked_sha256)" ] ||
    stop "$image is not the image of containers/image.lock: its sha256 is $SIFTUNE_IMAGE_SHA256, not $(locked_sha256). It was changed, or copied in part: build or copy it again, with its image.lock."
export SIFTUNE_IMAGE_SHA256
if [ "$variant" != cpu ] && [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ]; then
    stop "the image $variant needs a GPU, and this job has none: submit with --gpus-per-node=1. Without GPUs: SIFTUNE_VARIANT=cpu"
fi
if [ -n "${SIFTUNE_MODULES:-}" ]; then
    set +u # the module command is the site's
    # shellcheck disable=SC2086 # several names
    module load $SIFTUNE_MODULES
    set -u
fi
# Slurm before 22.05 does not say when the job ends.
[ -n "${SLURM_JOB_END_TIME:-}" ] || ! end=$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s) || export SLURM_JOB_END_TIME=$end

# The image has no squeue: is the job over whose lock is still here?
holder=$(sed -n 's/^ *"job": "\([0-9]*\)".*/\1/p' work/lock.json 2>/dev/null || true)
if [ -n "$holder" ]; then
    state=$(squeue -h -j "$holder" -o %T 2>&1 || true)
    [[ $state && $state != *"Invalid job id"* ]] || export SIFTUNE_JOB_OVER=$holder
fi

on_nodes() { srun --export=ALL --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@"; }

say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, image $image"
on_nodes --nodes=1 slurm/node.sh repro "$@" &
# A trapped signal ends the waiting.
while kill -0 $! 2>/dev/null; do wait $! || true; done
wait $! && code=0 || code=$?

requeue=''
[ -e "$SIFTUNE_JOB/requeue" ] && requeue=1
[ -n "$stopped" ] || rm -rf "$SIFTUNE_JOB"
case $code in
0) say "job $SLURM_JOB_ID has finished" ;;
75)
    if [ -z "$requeue" ] || [ -n "$stopped" ]; then
        say "to go on:$again"
    elif scontrol requeue "$SLURM_JOB_ID"; then
        say "job $SLURM_JOB_ID is queued again, and goes on from there"
    else
        say "this cluster does not queue it again by itself. To go on:$again"
    fi
    ;;
78) say "job $SLURM_JOB_ID is not tried again: mend what is said above, then:$again" ;;
137) say "job $SLURM_JOB_ID was killed; if not by you, its memory was too small: sbatch --mem=…. To go on:$again" ;;
*) say "job $SLURM_JOB_ID ended with code $code; why is above. To go on from the last checkpoint:$again" ;;
esac
exit "$code"
