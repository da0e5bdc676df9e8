#!/bin/sh
# Takes out of the root file system ROOT what a machine never uses, and adds
# the folders that things are mounted on: nothing is made in a running machine
# only to have a place to mount. Called by build.sh.
#
#	embed/images/machine/trim.sh ROOT
set -eu
cd "$1"

# Interpreters: only package scripts and GlusterFS' server side tools use
# them. Dropping Perl ends the use of dpkg in the image, whose list of
# packages stays for whoever asks what is in it.
rm -rf usr/bin/perl* usr/share/perl* usr/lib/*/perl* usr/lib/*/perl-base etc/perl
rm -rf usr/bin/python3* usr/bin/py3* usr/bin/pdb3* usr/bin/pydoc3* usr/bin/pygettext3* usr/lib/python3* usr/share/python3* usr/lib/*/libpython3* etc/python3*

# GlusterFS: the daemons and what only they load. The client needs its
# translators, so those stay.
rm -rf usr/lib/*/glusterfs/gsyncd usr/lib/*/glusterfs/python usr/share/glusterfs usr/libexec/glusterfs \
	usr/sbin/glusterd usr/sbin/gluster-* usr/lib/ocf var/lib/glusterd/hooks

# ICU: 36 MB that only xfs_scrub wants, which needs a kernel that scrubs.
rm -rf usr/lib/*/libicu* usr/sbin/xfs_scrub* usr/share/icu

# Package management and its leftovers, except the list of packages.
rm -rf usr/bin/apt* usr/lib/apt etc/apt var/lib/apt var/cache/* \
	usr/bin/dpkg* usr/sbin/dpkg* usr/share/dpkg usr/lib/dpkg etc/dpkg \
	usr/bin/debconf* usr/sbin/dpkg-* usr/share/debconf usr/share/debianutils var/lib/dpkg/info var/lib/dpkg/*-old var/lib/dpkg/triggers \
	usr/share/lintian usr/share/bug usr/share/doc usr/share/doc-base usr/share/man usr/share/info usr/share/locale usr/share/i18n \
	usr/share/zoneinfo usr/share/gcc usr/share/gdb usr/share/pixmaps usr/share/menu usr/share/bash-completion usr/share/common-licenses \
	usr/lib/systemd lib/systemd usr/lib/*/gconv etc/cron* etc/logrotate.d etc/systemd etc/init.d etc/rc*.d etc/default \
	usr/lib/udev/hwdb.d lib/udev/hwdb.d

# What every start makes anew or must not be shared between machines.
rm -rf var/log/* run/* tmp/* etc/machine-id etc/hostname etc/resolv.conf etc/hosts root/.[a-z]* etc/ssh etc/.pwd.lock
: >etc/machine-id
: >etc/hostname
: >etc/hosts
: >etc/resolv.conf

# Folders that are mounted on or written to. PID 1 comes from the host.
mkdir -p etc/multipaas etc/cni/net.d opt/multipaas opt/cni/bin usr/libexec/kubernetes/kubelet-plugins/volume/exec \
	var/lib/kubelet/plugins var/lib/containerd var/lib/cni var/log/pods var/log/containers lib/modules
: >opt/multipaas/init
rm -f usr/sbin/init
ln -s ../../opt/multipaas/init usr/sbin/init
