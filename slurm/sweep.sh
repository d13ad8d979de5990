#!/usr/bin/env bash
# One training for each line of a file: slurm/sweep.sh FILE [STAGE...], on a login node. A line is what one task
# sets: sft.learning_rate=1e-4 sft.lora.rank=16. Each works in a clone of its own, all share DVC's cache, and at the
# end a job brings their experiments and runs here (collect.sh). docs/cluster.md has more.
#SBATCH --job-name=siftune-sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --output=slurm/logs/%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then # a task: sweep.sh FOLDER [STAGE...]
    cd "$SLURM_SUBMIT_DIR/$1"
    name=${1##*/}-$SLURM_ARRAY_TASK_ID
    if git -C "$SLURM_ARRAY_TASK_ID" for-each-ref --format='%(refname)' refs/exps | grep -q "/$name$"; then
        echo "siftune: $name is done" >&2 && exit
    fi
    # Quotes hold values together; nothing is evaluated.
    mapfile -d '' -t values < <(sed -n "${SLURM_ARRAY_TASK_ID}p" params | xargs printf '%s\0')
    overrides=()
    for value in "${values[@]}"; do overrides+=(-S "$value"); done
    exec "$SLURM_ARRAY_TASK_ID/slurm/run.sh" sweep --name "$name" "${overrides[@]}" "${@:2}"
fi

[ $# -gt 0 ] || { echo "usage: slurm/sweep.sh FILE [STAGE...]" >&2; exit 64; }
file=$(realpath "$1") && shift
# shellcheck source=slurm/site.sh
. "$(dirname "$0")/site.sh"
check_site
grep -qs '[^ ]' "$file" || stop "$file: there must be a file with one line for each task, as sft.learning_rate=1e-4 sft.lora.rank=16"
git diff --quiet HEAD -- conf params.yaml dvc.yaml src train eval export ||
    stop "there are changes that are not committed, and the tasks run what is committed: git commit first."
name=$(basename "$file") && name=${name%.*}
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_-]*$ ]] || stop "$file: experiments get its name; it must be of letters, digits, - and _."
folder=work/sweeps/$name
[ ! -e "$folder" ] || grep -v '^ *$' "$file" | cmp --quiet - "$folder/params" ||
    stop "$folder is of other lines than $file: give the file another name, or remove $folder."
mkdir -p "$folder"
grep -v '^ *$' "$file" >"$folder/params.new" && mv "$folder/params.new" "$folder/params"
num=$(wc -l <"$folder/params")
for ((task = 1; task <= num; task++)); do
    clone=$folder/$task
    [ ! -e "$clone" ] || continue
    git clone --quiet --local . "$clone.new"
    cp -r slurm/sites "$clone.new/slurm/"
    ln -sf "$root/$image" "$clone.new/containers/"
    cp containers/image.lock "$clone.new/containers/"
    cp .dvc/config.local "$clone.new/.dvc/" 2>/dev/null || true
    grep -qs '^ *dir *=' .dvc/config .dvc/config.local ||
        printf '[cache]\n    dir = %s\n' "$root/.dvc/cache" >>"$clone.new/.dvc/config.local"
    mv "$clone.new" "$clone"
done
mkdir -p .dvc/cache
array=$(slurm/submit.sh --parsable --array="1-$num" slurm/sweep.sh "$folder" "$@" | cut -d ';' -f 1)
collect=$(slurm/submit.sh --parsable --dependency="afterany:$array" slurm/collect.sh "$name" | cut -d ';' -f 1)
echo "siftune: job $array has $num tasks; job $collect then brings their experiments and runs here"
