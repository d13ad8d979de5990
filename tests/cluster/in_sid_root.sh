#!/usr/bin/env bash
# Become a command inside the sid root (same process id), with a folder of outside as its /mnt.
#   tests/cluster/in_sid_root.sh FOLDER COMMAND [ARGUMENT...]
set -euo pipefail
root=$(dirname "$0")/../../work/cluster/sid
enter='
    mount --bind "$2" "$1/mnt"
    for each in proc dev; do mount --rbind "/$each" "$1/$each"; done
    root=$1
    shift 2
    exec chroot "$root" "$@"'
# The mounts are this process's own and go with it.
exec unshare --mount --propagation private bash -ec "$enter" enter "$root" "$@"
