#!/bin/sh
# Builds what a machine runs - container runtime, CNI plugins, cluster DNS -
# as static, stripped executables, all from this folder's go.mod.
#
#	embed/runtime/build.sh OUT GROUP...
#
# The groups are containers (runc, containerd, its shim and ctr), cni and dns.
# -trimpath is left out on purpose: it would keep these builds from sharing
# compiled packages with an ordinary `go build`.
set -eu

[ $# -ge 2 ] || { echo "usage: $0 OUT containers|cni|dns..." >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
shift

version() { go list -m -f '{{.Version}}' "$1"; }

# build NAME PACKAGE LDFLAGS [GO BUILD FLAGS]: static, stripped, put in place
# in one step, so that a build cut short leaves no half of an executable.
build() {
	name=$1 package=$2 ldflags=$3
	shift 3
	echo "runtime: $name" >&2
	mkdir -p "$(dirname "$out/$name")"
	go build -buildvcs=false -ldflags "-s -w $ldflags" "$@" -o "$out/$name.partial" "$package"
	mv "$out/$name.partial" "$out/$name"
}

containers() {
	# runc's C part needs a C library, so it is linked statically by the C linker;
	# netgo and osusergo keep glibc's name services, which can't be, out of it.
	CGO_ENABLED=1 build runc github.com/opencontainers/runc \
		"-linkmode external -extldflags -static" -tags "seccomp netgo osusergo urfave_cli_no_docs"

	containerd=github.com/containerd/containerd/v2
	v=$containerd/version
	flags="-X $v.Package=$containerd -X $v.Version=$(version $containerd) -X $v.Revision=multipaas"
	for command in containerd containerd-shim-runc-v2 ctr; do
		CGO_ENABLED=0 build $command $containerd/cmd/$command "$flags"
	done
}

cni() {
	plugins=github.com/containernetworking/plugins
	flags="-X $plugins/pkg/utils/buildversion.BuildVersion=$(version $plugins)"
	for plugin in main/ptp main/loopback meta/portmap ipam/host-local; do
		CGO_ENABLED=0 build "cni/${plugin#*/}" $plugins/plugins/$plugin "$flags"
	done
	CGO_ENABLED=0 build cni/policy ./policy ""
}

dns() {
	CGO_ENABLED=0 build coredns ./dns "-X github.com/coredns/coredns/coremain.GitCommit=multipaas"
}

for group in "$@"; do
	case $group in
	containers | cni | dns) $group ;;
	*) echo "$0: $group: have containers, cni, dns" >&2; exit 2 ;;
	esac
done
