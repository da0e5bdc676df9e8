#!/bin/sh
# Takes out of the root file system ROOT what only a machine never uses, and adds the
# folders that things are mounted on: nothing is made in a running machine only to
# have a place to mount. Called by root.sh.
#
#	embed/images/machine/trim.sh ROOT
set -eu
cd "$1"

# ICU: 36 MB that only xfs_scrub wants, which needs a kernel that scrubs.
rm -rf usr/lib/*/libicu* usr/sbin/xfs_scrub* usr/share/icu

mkdir -p etc/cni/net.d opt/cni/bin usr/libexec/kubernetes/kubelet-plugins/volume/exec \
	var/lib/kubelet/plugins var/lib/containerd var/lib/cni var/log/pods var/log/containers lib/modules
