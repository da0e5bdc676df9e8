#!/bin/sh
# Finds lines over 130 columns in Go files, tests and rows of tables aside. Those
# that were there before this was are counted in .ci/lines, by file: the numbers may
# only become smaller. A file that was renamed takes its number along.
#
#	.ci/lines.sh      fails if a file has more than it may
#	.ci/lines.sh -u   writes the numbers down, where they are smaller
set -eu
cd "$(dirname "$0")/.."

list=.ci/lines
now=$(mktemp)
trap 'rm -f "$now"' EXIT
long() { awk '/^[\t ]*\{/ { next } length($0) > 130 { print FILENAME ":" FNR ": " length($0) " columns" }' "$@"; }

git ls-files -z '*.go' ':!*_test.go' | xargs -0 awk '
	/^[\t ]*\{/ { next }
	length($0) > 130 { n[FILENAME]++ }
	END { for (f in n) print n[f], f }' | LC_ALL=C sort -k2 >"$now"

if [ "${1-}" = -u ]; then
	awk 'FNR == NR { may[$2] = $1; next } $2 in may { print ($1 < may[$2] ? $1 : may[$2]), $2 }' "$list" "$now" >"$list.new"
	mv "$list.new" "$list"
	exit 0
fi
status=0
for file in $(awk 'FNR == NR { may[$2] = $1; next } $1 > may[$2] + 0 { print $2 }' "$list" "$now"); do
	long "$file"
	status=1
done
if [ $status = 1 ]; then
	echo "lines over 130 columns: wrap those that are new; some may be in .ci/lines"
fi
fewer=$(awk 'FNR == NR { has[$2] = $1; next } has[$2] + 0 < $1 { print $2 }' "$now" "$list")
if [ -n "$fewer" ]; then
	echo "fewer long lines than .ci/lines says, good: .ci/lines.sh -u holds it, in" $fewer
fi
exit $status
