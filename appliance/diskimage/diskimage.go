// Package diskimage keeps a file system in a file: the one limit on disk space that
// holds whatever is in it, and in how many files. Quotas were rejected: not every kernel
// has them, and they are soft on some.
//
// An image is sparse, mounted by a loop device for all of the host, and gives back what
// is deleted in it. It belongs to whoever names its file: two may not use one image.
// A device frees itself once it is closed and unmounted, so whoever is killed leaks none.
//
// Parties: parts that give tenants disks. Any package may import it; it imports leaves only.
package diskimage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/rootfs"
)

// MinXFS is the size in bytes of the smallest file system that mkfs.xfs makes. Smaller
// images have ext4, and can't grow.
const MinXFS = 300 << 20

// Image is a file with a file system. The zero value is none.
type Image struct {
	File  string // absolute, as is Mount
	Mount string // the folder where it is mounted
	// Reflink has files in it share blocks (cp --reflink), which costs each write a look
	// whether its blocks are shared. It is read when the image is made.
	Reflink bool
	// Encryption is nil for an image that isn't encrypted. Its file system has MinXFS bytes at least.
	Encryption *Encryption
}

// Ensure makes the image with so many bytes if there is none, and mounts it. With 0 bytes it
// must be there, and fs.ErrNotExist is returned otherwise: so no empty image takes the place of
// one whose disk isn't mounted. One that is there keeps its size. root is a Debian's root file
// system with mkfs.xfs in it, for small images with mkfs.ext4. ErrNoEncryption: see Encryption. It blocks for some tenths of a
// second, and up to ten seconds when a process that was killed has the image still.
func (d Image) Ensure(ctx context.Context, sizeBytes int64, root string) error {
	mounted, err := hostmount.Has(d.Mount)
	if err != nil || mounted {
		return err
	}
	if d.Encryption != nil { // a process that was killed may have left the device
		if err := cmp.Or(CanEncrypt(), Release(d.Encryption.Name)); err != nil {
			return err
		}
	}
	if _, err := os.Stat(d.File); errors.Is(err, fs.ErrNotExist) && sizeBytes > 0 {
		if err := d.format(ctx, sizeBytes, root); err != nil {
			return fmt.Errorf("make disk %s: %w", d.File, err)
		}
	} else if err != nil {
		return err
	}
	// Mounted twice, a file system is lost.
	if err := AwaitFree(ctx, d.File); err != nil {
		return err
	}
	if err := os.MkdirAll(d.Mount, 0o700); err != nil {
		return err
	}
	err = d.mount(ctx, true)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		// Since it was cloned its blocks are shared, and it is written by whole blocks of the file
		// system it stands on: too large ones for an image with sectors of 512 bytes.
		err = d.mount(ctx, false)
	}
	if err != nil {
		return fmt.Errorf("mount disk %s: %w", d.File, err)
	}
	return nil
}

func (d Image) mount(ctx context.Context, direct bool) (err error) {
	// There too: by the path at which the device's file was opened others know it, and a
	// path in our own mounts ends with us.
	var loop *os.File
	err = hostmount.Do(func() (err error) { loop, err = openHidden(d.File, direct); return err })
	if err != nil {
		return err
	}
	defer loop.Close() // the mount keeps it
	failpoint.Reach("disk/loop-attached")
	device := loop.Name()
	if d.Encryption != nil {
		if device, err = d.unlock(ctx, device); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, Release(d.Encryption.Name)) }() // so is this
	}
	for _, kind := range []struct{ name, options string }{
		{"xfs", "nouuid,discard"}, // what is deleted inside is free outside; copies have one UUID
		{"ext4", "discard"},
	} {
		err = hostmount.Do(func() error { return unix.Mount(device, d.Mount, kind.name, unix.MS_NODEV, kind.options) })
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINVAL) { // not this kind
			break
		}
	}
	return err
}

// format makes the image under another name, so that one with the right name
// has a file system.
func (d Image) format(ctx context.Context, sizeBytes int64, root string) error {
	if err := os.MkdirAll(filepath.Dir(d.File), 0o700); err != nil {
		return err
	}
	partial := d.File + Partial
	// Removed, not emptied: what a killed process had begun may still be written to.
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(d.fileBytes(sizeBytes)), f.Close()); err != nil {
		return err
	}
	failpoint.Reach("disk/file-made")
	if err := d.makeFS(ctx, sizeBytes, root, partial); err != nil {
		return errors.Join(err, os.Remove(partial))
	}
	failpoint.Reach("disk/formatted")
	if err := os.Rename(partial, d.File); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(d.File))
}

// makeFS makes a file system in a file.
func (d Image) makeFS(ctx context.Context, sizeBytes int64, root, file string) (err error) {
	at := file
	if d.Encryption != nil {
		if sizeBytes < MinXFS {
			return fmt.Errorf("%d bytes: an encrypted one has %d at least", sizeBytes, int64(MinXFS))
		}
		if err := d.seal(ctx, file); err != nil {
			return err
		}
		var loop *os.File
		if err := hostmount.Do(func() (err error) { loop, err = openHidden(file, true); return err }); err != nil {
			return err
		}
		defer loop.Close()
		if at, err = d.unlock(ctx, loop.Name()); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, Release(d.Encryption.Name)) }()
	}
	if sizeBytes >= MinXFS {
		reflink := "reflink=0"
		if d.Reflink {
			reflink = "reflink=1"
		}
		// Sectors of 4 KiB: files that share blocks are written by whole blocks, and so is the
		// device of a clone, on which XFS doesn't mount with smaller ones (Linux 6.18).
		return rootfs.Run(ctx, root, nil, "usr/sbin/mkfs.xfs", "-q", "-f", "-s", "size=4096", "-m", reflink, at)
	}
	return rootfs.Run(ctx, root, nil, "usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0", at)
}

// Partial is what the name of a file ends with that is not yet an image.
const Partial = ".partial"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "disk/file-made", In: failpoint.Node, Cuts: "the disk's file is there, without a file system"},
		{Name: "disk/formatted", In: failpoint.Node, Cuts: "the disk has a file system, but not its name"},
		{Name: "disk/file-grown", In: failpoint.Node, Cuts: "the disk's file has its new size, its device and file system have not"},
		{Name: "disk/copy-frozen", In: failpoint.Node, Cuts: "a disk is half copied, and its file system frozen"},
		{Name: "disk/loop-attached", In: failpoint.Node, Cuts: "the loop device is there, not mounted"},
	}
}

// FormatDevice makes an XFS file system on a disk or partition, whatever is there, with this UUID. Files in it can share
// blocks. It blocks for seconds.
func FormatDevice(ctx context.Context, device, uuid, root string) error {
	return rootfs.Run(ctx, root, nil, "usr/sbin/mkfs.xfs", "-q", "-f", "-K", "-m", "reflink=1,uuid="+uuid, device)
}
