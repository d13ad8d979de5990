#!/usr/bin/env bash
# A Debian sid root with the named packages, for tests against real programs at their current versions.
#   tests/cluster/sid_root.sh llama.cpp-tools ...    prints its folder; made once, again for new packages
# Needs root and mmdebstrap. The mirror is the one that this machine's own Debian sources name.
# llama.cpp alone: 25 seconds and 175 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=work/cluster/sid
stop() { echo "sid_root.sh: $1" >&2; exit 78; }

mirror() {
    local files=()
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
        [ -f "$file" ] && files+=("$file")
    done
    # "URIs: URI" (deb822), or "deb [options] URI suite ..."; security and updates have no sid.
    sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' "${files[@]}" |
        grep -m1 '/debian/\?$'
}

[ $# -gt 0 ] || { echo "usage: tests/cluster/sid_root.sh PACKAGE..." >&2; exit 64; }
[ "$(id -u)" = 0 ] || stop "only root can make $root and enter it"
mkdir -p work/cluster
exec 9>$root.lock
flock 9 # two test runs, one root
wanted=$(printf '%s\n' "$@")
if [ -e $root.packages ]; then
    [ -z "$(grep -vxFf $root.packages <<<"$wanted")" ] && { echo $root; exit; }
    wanted=$(sort -u $root.packages - <<<"$wanted")
fi
command -v mmdebstrap >/dev/null || stop "mmdebstrap is needed: apt-get install mmdebstrap"
uri=$(mirror) || stop "the apt sources of this machine name no Debian mirror"

rm -rf $root $root.packages
# Sid's index may be a copy of another day: its date is not looked at, its signature is.
mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="$(paste -sd, <<<"$wanted")" sid $root "deb $uri sid main" >&2 ||
    stop "mmdebstrap could not make $root"
echo "$wanted" >$root.packages # last: only a whole root counts
echo $root
