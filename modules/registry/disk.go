package registry

import (
	"fmt"
	"io"
	"net/http"

	"golang.org/x/sys/unix"
)

// room is what content needs before it is taken: a nil error says that size more
// bytes may come. It is asked again while they come in.
type room func(size int64) error

// disk guards the free space of the file system below dir.
type disk struct {
	dir   string
	floor int64
}

func (d disk) stat() (s unix.Statfs_t, err error) {
	if err := unix.Statfs(d.dir, &s); err != nil {
		return s, fmt.Errorf("free space of %s: %w", d.dir, err)
	}
	return s, nil
}

// floorFiles is how many files a file system must still take, of all it can: a
// twentieth, and 50,000 are enough for whoever else is on it. One that makes room for
// files as they come says that it has none, and has no floor.
func floorFiles(all uint64) uint64 { return min(all/20, 50_000) }

// check refuses size more bytes if they would go below the floor.
//
// The status is 403 and the code DENIED, since that is what clients print and
// don't retry: 507 and 429 make them try the whole upload again and again.
func (d disk) check(size int64) error {
	s, err := d.stat()
	if err != nil {
		return err
	}
	if s.Ffree < floorFiles(s.Files) {
		return refuse(http.StatusForbidden, "DENIED",
			"the registry's disk takes hardly any more files (%d, %d are kept): "+
				"delete images you no longer need, or ask the operator for a file system with more inodes", s.Ffree, floorFiles(s.Files))
	}
	free := int64(s.Bavail) * s.Bsize
	if free-max(size, 0) < d.floor {
		return refuse(http.StatusForbidden, "DENIED",
			"the registry's disk is nearly full (%d MiB free, %d MiB are kept): "+
				"delete images you no longer need, or ask the operator for more space", free>>20, d.floor>>20)
	}
	return nil
}

// admit checks a request that brings content, and says how its body is bounded: by the
// limit, and by the room there is while it comes in.
func admit(req *http.Request, limit int64, rooms ...room) (guardedBody, error) {
	for _, check := range rooms {
		if err := check(req.ContentLength); err != nil {
			return guardedBody{}, err
		}
	}
	if req.ContentLength > limit {
		return guardedBody{}, refuse(http.StatusRequestEntityTooLarge, "SIZE_INVALID",
			"an upload may have at most %d MiB: make the layer smaller", limit>>20)
	}
	return guardedBody{ReadCloser: req.Body, rooms: rooms, left: limit}, nil
}

// checkEvery is how much comes in between two looks at the disk. Three hundred
// uploads at once could pass the floor by 5 GiB, one by 16 MiB.
const checkEvery = 16 << 20

type guardedBody struct {
	io.ReadCloser
	rooms     []room
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
		for _, check := range b.rooms {
			if full := check(0); full != nil {
				return n, full
			}
		}
	}
	return n, err
}
