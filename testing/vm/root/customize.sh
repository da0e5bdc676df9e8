#!/bin/sh
# Finishes the root file system ROOT. Called by build.sh.
#
#	testing/vm/root/customize.sh ROOT
set -eu
cd "$1"

: >etc/machine-id # each machine makes its own at its first start
echo 'LABEL=root / ext4 errors=remount-ro 0 1' >etc/fstab
mkdir -p opt/multipaas

# The command and the units are on the second disk, which is plugged in and
# written to etc/fstab later.
ln -s /opt/multipaas/multipaas usr/local/bin/multipaas
ln -s /opt/multipaas/multipaas usr/local/bin/mp

# Name and address come from the kernel's command line.
rm -f etc/hostname
mkdir -p etc/systemd/system/multi-user.target.wants etc/systemd/system/sysinit.target.wants
ln -s /lib/systemd/system/systemd-networkd.service etc/systemd/system/multi-user.target.wants/
ln -s /lib/systemd/system/systemd-network-generator.service etc/systemd/system/sysinit.target.wants/

# What Debian does once a day or a week (looking for updates, say) it would do
# whenever the clock is set, which tests do.
rm -f etc/systemd/system/timers.target.wants/*

# Emulated on a machine that is busy, the serial port has been seen to take more
# than the 90 seconds that systemd waits for devices. Our units say their own.
mkdir -p etc/systemd/system.conf.d
cat >etc/systemd/system.conf.d/slow.conf <<'EOF'
[Manager]
DefaultTimeoutStartSec=30min
DefaultDeviceTimeoutSec=30min
EOF
