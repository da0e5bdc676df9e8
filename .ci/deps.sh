#!/bin/sh
# Installs the packages of .ci/packages, or of another such list, that are
# missing. Does nothing, and quickly, when none is.
#
#	.ci/deps.sh [LIST]
set -eu

missing=
for package in $(sed 's/#.*//' "$(dirname "$0")/${1:-packages}"); do
	case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
	"install ok installed") ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

echo "deps: installing$missing" >&2
[ "$(id -u)" = 0 ] || { echo "deps: run as root, or install them yourself" >&2; exit 1; }

# Packages must not start services on a machine that only builds. 101 is how
# this file says "not allowed"; one that is there already stays.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod 755 /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -qq -y --no-install-recommends $missing >/dev/null; }
# With the lists that are there; when they are too old, with new ones.
install 2>/dev/null || { apt-get update -qq && install; }
