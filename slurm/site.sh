# Sourced by the other scripts: what this cluster is (SIFTUNE_SITE). Leaves the shell in the repository's root.
# shellcheck shell=bash
stop() { echo "siftune: $1" >&2; exit 78; }

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
root=$(pwd -P)

# shellcheck disable=SC2034 # read by who sources this
SIFTUNE_BINDS=() SIFTUNE_SBATCH=()
if [ -n "${SIFTUNE_SITE:-}" ]; then
    site=slurm/sites/$SIFTUNE_SITE.sh
    [[ $SIFTUNE_SITE != */* && -f $site ]] || stop "SIFTUNE_SITE=$SIFTUNE_SITE: there is no $site. There are: $(
        cd slurm/sites && printf '%s ' *.sh
    ). Copy slurm/sites/example.sh to $site and fill it in."
    # shellcheck source=slurm/sites/example.sh
    . "$site"
fi
variant=${SIFTUNE_VARIANT:-cuda}
image=containers/siftune-$variant.sif

# The sha256 that build.py wrote for this variant; nothing where it has none.
locked_sha256() {
    sed -n '/^  "'"$variant"'": {/,/^  }/ s/^    "sha256": "\([0-9a-f]\{64\}\)".*/\1/p' containers/image.lock
}

check_image() {
    case $variant in cuda | volta | cpu) ;; *) stop "SIFTUNE_VARIANT=$variant: it must be cuda, volta or cpu." ;; esac
    [ -f "$image" ] || stop "there is no image $root/$image: build it (python containers/build.py $variant), or copy it there. For another variant, set SIFTUNE_VARIANT to cuda, volta or cpu."
    [ -f containers/image.lock ] || stop "containers/image.lock is not there: build.py writes it with the image. Copy both."
    [ -n "$(locked_sha256)" ] || stop "containers/image.lock has no image of the variant $variant: build it (python containers/build.py $variant), or take the image.lock that came with $image."
}

# Refuse what cannot run, before it waits in a queue.
check_site() {
    local name
    for name in ${SIFTUNE_REQUIRED:-}; do
        [ -n "${!name:-}" ] || stop "$name is not set, and the site $SIFTUNE_SITE needs it: export $name=…, or set it in $site."
    done
    check_image
}

load_modules() {
    [ -n "${SIFTUNE_MODULES:-}" ] || return 0
    set +u # the site's command may not bear it
    # shellcheck disable=SC2086 # several names
    module load $SIFTUNE_MODULES
    set -u
}
