#!/bin/sh
# peers.sh DIR builds upstream's own commands into DIR, each a process of its
# own, from the same modules and with the same flags as command kube: what
# testing/bench measures ours against. They are no part of the payload.
set -eu
out=$(realpath -m "$1")
cd "$(dirname "$0")"
flags=$(sh ./flags.sh)
mkdir -p "$out.tmp"
CGO_ENABLED=0 go build -ldflags "$flags" -o "$out.tmp/" \
	k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-scheduler
CGO_ENABLED=0 go build -ldflags "-s -w" -o "$out.tmp/etcd" go.etcd.io/etcd/server/v3
rm -rf "$out"
mv "$out.tmp" "$out"
