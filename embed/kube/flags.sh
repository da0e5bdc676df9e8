#!/bin/sh
# flags.sh prints the linker's flags for anything of Kubernetes: stripped, and
# knowing which Kubernetes it is. Built from the module alone, it calls itself
# v0.0.0-master, and checks of version skew fail.
set -eu
version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
minor=${minor%%.*}
date=$(go list -m -f '{{if .Time}}{{.Time.Format "2006-01-02T15:04:05Z"}}{{end}}' k8s.io/kubernetes)
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	flags="$flags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
	flags="$flags -X $package.gitTreeState=clean -X $package.gitCommit=${version#v} -X $package.buildDate=${date:-1970-01-01T00:00:00Z}"
done
echo "$flags"
