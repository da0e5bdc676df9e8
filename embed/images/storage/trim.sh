#!/bin/sh
# Takes out of the root file system ROOT what a host's storage never uses. Called by
# root.sh.
#
#	embed/images/storage/trim.sh ROOT
set -eu
cd "$1"

# Replication between sites, which is Python. With gsyncd there, but no Python,
# glusterd runs it many times at its start, for seconds; without it, it starts in 0.2 s.
# The hooks are for SELinux, Samba and NFS.
rm -rf usr/lib/*/glusterfs/gsyncd usr/lib/*/glusterfs/python usr/share/glusterfs usr/libexec/glusterfs \
	usr/sbin/gluster-* usr/lib/ocf var/lib/glusterd/hooks var/lib/glusterd/glusterd.info
rm -rf usr/sbin/xfs_scrub*

# smartctl alone is run. Its database names attributes that makers number as they like: none of those is looked at.
rm -rf usr/sbin/smartd usr/sbin/update-smart-drivedb usr/share/smartmontools var/lib/smartmontools etc/smartmontools etc/smartd.conf

# The root is mounted read-only: what things are mounted on is here.
mkdir -p var/lib/glusterd var/log/glusterfs var/lib/multipaas etc/multipaas bricks opt/multipaas
: >opt/multipaas/init

# Without localhost nothing is ever healed. Nobody else has a name: what glusterd has once called
# by one, it looks up for ever.
echo 127.0.0.1 localhost >etc/hosts
sed -i 's/^hosts:.*/hosts: files/' etc/nsswitch.conf

# All speak TLS, also to glusterd itself, for which this file is the switch. Certificate and key are
# one file, which is replaced at once.
: >var/lib/glusterd/secure-access
ln -s /etc/multipaas/identity.pem usr/lib/ssl/glusterfs.pem
ln -s /etc/multipaas/identity.pem usr/lib/ssl/glusterfs.key
ln -s /etc/multipaas/ca.pem usr/lib/ssl/glusterfs.ca
