#!/bin/sh
# Finishes the root file system ROOT. Called by build.sh.
#
#	testing/vm/root/customize.sh ROOT
set -eu
cd "$1"

: >etc/machine-id # each machine makes its own at its first start
echo 'LABEL=root / ext4 errors=remount-ro 0 1' >etc/fstab
echo 'LABEL=multipaas /opt/multipaas ext4 ro,x-systemd.device-timeout=infinity 0 0' >>etc/fstab # emulated, it may take long
mkdir -p opt/multipaas

# The command and the units are on the second disk.
ln -s /opt/multipaas/multipaas usr/local/bin/multipaas
ln -s /opt/multipaas/multipaas usr/local/bin/mp

# Name and address come from the kernel's command line.
rm -f etc/hostname
mkdir -p etc/systemd/system/multi-user.target.wants etc/systemd/system/sysinit.target.wants
ln -s /lib/systemd/system/systemd-networkd.service etc/systemd/system/multi-user.target.wants/
ln -s /lib/systemd/system/systemd-network-generator.service etc/systemd/system/sysinit.target.wants/


