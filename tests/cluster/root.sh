#!/usr/bin/env bash
# A Debian root that tests run real programs in, made once and kept in the user's cache folder.
#   tests/cluster/root.sh sid|base    prints its folder
#     sid   Slurm, Apptainer and llama.cpp at their current versions, with an ordinary user
#     base  what a test image is built on; it is that user's
# Needs root and mmdebstrap. The mirror is the one that this machine's own Debian sources name.
set -euo pipefail
stop() { echo "root.sh: $1" >&2; exit 78; }

common=(ca-certificates git python3)
sid=(apptainer squashfs-tools squashfuse fuse-overlayfs fakeroot uidmap
    slurmctld slurmd slurm-client munge
    llama.cpp-tools
    iproute2 less nano procps)
base=(libgomp1 procps python3-venv)

mirror() {
    local files=()
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
        [ -f "$file" ] && files+=("$file")
    done
    # "URIs: URI" (deb822), or "deb [options] URI suite ..."; security and updates have no sid.
    sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' "${files[@]}" |
        grep -m1 '/debian/\?$'
}

make() { # SUITE FOLDER PACKAGE... [-- OPTION...]
    local suite=$1 folder=$2 uri packages=()
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do packages+=("$1"); shift; done
    shift
    command -v mmdebstrap >/dev/null || stop "mmdebstrap is needed: apt-get install mmdebstrap"
    uri=$(mirror) || stop "the apt sources of this machine name no Debian mirror"
    # Sid's index may be a copy of another day: its date is not looked at, its signature is.
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
        --aptopt='Acquire::Retries "5"' \
        --include="$(IFS=,; echo "${packages[*]}")" "$@" \
        "$suite" "$folder" "deb $uri $suite main" >&2 || stop "mmdebstrap could not make $folder"
}

# shellcheck disable=SC2016 # $1 of a hook is mmdebstrap's
make_sid() {
    # Its ids, and those that Apptainer maps for it, are the same in each root.
    make sid "$1" "${common[@]}" "${sid[@]}" -- \
        --customize-hook='chroot "$1" useradd --create-home --shell /bin/bash --uid 1000 user' \
        --customize-hook='echo user:100000:65536 | tee "$1/etc/subuid" >"$1/etc/subgid"'
}

make_base() {
    make bookworm "$1" "${common[@]}" "${base[@]}" --
    rm -rf "${1:?}"/dev/* # which an ordinary user cannot copy
    chown -hR 1000:1000 "$1"
}

case ${1:-} in sid | base) ;; *) echo "usage: tests/cluster/root.sh sid|base" >&2; exit 64 ;; esac
[ "$(id -u)" = 0 ] || stop "only root can make a Debian root and enter it"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/siftune/cluster
folder=$cache/$1-$(sha256sum <"${BASH_SOURCE[0]}" | head -c 12)
mkdir -p "$cache"
exec 9>"$cache/$1.lock"
flock 9 # two test runs, one root
if [ ! -d "$folder" ]; then
    rm -rf "$folder.tmp"
    "make_$1" "$folder.tmp"
    mv "$folder.tmp" "$folder" # only a whole root counts
fi
echo "$folder"
