#!/bin/sh
# Runs make targets one after the other and ends with a table of how long each took.
# All of them run, also after one has failed, so that one run tells everything;
# the exit status says whether all were good. What each printed is in dist/logs; of
# those that failed, what tells why comes once more at the end, where it is found.
#
#	.ci/parts.sh TARGET...
set -u

table=$(mktemp)
status=$(mktemp)
trap 'rm -f "$table" "$status"' EXIT
rm -rf dist/counts dist/logs
mkdir -p dist/logs

# run is a make target whose output goes to its log too.
run() {
	{
		${MAKE:-make} --no-print-directory "$1" 2>&1
		echo $? >"$status"
	} | tee "dist/logs/$1"
	return "$(cat "$status")"
}

# why prints the lines of a part's log that tell what failed: of Go's tests, or the last ones.
why() {
	grep -E '^ *--- FAIL|^ *[A-Za-z0-9_]+_test\.go:[0-9]+: |^panic: |DATA RACE|^FAIL[[:space:]]' "dist/logs/$1" >"$status" ||
		tail -n 20 "dist/logs/$1" >"$status"
	tail -n 40 "$status" | cut -c -400
}

begin=$(date +%s)
failed=
for part in "$@"; do
	printf '\n=== %s\n' "$part"
	from=$(date +%s)
	if run "$part"; then result=ok; else
		result=FAILED
		failed="$failed $part"
		printf '=== %s FAILED\n' "$part"
	fi
	printf '%-14s %-6s %5d s\n' "$part" "$result" $(($(date +%s) - from)) >>"$table"
done
for part in $failed; do
	printf '\n=== why %s failed\n' "$part"
	why "$part"
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
