package diskimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/rootfs"
)

// Encryption has an image's file system stand on LUKS2: what is in the file can't be read without the
// key, by whatever way it left the host. Which blocks are used can be seen: they are given back.
type Encryption struct {
	// Name is the mapped device's, of which no two on a host are the same: 127 letters, digits and
	// dashes at most.
	Name string
	// Key is asked for when the image is made, and when it is mounted. It has at least 32 random bytes,
	// and is nowhere kept.
	Key func(ctx context.Context) ([]byte, error)
	// Tools is the root file system of a Debian with cryptsetup in it.
	Tools func(ctx context.Context) (root string, err error)
}

// HeaderBytes is what an encrypted image's file has besides its file system: two descriptions of 16 KiB,
// and room for some keyslots of 252 KiB.
const HeaderBytes = 1 << 20

// ErrNoEncryption is returned where the kernel can't encrypt disks.
var ErrNoEncryption = errors.New("the kernel has no dm-crypt")

// fileBytes is how large an image's file is that has a file system of so many bytes.
func (d Image) fileBytes(sizeBytes int64) int64 {
	if d.Encryption != nil {
		sizeBytes += HeaderBytes
	}
	return sizeBytes
}

// seal makes a file one that is encrypted, with nothing in it yet.
func (d Image) seal(ctx context.Context, file string) error {
	return d.cryptsetup(ctx, true, "luksFormat", "--type", "luks2", "--key-file", "-",
		"--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "4096",
		// The key is as good as random numbers are, so that nothing is won by making each guess
		// dear; by itself cryptsetup takes a second and a GiB for that, at each mount.
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--luks2-metadata-size", "16k", "--luks2-keyslots-size", "992k", "--offset", "2048", file) // HeaderBytes in sectors
}

// unlock has a device appear with what is in the encrypted image that a loop device is of. It stays until
// Release.
func (d Image) unlock(ctx context.Context, loop string) (device string, err error) {
	// Without the kernel's keyring a device that grows needs no key.
	if err := d.cryptsetup(ctx, true, "open", "--type", "luks2", "--key-file", "-", "--allow-discards", "--disable-keyring",
		loop, d.Encryption.Name); err != nil {
		return "", err
	}
	dev, err := mapped(d.Encryption.Name)
	if err != nil {
		return "", err
	}
	sys := fmt.Sprintf("/sys/block/dm-%d/dm/", unix.Minor(dev))
	hide(sys+"name", sys+"uuid")                           // both have what it is called
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(dev)), nil // the kernel's own, which goes with it
}

// cryptsetup does something with an image, if it needs the key with that on its standard input.
func (d Image) cryptsetup(ctx context.Context, keyed bool, verb string, args ...string) error {
	var key []byte
	var err error
	if keyed {
		if key, err = d.Encryption.Key(ctx); err != nil {
			return err
		}
		defer clear(key)
	}
	root, err := d.Encryption.Tools(ctx)
	if err != nil {
		return err
	}
	return rootfs.Run(ctx, root, bytes.NewReader(key), "usr/sbin/cryptsetup",
		append([]string{verb, "--batch-mode", "--disable-locks"}, args...)...)
}

// CanEncrypt says with ErrNoEncryption that images can't be encrypted on this host. It may have the
// kernel load a module, which takes some tenths of a second once.
func CanEncrypt() error {
	if err := mapper(targetVersionCall, "crypt", 0, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrNoEncryption, err)
	}
	return nil
}

// Release has the device of this name go once nobody has it mounted or open. None there is no error.
func Release(name string) error {
	err := mapper(removeCall, name, deferredFlag, nil)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("release device %s: %w", name, err)
	}
	if err := os.Remove(filepath.Join(mapperDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mapped is the number of the device of this name.
func mapped(name string) (dev uint64, err error) {
	err = mapper(statusCall, name, 0, &dev)
	return dev, err
}

// What linux/dm-ioctl.h says of three calls: _IOWR(0xfd, number, 312 bytes).
const (
	removeCall        = 0xc138_fd04 // DM_DEV_REMOVE
	statusCall        = 0xc138_fd07 // DM_DEV_STATUS
	targetVersionCall = 0xc138_fd11 // DM_GET_TARGET_VERSION: loads what it is asked for

	deferredFlag = 1 << 17 // DM_DEFERRED_REMOVE

	mapperDir   = "/dev/mapper"
	mapperMajor = 10 // of its control device, as other small devices have
	mapperMinor = 236
)

// request is struct dm_ioctl.
type request struct {
	version                                                     [3]uint32
	dataSize, dataStart, targets, open, flags, event, unusedPad uint32
	dev                                                         uint64
	name                                                        [128]byte
	uuid                                                        [129]byte
	data                                                        [7]byte
}

// mapper has the device-mapper do something with the device of a name, and tells its number.
func mapper(number uintptr, name string, flags uint32, dev *uint64) error {
	r := request{version: [3]uint32{4}, flags: flags}
	r.dataSize = uint32(unsafe.Sizeof(r))
	r.dataStart = r.dataSize
	if len(name) >= len(r.name) {
		return fmt.Errorf("device %q: the name is too long", name)
	}
	copy(r.name[:], name)
	control := filepath.Join(mapperDir, "control")
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// It is not there in a /dev that is not the kernel's own.
		if err = os.MkdirAll(mapperDir, 0o755); err == nil {
			err = unix.Mknod(control, unix.S_IFCHR|0o600, int(unix.Mkdev(mapperMajor, mapperMinor)))
		}
		if err == nil || errors.Is(err, unix.EEXIST) {
			if f, err = os.OpenFile(control, os.O_RDWR, 0); err != nil {
				_ = os.Remove(control) // nobody answers there
			}
		}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := call(f, number, unsafe.Pointer(&r)); err != nil {
		return err
	}
	if dev != nil {
		*dev = r.dev
	}
	return nil
}
