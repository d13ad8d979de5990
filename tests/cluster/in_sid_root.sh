#!/usr/bin/env bash
# Become a command inside the sid root (same process id), with a folder of outside as its /mnt.
#   tests/cluster/in_sid_root.sh FOLDER COMMAND [ARGUMENT...]
# What the command writes elsewhere goes with it: the root itself is only read.
set -euo pipefail
root=$("$(dirname "$0")/root.sh" sid)
# shellcheck disable=SC2016 # expanded by the shell that it is given to
enter='
    root=$1 folder=$(realpath "$2")
    shift 2
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay overlay -o "lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root
    cd /mnt/root
    mount --rbind "$folder" mnt
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/shm dev/pts
    mount -t tmpfs tmpfs dev/shm
    mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    for each in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
        IFS=: read -r name major minor <<<"$each"
        mknod -m 666 "dev/$name" c "$major" "$minor"
    done
    # Not chroot: in one, Apptainer may not make a user namespace.
    pivot_root . run
    umount -l /run
    mount -t tmpfs -o mode=755 tmpfs /run
    exec "$@"'
# The mounts are this process's own and go with it.
exec unshare --mount --propagation private bash -ec "$enter" enter "$root" "$@"
