#!/bin/sh
# Makes a root file system as a tar archive, without a container engine: from the
# Debian packages named in FOLDER/packages, less what trim.sh and FOLDER/trim.sh take
# away.
#
#	embed/images/root.sh FOLDER OUT.tar
#
# The same package versions give the same bytes: mmdebstrap sorts and clamps
# times to SOURCE_DATE_EPOCH, and trim.sh takes away what differs by itself.
# mmdebstrap's own clean-up is skipped because it expects apt to be there still.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 FOLDER OUT.tar" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "$1" && pwd)
release=bookworm
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/sources.sh" "$release" >"$work/debian.sources"
[ -s "$work/debian.sources" ] || { echo "$0: this machine has no apt source of Debian $release" >&2; exit 1; }
packages=$(sed -e 's/#.*//' "$folder/packages" | tr -s ' \n' ',,' | sed -e 's/^,//' -e 's/,$//')

mmdebstrap --quiet --mode=root --variant=essential --skip=cleanup --format=tar \
	--include="$packages" \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	--dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook="$here/trim.sh \"\$1\"" \
	--customize-hook="$folder/trim.sh \"\$1\"" \
	"$release" "$2.partial" "$work/debian.sources"
mv "$2.partial" "$2"
