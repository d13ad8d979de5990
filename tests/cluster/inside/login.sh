#!/usr/bin/env bash
# Inside the sid root: the login node, with munge and Slurm's controller. It is the first process of the
# cluster: when it ends, every other ends with it.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
hostname login
# The network of the nodes; there is no way out of it.
ip link set lo up
ip link add nodes type bridge
ip link set nodes up
{
    echo 127.0.0.1 localhost
    for n in login:1 n1:11 n2:12 n3:13 n4:14 n5:15; do
        ip addr add "192.0.2.${n#*:}/24" dev nodes
        echo "192.0.2.${n#*:} ${n%:*}"
    done
} >/etc/hosts
# Who asks for an outside name is counted as well: no route leads there (OutNoRoutes in /proc/net/snmp).
echo nameserver 198.51.100.53 >/etc/resolv.conf
install -d -o user -g user /mnt/home
install -d -m 1777 /mnt/tmp
install -d /mnt/log
mount --bind /mnt/home /home/user
mount --bind /mnt/tmp /tmp
cp /mnt/inside/*.conf /etc/slurm
for n in 0 1; do mknod /dev/gpu$n c 1 3; done # like /dev/null; gres.conf names them

install -d -o munge -g munge /run/munge
setpriv --reuid munge --regid munge --clear-groups munged
mkdir -p /var/lib/slurm/controller
slurmctld
for n in n1 n2 n3 n4 n5; do /mnt/inside/power.sh on $n; done
touch /mnt/ready
sleep infinity &
wait # bash also reaps what others leave behind
