package payload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
)

// Below the data folder:
//
//	lock            held while something is changed
//	blobs/SUM[-x]   the files, by contents; -x are the executable ones,
//	                since a mode belongs to the file, not to its name
//	trees/NAME/...  hard links to blobs: one payload, or some prefixes of it
//	tmp/            what is being made; whatever is found there is left over
const (
	lockName  = "lock"
	blobsName = "blobs"
	treesName = "trees"
	tmpName   = "tmp"
)

// lockPoll is how often a lock that another process holds is tried again.
// flock can't be waited for and be given up at the same time.
const lockPoll = 20 * time.Millisecond

// spareBytes must stay free on the disk after unpacking.
const spareBytes = 64 << 20

// Unpack makes the files at or below the prefixes, all without any, below
// dataDir and returns the folder in which they stand under their paths. What
// was unpacked before is used again. It may be called by several processes
// at once. A folder in place of the payload is returned as it is.
func (p *Payload) Unpack(ctx context.Context, dataDir string, prefixes ...string) (root string, err error) {
	if p.dir != "" {
		return p.dir, p.checkDir(prefixes)
	}
	files, err := p.wanted(prefixes)
	if err != nil {
		return "", err
	}
	root = filepath.Join(dataDir, treesName, p.treeName(files))
	if err := p.unpack(ctx, dataDir, root, files); err != nil {
		return "", fmt.Errorf("unpack payload: %w%s", err, remedy(err))
	}
	return root, nil
}

// unpack makes the tree root of the files, unless it is there.
func (p *Payload) unpack(ctx context.Context, dataDir, root string, files []File) error {
	for _, name := range []string{dataDir, filepath.Join(dataDir, blobsName), filepath.Join(dataDir, treesName)} {
		if err := os.MkdirAll(name, 0o755); err != nil {
			return err
		}
	}
	unlock, err := lock(ctx, filepath.Join(dataDir, lockName))
	if err != nil {
		return err
	}
	defer unlock()
	if isComplete(root, files) {
		return nil
	}
	tmp := filepath.Join(dataDir, tmpName)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	tree := filepath.Join(tmp, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if err := p.unpackBlobs(ctx, dataDir, files); err != nil {
		return err
	}
	failpoint.Reach("payload/files-unpacked")
	if err := linkTree(dataDir, tree, files); err != nil {
		return err
	}
	failpoint.Reach("payload/tree-linked")
	// A tree that is there but not complete was damaged from outside.
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	if err := os.Rename(tree, root); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(root))
}

// treeName names a selection of files. The same selection of the same
// payload, by whatever prefixes, is the same tree.
func (p *Payload) treeName(files []File) string {
	if len(files) == len(p.manifest.Files) {
		return p.id[:16]
	}
	sum := sha256.New()
	for _, file := range files {
		io.WriteString(sum, file.Path+"\n")
	}
	return p.id[:16] + "-" + hex.EncodeToString(sum.Sum(nil)[:4])
}

// checkDir checks that a folder has something at each prefix.
func (p *Payload) checkDir(prefixes []string) error {
	var errs []error
	for _, prefix := range prefixes {
		if _, err := os.Stat(filepath.Join(p.dir, prefix)); err != nil {
			errs = append(errs, fmt.Errorf("payload: %w", err))
		}
	}
	return errors.Join(errs...)
}

// isComplete says whether a tree has every file in its size and mode. Sums
// are not computed anew at each start: that would take a second per GB, and who can change
// files of mode 0444 below the data folder is root already.
func isComplete(root string, files []File) bool {
	for _, file := range files {
		info, err := os.Lstat(filepath.Join(root, file.Path))
		if err != nil || info.Mode() != file.mode() || info.Size() != file.SizeBytes {
			return false
		}
	}
	return len(files) > 0
}

// unpackBlobs makes the blobs that are not there in good order.
func (p *Payload) unpackBlobs(ctx context.Context, dataDir string, files []File) error {
	var missing []File // in the archive's order, so that the disk is read from front to back
	var need int64
	looked := map[string]bool{}
	for _, file := range files {
		name := blobName(dataDir, file)
		if !looked[name] && !isBlob(name, file) {
			missing = append(missing, file)
			need += file.SizeBytes
		}
		looked[name] = true
	}
	if err := checkSpace(dataDir, need); err != nil {
		return err
	}
	for _, file := range missing {
		if err := p.unpackBlob(ctx, dataDir, file); err != nil {
			return fmt.Errorf("%s: %w", file.Path, err)
		}
	}
	return atomicfile.SyncDir(filepath.Join(dataDir, blobsName))
}

func blobName(dataDir string, file File) string {
	name := file.SHA256
	if file.Executable {
		name += "-x"
	}
	return filepath.Join(dataDir, blobsName, name)
}

// isBlob reads a blob that is there and compares its sum: it may be from
// a run that a power cut ended.
func isBlob(name string, file File) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Mode() != file.mode() || info.Size() != file.SizeBytes {
		return false
	}
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return err == nil && hex.EncodeToString(sum.Sum(nil)) == file.SHA256
}

// checkSpace refuses to begin what can't end.
func checkSpace(dir string, need int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; need > 0 && need+spareBytes > free {
		return fmt.Errorf("%s: needs %d MB, the disk has %d MB free: %w",
			dir, (need+spareBytes)>>20, free>>20, syscall.ENOSPC)
	}
	return nil
}

func (p *Payload) unpackBlob(ctx context.Context, dataDir string, file File) error {
	r, err := p.OpenFile(file.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.Create(filepath.Join(dataDir, tmpName, "blob"))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, &interruptible{ctx, r}); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(file.mode()), f.Sync(), f.Close()); err != nil {
		return err
	}
	failpoint.Reach("payload/file-unpacked")
	return os.Rename(f.Name(), blobName(dataDir, file))
}

// interruptible is a reader that ends with its context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(b []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(b)
}

func linkTree(dataDir, tree string, files []File) error {
	for _, file := range files {
		name := filepath.Join(tree, file.Path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.Link(blobName(dataDir, file), name); err != nil {
			return err
		}
	}
	return nil
}

// Prune removes the trees below dataDir that are none of keep (roots that
// Unpack returned), and the blobs that no tree has any more.
func Prune(ctx context.Context, dataDir string, keep ...string) error {
	unlock, err := lock(ctx, filepath.Join(dataDir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prune payload: %w", err)
	}
	defer unlock()
	trees, err := filepath.Glob(filepath.Join(dataDir, treesName, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, tree := range trees {
		if !slices.Contains(keep, tree) {
			errs = append(errs, os.RemoveAll(tree))
			failpoint.Reach("payload/tree-pruned")
		}
	}
	blobs, err := os.ReadDir(filepath.Join(dataDir, blobsName))
	errs = append(errs, err)
	for _, blob := range blobs {
		info, err := blob.Info()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink == 1 {
			errs = append(errs, os.Remove(filepath.Join(dataDir, blobsName, blob.Name())))
		}
	}
	return errors.Join(errs...)
}

// lock takes the lock that keeps two processes from changing the same data
// folder. The kernel gives it back when a process dies.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}
