#!/usr/bin/env bash
# A compute node, in namespaces of its own (power.sh): host name, processes, /tmp.
#   node.sh NAME
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
hostname "$1"
mount -t proc proc /proc
install -d -m 1777 "/mnt/nodes/$1"
mount --bind "/mnt/nodes/$1" /tmp
mkdir -p "/var/spool/slurmd-$1"
slurmd -D 2>/dev/null & # it has a log
wait
