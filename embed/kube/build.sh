#!/bin/sh
# build.sh OUT builds command kube into OUT: static and stripped.
#
# No -trimpath: it is part of the key of every package in Go's build cache, so
# the 17 CPU minutes of building Kubernetes would be spent twice where tests and
# the linter build without.
set -eu
out=$(realpath -m "$1")
cd "$(dirname "$0")"
flags=$(sh ./flags.sh)
mkdir -p "$(dirname "$out")"
CGO_ENABLED=0 go build -ldflags "$flags" -o "$out.tmp" .
mv "$out.tmp" "$out"
