#!/usr/bin/env bash
# Inside the sid root: switch a compute node on, or pull its plug: its processes are gone, and tell nobody.
#   power.sh on|off NAME
set -euo pipefail
case $1 in
on)
    unshare --mount --pid --uts --fork --kill-child /mnt/inside/node.sh "$2" </dev/null >/dev/null 2>&1 &
    echo $! >"/run/$2.pid"
    ;;
off) kill -9 "$(cat "/run/$2.pid")" ;;
esac
