#!/usr/bin/env bash
# Inside the sid root, in namespaces of its own: a compute node, with its own /tmp. Killing this process
# is pulling the node's plug.
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
