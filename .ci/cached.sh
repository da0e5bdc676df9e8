#!/bin/sh
# Makes one part of the build unless nothing it is made from has changed.
#
#	.ci/cached.sh [-l] OUT [INPUT...] -- COMMAND [ARGUMENT...]
#
# OUT is a file or a folder that COMMAND makes. Inputs are files, and folders
# with all that is in them but tests. The contents of the inputs, the command
# and the version of Go make the key:
#
# - if OUT was made with this key, there is nothing to do;
# - if it was made before, in this clone or another one on this machine, it
#   comes from ${MULTIPAAS_CACHE:-~/.cache/multipaas};
# - else COMMAND makes it, and it is kept there for the next one. With -l it
#   is not kept: for what is quickly made, or differs from clone to clone.
#
# Two builds that want the same part at once wait for each other.
set -eu

store=yes
if [ "$1" = -l ]; then store=; shift; fi
out=$1
shift
name=$(echo "${out#./}" | tr / -)
state=.cache/keys/$name
cache=${MULTIPAAS_CACHE:-${HOME:-/root}/.cache/multipaas}/$name

inputs=$(mktemp)
trap 'rm -f "$inputs"' EXIT
while [ "$1" != -- ]; do
	if [ -d "$1" ]; then
		find "$1" -type f ! -name '*_test.go' ! -path '*/testdata/*' | LC_ALL=C sort
	elif [ -e "$1" ]; then
		echo "$1"
	else
		echo "$0: $out: input $1 is not there" >&2
		exit 1
	fi
	shift
done >"$inputs"
shift

key=$({ xargs -r sha256sum <"$inputs"; echo "$*"; [ -z "$store" ] || go env GOVERSION; } | sha256sum | cut -c1-32)
[ -e "$out" ] && [ "$(cat "$state" 2>/dev/null)" = "$key" ] && exit 0

# Says that OUT is what the key stands for. Not before it is: a build that was
# cut short is begun anew.
finish() {
	mkdir -p "$(dirname "$state")"
	echo "$key" >"$state"
	exit 0
}

rm -f "$state"
mkdir -p "$(dirname "$out")"
if [ -z "$store" ]; then
	echo "build: $out" >&2
	"$@"
	finish
fi

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -e "$cache/$key" ]; then
	echo "build: $out" >&2
	"$@" 9>&-
	rm -rf "$cache/new"
	cp -a "$out" "$cache/new"
	mv "$cache/new" "$cache/$key"
	touch "$cache/$key"
else
	echo "cache: $out" >&2
	rm -rf "$out.partial"
	cp -a "$cache/$key" "$out.partial"
	rm -rf "$out"
	mv "$out.partial" "$out"
	touch "$cache/$key"
fi
# The last four are kept, so that going between branches stays cheap.
ls -1t "$cache" | grep -vx lock | tail -n +5 | while read -r old; do rm -rf "${cache:?}/$old"; done
finish
