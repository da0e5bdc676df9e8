#!/bin/sh
# Takes out of the root file system ROOT what nobody uses who runs from one. Called by
# root.sh, before the trim.sh of the one image.
#
#	embed/images/trim.sh ROOT
set -eu
cd "$1"

# Interpreters: only package scripts and GlusterFS' tools for replication between
# sites use them. Dropping Perl ends the use of dpkg in the image, whose list of
# packages stays for whoever asks what is in it.
rm -rf usr/bin/perl* usr/share/perl* usr/lib/*/perl* usr/lib/*/libperl* usr/lib/*/perl-base etc/perl
rm -rf usr/bin/python3* usr/bin/py3* usr/bin/pdb3* usr/bin/pydoc3* usr/bin/pygettext3* usr/lib/python3* usr/share/python3* usr/lib/*/libpython3* etc/python3*

# Package management and its leftovers, except the list of packages.
rm -rf usr/bin/apt* usr/lib/apt etc/apt var/lib/apt var/cache/* \
	usr/bin/dpkg* usr/sbin/dpkg* usr/share/dpkg usr/lib/dpkg etc/dpkg \
	usr/bin/debconf* usr/sbin/dpkg-* usr/share/debconf usr/share/debianutils var/lib/dpkg/info var/lib/dpkg/*-old var/lib/dpkg/triggers \
	usr/share/lintian usr/share/bug usr/share/doc usr/share/doc-base usr/share/man usr/share/info usr/share/locale usr/share/i18n \
	usr/share/zoneinfo usr/share/gcc usr/share/gdb usr/share/pixmaps usr/share/menu usr/share/bash-completion usr/share/common-licenses \
	usr/lib/systemd lib/systemd usr/lib/*/gconv etc/cron* etc/logrotate.d etc/systemd etc/init.d etc/rc*.d etc/default \
	usr/lib/udev/hwdb.d lib/udev/hwdb.d

# What every start makes anew or must not be shared.
rm -rf var/log/* run/* tmp/* etc/machine-id etc/hostname etc/resolv.conf etc/hosts root/.[a-z]* etc/ssh etc/.pwd.lock
: >etc/machine-id
: >etc/hostname
: >etc/hosts
: >etc/resolv.conf

# Folders that are mounted on. PID 1 comes from the host.
mkdir -p etc/multipaas opt/multipaas
: >opt/multipaas/init
rm -f usr/sbin/init
ln -s ../../opt/multipaas/init usr/sbin/init
