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

mkdir -p var/lib/glusterd var/log/glusterfs var/lib/multipaas
