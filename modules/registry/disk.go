package registry

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
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
			"the registry's disk is nearly full (%d MiB free, %d MiB are kept): "+
				"delete images you no longer need, or ask the operator for more space", free>>20, d.floor>>20)
	}
	return nil
}

// admit checks a request that brings content, and bounds its body by the limit
// and by the room there is while it comes in.
func admit(req *http.Request, limit int64, rooms ...room) error {
	for _, check := range rooms {
		if err := check(req.ContentLength); err != nil {
			return err
		}
	}
	if req.ContentLength > limit {
		return refuse(http.StatusRequestEntityTooLarge, "SIZE_INVALID",
			"an upload may have at most %d MiB: make the layer smaller", limit>>20)
	}
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &guardedBody{ReadCloser: req.Body, rooms: rooms, left: limit}
	}
	return nil
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

// roomOf is the room an account has left of what it may keep in the registry.
func (r *Registry) roomOf(account string) room {
	return func(size int64) error {
		limit := r.cfg.Limit(account)
		if limit <= 0 {
			return nil
		}
		used, err := r.usage(account)
		if err != nil {
			return err
		}
		if used+max(size, 0) > limit {
			return refuse(http.StatusForbidden, "DENIED",
				"account %s may keep %d MiB of images, has %d MiB and would get %d MiB more: delete images you no longer need "+
					"(their layers go within a day), or ask a sysadmin to raise the limit (`mp accounts set`)",
				account, limit>>20, used>>20, max(size, 0)>>20)
		}
		return nil
	}
}

// usage is how many bytes an account's repositories name, each layer once, and
// what of uploads has come. It looks at the file system each time: thousands of
// layers take some ten milliseconds.
func (r *Registry) usage(account string) (int64, error) {
	names, err := r.repositories(account)
	if err != nil {
		return 0, err
	}
	var used int64
	seen := map[digest.Digest]bool{}
	count := func(d digest.Digest, _ string, _ fs.FileInfo) error {
		if seen[d] || d.Validate() != nil {
			return nil
		}
		seen[d] = true
		data, err := os.Stat(filepath.Join(r.root(), "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data"))
		if err == nil {
			used += data.Size()
		}
		return nil // a link to a blob that went
	}
	for _, name := range names {
		dir := r.repositoryDir(name)
		for _, links := range []string{layers, revisions} {
			if err := eachDigest(filepath.Join(dir, links), "link", count); err != nil {
				return 0, err
			}
		}
		uploads, err := os.ReadDir(filepath.Join(dir, "_uploads"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		for _, u := range uploads {
			if data, err := os.Stat(filepath.Join(dir, "_uploads", u.Name(), "data")); err == nil {
				used += data.Size()
			}
		}
	}
	return used, nil
}
