package registry

import (
	"fmt"
	"io"
	"net/http"

	"golang.org/x/sys/unix"
)

// disk guards the free space of the file system below dir.
type disk struct {
	dir   string
	floor int64
}

// free is what a user without privileges could still write.
func (d disk) free() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(d.dir, &s); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", d.dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// check refuses size more bytes if they would go below the floor.
//
// The status is 403 and the code DENIED, since that is what clients print and
// don't retry: 507 and 429 make them try the whole upload again and again.
func (d disk) check(size int64) error {
	free, err := d.free()
	if err != nil {
		return err
	}
	if free-max(size, 0) < d.floor {
		return refuse(http.StatusForbidden, "DENIED",
			"the registry's disk is nearly full (%d MiB free, %d MiB are kept): delete images you no longer need, or ask the operator for more space",
			free>>20, d.floor>>20)
	}
	return nil
}

// admit checks a request that brings content, and bounds its body by the limit
// and by what is free while it comes in.
func (d disk) admit(req *http.Request, limit int64) error {
	if err := d.check(req.ContentLength); err != nil {
		return err
	}
	if req.ContentLength > limit {
		return refuse(http.StatusRequestEntityTooLarge, "SIZE_INVALID",
			"an upload may have at most %d MiB: make the layer smaller", limit>>20)
	}
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &guardedBody{ReadCloser: req.Body, disk: d, left: limit}
	}
	return nil
}

// checkEvery is how much comes in between two looks at the disk. Three hundred
// uploads at once could pass the floor by 5 GiB, one by 16 MiB.
const checkEvery = 16 << 20

type guardedBody struct {
	io.ReadCloser
	disk      disk
	left      int64
	unchecked int64
}

func (b *guardedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	b.unchecked += int64(n)
	if b.left < 0 {
		return n, &http.MaxBytesError{}
	}
	if b.unchecked >= checkEvery {
		b.unchecked = 0
		if full := b.disk.check(0); full != nil {
			return n, full
		}
	}
	return n, err
}
