#!/bin/sh
# Makes the disk of a plain Debian server for virtual machines, from the Debian
# packages named in the file `packages`: DIR/root.qcow2, and beside it the kernel
# and initial RAM disk that are on it, for QEMU starts them without a boot loader.
# Nothing of ours is on it: that is on a second disk, see the package vm.
#
#	testing/vm/root/build.sh DIR
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
release=bookworm

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/../../../embed/images/sources.sh" "$release" >"$work/debian.sources"
[ -s "$work/debian.sources" ] || { echo "$0: this machine has no apt source of Debian $release" >&2; exit 1; }
packages=$(sed -e 's/#.*//' "$here/packages" | tr -s ' \n' ',,' | sed -e 's/^,//' -e 's/,$//')

# The initial RAM disk holds the drivers of the root disk only: its size is
# boot time.
mkdir -p "$work/root"
mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" &&
		printf "virtio_pci\nvirtio_blk\next4\n" >"$1/etc/initramfs-tools/modules" &&
		printf "MODULES=list\nCOMPRESS=lz4\n" >"$1/etc/initramfs-tools/conf.d/vm"' \
	--customize-hook="$here/customize.sh \"\$1\"" \
	"$release" "$work/root" "$work/debian.sources"

rm -rf "$1"
mkdir -p "$1"
cp "$work"/root/boot/vmlinuz-* "$1/vmlinuz"
cp "$work"/root/boot/initrd.img-* "$1/initrd.img"
mke2fs -q -t ext4 -L root -E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 -d "$work/root" "$work/root.img" 24G
qemu-img convert -f raw -O qcow2 "$work/root.img" "$1/root.qcow2"
