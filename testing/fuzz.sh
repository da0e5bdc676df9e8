#!/bin/sh
# Runs every fuzz target of the main module, one after another: fuzz.sh TIME
# (10m, 30s, 1000x). It finds them itself. A crash is kept by Go below
# testdata/fuzz of its package; the others are run all the same, and the end is a failure.
set -eu
cd "$(dirname "$0")/.."
time=${1:-10m}
ran=0 failed=
for file in $(git ls-files '*_test.go' | grep -v '^embed/kube/\|^embed/runtime/\|^testing/lint/'); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(f \*testing\.F.*/\1/p' "$file"); do
		echo "== ./$(dirname "$file") $target"
		ran=$((ran + 1))
		# A smaller form of each interesting input is worth a second, not a minute.
		go test -run=NONE -fuzz="^$target\$" -fuzztime="$time" -fuzzminimizetime=1s "./$(dirname "$file")" || failed="$failed $target"
	done
done
[ "$ran" -gt 0 ] || { echo "fuzz: no target was found"; exit 1; }
[ -z "$failed" ] || { echo "fuzz: $ran targets ran $time each, failed:$failed"; exit 1; }
echo "fuzz: $ran targets ran $time each, no failure"
