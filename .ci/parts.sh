#!/bin/sh
# Runs make targets one after the other and ends with a table of how long each took.
# All of them run, also after one has failed, so that one run tells everything;
# the exit status says whether all were good.
#
#	.ci/parts.sh TARGET...
set -u

table=$(mktemp)
trap 'rm -f "$table"' EXIT
rm -rf dist/counts
begin=$(date +%s)
failed=
for part in "$@"; do
	printf '\n=== %s\n' "$part"
	from=$(date +%s)
	if ${MAKE:-make} --no-print-directory "$part"; then result=ok; else
		result=FAILED
		failed="$failed $part"
		printf '=== %s FAILED\n' "$part"
	fi
	printf '%-14s %-6s %5d s\n' "$part" "$result" $(($(date +%s) - from)) >>"$table"
done
printf '\n=== how long each part took\n'
cat "$table"
printf '%-14s %-6s %5d s\n' all "$([ -z "$failed" ] && echo ok || echo FAILED)" $(($(date +%s) - begin))
counts=$(cat dist/counts/* 2>/dev/null | paste -s -d ';' | sed 's/;/; /g')
[ -z "$counts" ] || printf '\n%s\n' "$counts"
if [ -n "$failed" ]; then
	printf '\nFAILED:%s\n' "$failed"
	exit 1
fi
