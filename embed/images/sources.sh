#!/bin/sh
# Prints the apt sources of this machine that are Debian's own: the entries
# for suites of the release this machine runs, whatever mirror they name. The
# root file system is made from them, so that a site with its own mirror
# builds from that mirror. Third parties' entries stay out.
#
#	embed/images/sources.sh [RELEASE]
set -eu

release=${1:-$(. /etc/os-release && echo "$VERSION_CODENAME")}

cat /dev/null /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
	awk -v release="$release" '
	$1 == "deb" {
		rest = $0
		sub(/^deb[ \t]+(\[[^]]*\][ \t]+)?[^ \t]+[ \t]+/, "", rest)
		split(rest, word, " ")
		if (word[1] == release || index(word[1], release "-") == 1) print
	}'

# The deb822 form: entries of several lines, an empty line between two.
for file in /etc/apt/sources.list.d/*.sources; do
	[ -e "$file" ] || continue
	awk -v release="$release" '
	function flush() {
		if (ours) printf "%s\n", entry
		entry = ""; ours = 0
	}
	/^[ \t]*$/ { flush(); next }
	/^#/       { next }
	{
		entry = entry $0 "\n"
		if (tolower($1) == "suites:")
			for (i = 2; i <= NF; i++)
				if ($i == release || index($i, release "-") == 1) ours = 1
	}
	END { flush() }' "$file"
done
