#!/bin/sh
# build.sh OUT builds command kube into OUT: static, stripped, and knowing which
# Kubernetes it is. Built from the module alone, Kubernetes calls itself
# v0.0.0-master, and checks of version skew fail.
#
# No -trimpath: it is part of the key of every package in Go's build cache, so
# the 17 CPU minutes of building Kubernetes would be spent twice where tests and
# the linter build without.
set -eu
out=$(realpath -m "$1")
cd "$(dirname "$0")"
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
minor=${minor%%.*}
date=$(go list -m -f '{{if .Time}}{{.Time.Format "2006-01-02T15:04:05Z"}}{{end}}' k8s.io/kubernetes)
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	flags="$flags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
	flags="$flags -X $package.gitTreeState=clean -X $package.gitCommit=${version#v} -X $package.buildDate=${date:-1970-01-01T00:00:00Z}"
done
mkdir -p "$(dirname "$out")"
CGO_ENABLED=0 nice go build -ldflags "$flags" -o "$out.tmp" .
mv "$out.tmp" "$out"
