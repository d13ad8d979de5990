#!/usr/bin/env bash
# `siftune repro` in the image, in this Slurm job: run.sh NAME [ARGUMENT...], for the batch script slurm/NAME.sh.
# Outside a job it submits that script.
set -euo pipefail
# shellcheck source=slurm/site.sh
. "$(dirname "$0")/site.sh"
name=$1 && shift
[ -n "${SLURM_JOB_ID:-}" ] || exec slurm/submit.sh "slurm/$name.sh" "$@"
say() { echo "siftune: $1" >&2; }
again=$(printf ' %q' sbatch "slurm/$name.sh" "$@")
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || again=" slurm/sweep.sh with the same file, once all its tasks have ended"

# A folder on each node, made by node.sh; the image has it as /tmp.
export SIFTUNE_JOB=${SIFTUNE_SCRATCH:-${TMPDIR:-/tmp}}/siftune-$SLURM_JOB_ID
# Slurm's warning. `siftune repro` looks for the file: a signal to the step may also hit what mounts the image.
trap 'touch "$SIFTUNE_JOB/warned"' USR1
# scancel, or the end of the time. Slurm tells the steps, too; a TERM to srun would kill them at once.
cancelled='' && trap 'cancelled=1' TERM

check_image
SIFTUNE_IMAGE_SHA256=$(sha256sum "$image" | cut -d ' ' -f 1)
export SIFTUNE_IMAGE_SHA256
[ "$SIFTUNE_IMAGE_SHA256" = "$(locked_sha256)" ] ||
    stop "$image is not the image of containers/image.lock: its sha256 is $SIFTUNE_IMAGE_SHA256, there it is $(locked_sha256). It was changed, or copied in part: build or copy it again, with its image.lock."
[ "$variant" = cpu ] || [ "${SLURM_GPUS_ON_NODE:-0}" != 0 ] ||
    stop "the image $variant needs a GPU, and this job has none: sbatch --gpus-per-node=1 …, or SIFTUNE_VARIANT=cpu."
load_modules
# Slurm before 22.05 does not say when the job ends.
[ -n "${SLURM_JOB_END_TIME:-}" ] || ! SLURM_JOB_END_TIME=$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s) || export SLURM_JOB_END_TIME
# The image has no squeue: is the job over whose lock is still here?
if holder=$(sed -n 's/^ *"job": "\([0-9]*\)".*/\1/p' work/lock.json 2>/dev/null) && [ -n "$holder" ]; then
    state=$(squeue -h -j "$holder" -o %T 2>&1 || true)
    [[ $state && $state != *"Invalid job id"* ]] || export SIFTUNE_JOB_OVER=$holder
fi

# No function: the process that is started in the background, and ended, must be srun itself.
step=(srun --export=ALL --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")
say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, image $image"
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    SIFTUNE_NODES_KEY=$(head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1)
    export SIFTUNE_NODES_KEY
    "${step[@]}" --relative=1 --nodes="$others" slurm/node.sh node &
    agents=$!
fi
"${step[@]}" --relative=0 --nodes=1 slurm/node.sh repro "$@" &
# A trapped signal ends the waiting.
while kill -0 $! 2>/dev/null; do wait $! || true; done
wait $! && code=0 || code=$?

requeue='' && [ ! -e "$SIFTUNE_JOB/requeue" ] || requeue=1
rm -rf "$SIFTUNE_JOB"
if [ "$others" -gt 0 ] && [ -z "$cancelled" ]; then
    kill "$agents" 2>/dev/null || true
    wait "$agents" || true
    "${step[@]}" --relative=1 --nodes="$others" rm -rf "$SIFTUNE_JOB" || true
fi
case $code in
0) say "job $SLURM_JOB_ID has finished" ;;
75)
    if [ -z "$requeue" ] || [ -n "$cancelled" ]; then
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
