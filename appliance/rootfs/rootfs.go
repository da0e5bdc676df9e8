// Package rootfs unpacks root file systems from the payload's images, each once, for whoever
// runs programs or machines from them.
//
// Parties: parts that run a Debian of the payload. Any package may import it; it imports
// leaves only.
package rootfs

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
)

// maxBytes bounds what an image unpacks to. The machine's is 150 MB.
const maxBytes = 4 << 30

// Store keeps what was unpacked of one image and its versions, below Dir/DIGEST. Several
// processes may use one folder.
type Store struct {
	Dir string // absolute; survives a reboot
}

// Unpack returns the folder with the root file system of the one image in an
// OCI layout. A folder that is there is whole: it got its name when it was.
func (im Store) Unpack(ctx context.Context, layoutDir string) (string, error) {
	digest, image, err := onlyImage(layoutDir)
	if err != nil {
		return "", fmt.Errorf("open image %s: %w", layoutDir, err)
	}
	dir := filepath.Join(im.Dir, digest.Hex)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(im.Dir, 0o755); err != nil {
		return "", err
	}
	// One at a time, also among processes; the lock of a killed one is free.
	lock, err := os.OpenFile(filepath.Join(im.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	// What a killed process left of the same image.
	partial := dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return "", fmt.Errorf("unpack image: %w", err)
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return "", err
	}
	if err := unpackLayers(ctx, image, partial); err != nil {
		return "", errors.Join(fmt.Errorf("unpack image %s: %w", layoutDir, err), os.RemoveAll(partial))
	}
	failpoint.Reach("rootfs/unpacked")
	// The name must not outlive, in a power cut, what it promises.
	err = syncAll(partial)
	if err == nil {
		err = os.Rename(partial, dir)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("unpack image: %w", err), os.RemoveAll(partial))
	}
	return dir, atomicfile.SyncDir(im.Dir)
}

// syncAll has the file system of a folder write all that it has.
func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// Prune removes what was unpacked and is used no more, but never the image in
// layoutDir: images of former payloads, and what a killed process left half unpacked. An image
// is used while it is mounted, or something is mounted over it.
func (im Store) Prune(layoutDir string) error {
	digest, _, err := onlyImage(layoutDir)
	if err != nil {
		return fmt.Errorf("open image %s: %w", layoutDir, err)
	}
	// Who unpacks holds the lock; there will be another time to look.
	lock, err := os.OpenFile(filepath.Join(im.Dir, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	entries, err := os.ReadDir(im.Dir)
	if err != nil {
		return err
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	mounted := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(string(mountinfo)) // proc(5)
	for _, e := range entries {
		dir := filepath.Join(im.Dir, e.Name())
		used := strings.Contains(mounted, "lowerdir="+dir+",") ||
			strings.Contains(mounted, "/"+e.Name()+" ") // that folder itself is mounted
		if !e.IsDir() || e.Name() == digest.Hex || used {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove unused image: %w", err)
		}
	}
	return nil
}

func onlyImage(dir string) (v1.Hash, v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return v1.Hash{}, nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return v1.Hash{}, nil, err
	}
	if len(manifest.Manifests) != 1 {
		return v1.Hash{}, nil, fmt.Errorf("it holds %d images, want 1", len(manifest.Manifests))
	}
	digest := manifest.Manifests[0].Digest
	image, err := index.Image(digest)
	return digest, image, err
}

func unpackLayers(ctx context.Context, image v1.Image, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	left := int64(maxBytes)
	for _, l := range layers {
		want, err := l.DiffID()
		if err != nil {
			return err
		}
		if err := unpackLayer(ctx, root, l, want, &left); err != nil {
			return err
		}
	}
	return nil
}

func unpackLayer(ctx context.Context, root *os.Root, l v1.Layer, want v1.Hash, left *int64) error {
	r, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer r.Close()
	sum := sha256.New()
	limited := &io.LimitedReader{R: r, N: *left}
	tee := io.TeeReader(bufio.NewReaderSize(limited, 1<<20), sum)
	if err := untar(ctx, root, tar.NewReader(tee)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return err
	}
	if limited.N == 0 {
		return fmt.Errorf("it unpacks to more than %d bytes", int64(maxBytes))
	}
	*left = limited.N
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("layer sha256:%s is damaged: it unpacks to sha256:%s", want.Hex, got)
	}
	return nil
}

// The names by which a layer takes away what those below it have.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// untar unpacks one layer. Everything goes through root, so nothing gets out of
// it, be it by a name or by a link. Devices are left out: who runs from it has its
// own. Times are kept; extended attributes aren't needed.
func untar(ctx context.Context, root *os.Root, t *tar.Reader) error {
	dirs := map[string]time.Time{} // set last: what is put into a folder changes its time
	made := map[string]bool{}
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if !filepath.IsLocal(name) {
			return fmt.Errorf("%q leads out of the image", h.Name)
		}
		dir, base := path.Split(name)
		if base == opaque {
			if err := removeOlder(root, path.Clean(dir), made); err != nil {
				return err
			}
			continue
		}
		if gone, ok := strings.CutPrefix(base, whiteout); ok {
			if err := root.RemoveAll(path.Join(dir, gone)); err != nil {
				return err
			}
			continue
		}
		if err := unpackEntry(root, name, h, t); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		made[name] = true
		if h.Typeflag == tar.TypeDir {
			dirs[name] = h.ModTime
		}
	}
	for name, at := range dirs {
		if err := root.Chtimes(name, at, at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func unpackEntry(root *os.Root, name string, h *tar.Header, content io.Reader) error {
	if h.Typeflag != tar.TypeDir {
		if name == "." {
			return errors.New("the root is no folder")
		}
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if info, err := root.Lstat(name); err != nil {
			return err
		} else if !info.IsDir() {
			// A layer puts a folder where one below it has a link to one.
			if err := errors.Join(root.Remove(name), root.Mkdir(name, 0o755)); err != nil {
				return err
			}
		}
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return root.Lchown(name, h.Uid, h.Gid)
	case tar.TypeLink:
		return root.Link(path.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	default:
		return nil // devices, pipes
	}
	// Owner first: changing it clears the set-user-ID bit.
	if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := root.Chmod(name, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg {
		return root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return nil
}

// removeOlder empties a folder of what earlier layers put there.
func removeOlder(root *os.Root, dir string, made map[string]bool) error {
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if p := path.Join(dir, e.Name()); !made[p] {
			if err := root.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{{Name: "rootfs/unpacked", In: failpoint.Node, Cuts: "the image is unpacked, under its temporary name"}}
}
