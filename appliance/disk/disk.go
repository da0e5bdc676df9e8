// Package disk says what the host's disks and partitions are: what they are called, whether somebody uses
// them, and whether they hold something. It writes nothing.
//
// It promises to call nothing empty that has anything at its beginning or at its end, known to it or not, and
// nothing free that a mount, swap, another device or an open file has.
//
// Parties: parts that are given a disk. Any package may import it; it imports leaves only. It needs root.
package disk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

// Device is a disk or a partition.
type Device struct {
	Name      string // "/dev/sdb", as the kernel calls it now
	Serial    string // of a partition, the disk's and "-part1"; of one that tells none: Name
	SizeBytes int64
	ReadOnly  bool
	sys       string // its folder in sysfs, without links
	number    uint64
}

// ErrNone is returned for what is no disk and no partition.
var ErrNone = errors.New("is no disk and no partition of this host")

// Open looks at a device by any path that leads to it, as /dev/disk/by-id/... does.
func Open(name string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Device{}, fmt.Errorf("%s %w", name, ErrNone)
	}
	sys, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return Device{}, fmt.Errorf("%s %w", name, ErrNone)
	}
	return open(sys)
}

func open(sys string) (Device, error) {
	d := Device{Name: "/dev/" + strings.ReplaceAll(filepath.Base(sys), "!", "/"), sys: sys}
	sectors, err := strconv.ParseInt(attribute(sys, "size"), 10, 64)
	if err != nil {
		return d, fmt.Errorf("size of %s: %w", d.Name, err)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(attribute(sys, "dev"), "%d:%d", &major, &minor); err != nil {
		return d, fmt.Errorf("number of %s: %w", d.Name, err)
	}
	d.SizeBytes, d.number, d.ReadOnly = sectors*512, unix.Mkdev(major, minor), attribute(sys, "ro") == "1"
	part := attribute(sys, "partition")
	if part != "" {
		sys = filepath.Dir(sys)
	}
	for _, file := range []string{"serial", "device/serial", "device/vpd_pg80", "dm/uuid"} {
		text := attribute(sys, file)
		if strings.HasSuffix(file, "80") && len(text) > 4 {
			text = text[4:] // its head: SCSI, unit serial number
		}
		if d.Serial = clean(text); d.Serial != "" {
			if part != "" {
				d.Serial += "-part" + part
			}
			return d, nil
		}
	}
	d.Serial = d.Name
	return d, nil
}

// attribute is what a file of sysfs says, "" if there is none.
func attribute(sys, name string) string {
	f, err := os.Open(filepath.Join(sys, name))
	if err != nil {
		return ""
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, 4096))
	return strings.TrimSpace(string(data))
}

// clean keeps what people can type.
func clean(serial string) string {
	return strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f {
			return r
		}
		return -1
	}, serial)
}

// All are the host's disks and partitions of which there is something, those of loop devices included.
func All() (all []Device, err error) {
	names, err := filepath.Glob("/sys/class/block/*")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		sys, err := filepath.EvalSymlinks(name)
		if err != nil {
			continue // gone meanwhile
		}
		if d, err := open(sys); err == nil && d.SizeBytes > 0 {
			all = append(all, d)
		}
	}
	return all, nil
}

// Behind is the file of a loop device, "" for any other.
func (d Device) Behind() string { return attribute(d.sys, "loop/backing_file") }

// Node makes the file by which a device is opened, where the kernel's own /dev isn't mounted.
func (d Device) Node() error {
	err := unix.Mknod(d.Name, unix.S_IFBLK|0o600, int(d.number))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// InUse says who has a device, in whose way nobody may come; "" if nobody has.
func (d Device) InUse() (by string, err error) {
	parts, err := d.parts()
	if err != nil {
		return "", err
	}
	_, mounts, err := hostmount.Infos("/")
	if err != nil {
		return "", err
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, p := range append([]Device{d}, parts...) {
		for _, m := range mounts {
			if unix.Mkdev(uint32(m.Major), uint32(m.Minor)) == p.number {
				return p.Name + " is mounted at " + m.Mountpoint, nil
			}
		}
		for line := range strings.Lines(string(swaps)) {
			if f := strings.Fields(line); len(f) > 0 && f[0] == p.Name {
				return p.Name + " is swap", nil
			}
		}
		holders, err := os.ReadDir(filepath.Join(p.sys, "holders"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		for _, h := range holders {
			return p.Name + " is part of " + h.Name() + " (RAID, LVM or encryption)", nil
		}
	}
	f, err := d.Open(unix.O_RDONLY | unix.O_EXCL) // of a device: unless somebody has it as well (open(2))
	if errors.Is(err, unix.EBUSY) {
		return d.Name + " is used by something", nil
	}
	if err != nil {
		return "", err
	}
	return "", f.Close()
}

// parts are the partitions that the kernel sees on a disk.
func (d Device) parts() (parts []Device, err error) {
	files, err := filepath.Glob(filepath.Join(d.sys, "*", "partition"))
	for _, f := range files {
		if p, err := open(filepath.Dir(f)); err == nil {
			parts = append(parts, p)
		}
	}
	return parts, err
}

// Open opens the device itself.
func (d Device) Open(flags int) (*os.File, error) {
	if err := d.Node(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.Name, flags, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Rdev != d.number {
		return nil, errors.Join(fmt.Errorf("%s is another device than before", d.Name), err, f.Close())
	}
	return f, nil
}

// edge is how much of a device is looked at, at its beginning and at its end.
const edge = 1 << 20

// Holds says what is on a device, "" if that is nothing: all of its edges is zero.
func (d Device) Holds() (what string, err error) {
	parts, err := d.parts()
	if err != nil {
		return "", err
	}
	f, err := d.Open(unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	first, last := make([]byte, min(edge, d.SizeBytes)), make([]byte, min(edge, d.SizeBytes))
	if _, err := f.ReadAt(first, 0); err != nil {
		return "", err
	}
	if _, err := f.ReadAt(last, d.SizeBytes-int64(len(last))); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	what = signature(first, last)
	if len(parts) > 0 {
		what = fmt.Sprintf("%d partitions", len(parts))
		if len(parts) == 1 {
			what = "a partition"
		}
	}
	return what, nil
}

// signature says what edges are of.
func signature(first, last []byte) string {
	has := func(data []byte, at int, text string) bool {
		if at < 0 {
			at += len(data)
		}
		return at >= 0 && at+len(text) <= len(data) && string(data[at:at+len(text)]) == text
	}
	for _, s := range []struct {
		at         int // below 0: from the end
		text, what string
	}{
		{0, "XFSB", "an XFS file system"},
		{0x438, "\x53\xef", "an ext file system"},
		{0x10040, "_BHRfS_M", "a btrfs file system"},
		{0, "LUKS\xba\xbe", "an encrypted disk (LUKS)"},
		{512, "LABELONE", "a part of LVM"},
		{0, "LABELONE", "a part of LVM"},
		{4096, "\xfc\x4e\x2b\xa9", "a part of a RAID"},
		{0, "\xfc\x4e\x2b\xa9", "a part of a RAID"},
		{-8192, "\xfc\x4e\x2b\xa9", "a part of a RAID"},
		{-65536, "\xfc\x4e\x2b\xa9", "a part of a RAID"},
		{4086, "SWAPSPACE2", "swap"},
		{3, "NTFS    ", "an NTFS file system"},
		{3, "-FVE-FS-", "an encrypted disk (BitLocker)"},
		{82, "FAT32", "a FAT file system"},
		{54, "FAT1", "a FAT file system"},
		{0, "hsqs", "a squashfs file system"},
		{1024, "\x10\x20\xf5\xf2", "an F2FS file system"},
		{0x8001, "CD001", "an ISO 9660 file system"},
		{512, "EFI PART", "a partition table"},
		{4096, "EFI PART", "a partition table"},
		{-512, "EFI PART", "a partition table"},
		{-4096, "EFI PART", "a partition table"},
		{510, "\x55\xaa", "a partition table"},
	} {
		if has(first, s.at, s.text) && s.at >= 0 || has(last, s.at, s.text) && s.at < 0 {
			return s.what
		}
	}
	for at := 128 << 10; at+1024 <= 256<<10; at += 1024 { // ZFS: uberblocks
		if has(first, at, "\x0c\xb1\xba\x00") || has(first, at, "\x00\xba\xb1\x0c") {
			return "a part of a ZFS pool"
		}
	}
	zero := make([]byte, edge)
	if !bytes.Equal(first, zero[:len(first)]) || !bytes.Equal(last, zero[:len(last)]) {
		return "something that is not known here"
	}
	return ""
}

// XFS is the UUID of the XFS file system on a device, "" if there is none.
func (d Device) XFS() (uuid string, err error) {
	f, err := d.Open(unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	block := make([]byte, 512)
	if _, err := f.ReadAt(block, 0); err != nil {
		return "", err
	}
	if string(block[:4]) != "XFSB" { // xfs_format.h: sb_magicnum, and sb_uuid at 32
		return "", nil
	}
	text := hex.EncodeToString(block[32:48])
	return strings.Join([]string{text[:8], text[8:12], text[12:16], text[16:20], text[20:]}, "-"), nil
}

// Held says whether another device stands on this one, as a RAID does on its disks: what is on both is the other's.
func (d Device) Held() bool {
	holders, err := os.ReadDir(filepath.Join(d.sys, "holders"))
	return err == nil && len(holders) > 0
}
