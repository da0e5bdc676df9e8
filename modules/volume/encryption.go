package volume

import (
	"context"
	"io/fs"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/modules/wire"
)

// Encryption is what encrypted volumes need besides.
type Encryption struct {
	// Key asks the server for the key of a volume, by that one's key and by the UID of it or of the brick.
	Key func(ctx context.Context, volume, uid string) ([]byte, error)
	// Tools is the root file system of a Debian with cryptsetup and smartctl. It may block for seconds.
	Tools func(ctx context.Context) (root string, err error)
}

// deviceName is what the device of an encrypted volume is called on its host.
func deviceName(uid string) string { return "multipaas-" + uid }

// disk is the image of a volume as it can be made and mounted.
func (h *Host) disk(v wire.Volume) diskimage.Image {
	disk := h.place(v.UID).image()
	if v.Encrypted {
		disk.Encryption = &diskimage.Encryption{Name: deviceName(v.UID), Tools: h.cfg.Encryption.Tools,
			Key: func(ctx context.Context) ([]byte, error) {
				key, err := h.cfg.Encryption.Key(ctx, v.Key, v.UID)
				if err != nil {
					return nil, h.said("it is encrypted, and its host can't get the key, which the platform's server has: "+
						"it is tried again", err)
				}
				return key, nil
			}}
	}
	return disk
}

// release has the device of an encrypted volume go, if a process that was killed has left one.
func (h *Host) release(uid string) error {
	if rec, err := h.place(uid).record(); err != nil || !rec.Encrypted {
		return nil
	}
	return diskimage.Release(deviceName(uid))
}

// sizeOf is what a volume or snapshot holds whose disk is this file.
func sizeOf(file fs.FileInfo, encrypted bool) int64 {
	if encrypted {
		return max(file.Size()-diskimage.HeaderBytes, 0)
	}
	return file.Size()
}
