#!/bin/sh
# Builds what a machine runs - container runtime, CNI plugins, cluster DNS -
# as static, stripped executables, all from this folder's go.mod.
#
#	embed/runtime/build.sh OUT
#
# runc comes first and containerd next: without them no machine can be tried,
# the rest may follow. -trimpath is left out on purpose: it would keep these
# builds from sharing compiled packages with an ordinary `go build`.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 OUT" >&2; exit 2; }
mkdir -p "$1/cni"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"

version() { go list -m -f '{{.Version}}' "$1"; }

# build NAME PACKAGE LDFLAGS [GO BUILD FLAGS]: static, stripped, put in place
# in one step, so that a build cut short leaves no half of an executable.
build() {
	name=$1 package=$2 ldflags=$3
	shift 3
	echo "runtime: $name" >&2
	go build -buildvcs=false -ldflags "-s -w $ldflags" "$@" -o "$out/$name.partial" "$package"
	mv "$out/$name.partial" "$out/$name"
}

# runc's C part needs a C library, so it is linked statically by the C linker;
# netgo and osusergo keep glibc's name services, which can't be, out of it.
CGO_ENABLED=1 build runc github.com/opencontainers/runc \
	"-linkmode external -extldflags -static" -tags "seccomp netgo osusergo urfave_cli_no_docs"

export CGO_ENABLED=0
containerd=github.com/containerd/containerd/v2
v=$containerd/version
containerd_version="-X $v.Package=$containerd -X $v.Version=$(version $containerd) -X $v.Revision=multipaas"
build containerd $containerd/cmd/containerd "$containerd_version"
build containerd-shim-runc-v2 $containerd/cmd/containerd-shim-runc-v2 "$containerd_version"

cni=github.com/containernetworking/plugins
cni_version="-X $cni/pkg/utils/buildversion.BuildVersion=$(version $cni)"
build cni/bridge $cni/plugins/main/bridge "$cni_version"
build cni/host-local $cni/plugins/ipam/host-local "$cni_version"
build cni/loopback $cni/plugins/main/loopback "$cni_version"
build cni/portmap $cni/plugins/meta/portmap "$cni_version"

build ctr $containerd/cmd/ctr "$containerd_version"
build coredns github.com/coredns/coredns "-X github.com/coredns/coredns/coremain.GitCommit=multipaas"
