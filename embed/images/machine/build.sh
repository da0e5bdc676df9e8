#!/bin/sh
# Makes the root file system of a machine as a tar archive, from the Debian
# packages named in the file `packages`, without a container engine.
#
#	embed/images/machine/build.sh OUT.tar
#
# The same package versions give the same bytes: mmdebstrap sorts and clamps
# times to SOURCE_DATE_EPOCH, and trim.sh takes away what differs by itself.
# mmdebstrap's own clean-up is skipped because it expects apt to be there still.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 OUT.tar" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
release=bookworm
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/sources.sh" "$release" >"$work/debian.sources"
[ -s "$work/debian.sources" ] || { echo "$0: this machine has no apt source of Debian $release" >&2; exit 1; }
packages=$(sed -e 's/#.*//' "$here/packages" | tr -s ' \n' ',,' | sed -e 's/^,//' -e 's/,$//')

mmdebstrap --quiet --mode=root --variant=essential --skip=cleanup --format=tar \
	--include="$packages" \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook="$here/trim.sh \"\$1\"" \
	"$release" "$1.partial" "$work/debian.sources"
mv "$1.partial" "$1"
