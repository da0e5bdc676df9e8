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
	for _, name := range []string{dataDir, filepath.Join(dataDir, blobsName), filepath.Join(dataDir, treesName)} {
		if err := os.MkdirAll(name, 0o755); err != nil {
			return "", fmt.Errorf("unpack payload: %w", err)
		}
	}
	unlock, err := lock(ctx, filepath.Join(dataDir, lockName))
	if err != nil {
		return "", fmt.Errorf("unpack payload: %w", err)
	}
	defer unlock()

	root = filepath.Join(dataDir, treesName, p.treeName(files))
	if isComplete(root, files) {
		return root, nil
	}
	tmp := filepath.Join(dataDir, tmpName)
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("unpack payload: %w", err)
	}
	defer os.RemoveAll(tmp)
	tree := filepath.Join(tmp, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return "", fmt.Errorf("unpack payload: %w", err)
	}
	if err := p.unpackBlobs(ctx, dataDir, files); err != nil {
		return "", fmt.Errorf("%w%s", err, remedy(err))
	}
	failpoint.Reach("payload/files-unpacked")
	if err := linkTree(dataDir, tree, files); err != nil {
		return "", fmt.Errorf("unpack payload: %w", err)
	}
	failpoint.Reach("payload/tree-linked")
	// A tree that is there but not complete was damaged from outside.
	if err := os.RemoveAll(root); err != nil {
		return "", fmt.Errorf("unpack payload: %w", err)
	}
	if err := os.Rename(tree, root); err != nil {
		return "", fmt.Errorf("unpack payload: %w", err)
	}
	return root, syncDir(filepath.Dir(root))
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
	missing := map[string]File{}
	for _, file := range files {
		name := blobName(dataDir, file)
		if err := checkBlob(name, file); err != nil {
			missing[name] = file
		}
	}
	if err := checkSpace(dataDir, missing); err != nil {
		return fmt.Errorf("unpack payload: %w", err)
	}
	// In the archive's order, so that the disk is read from front to back.
	for _, file := range files {
		name := blobName(dataDir, file)
		if _, ok := missing[name]; !ok {
			continue
		}
		delete(missing, name)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.unpackBlob(ctx, filepath.Join(dataDir, tmpName, "blob"), name, file); err != nil {
			return err
		}
	}
	return syncDir(filepath.Join(dataDir, blobsName))
}

func blobName(dataDir string, file File) string {
	name := file.SHA256
	if file.Executable {
		name += "-x"
	}
	return filepath.Join(dataDir, blobsName, name)
}

// checkBlob reads a blob that is there and compares its sum: it may be from
// a run that a power cut ended.
func checkBlob(name string, file File) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode() != file.mode() || info.Size() != file.SizeBytes {
		return ErrDamaged
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) != file.SHA256 {
		return ErrDamaged
	}
	return nil
}

// checkSpace refuses to begin what can't end.
func checkSpace(dir string, missing map[string]File) error {
	var need int64
	for _, file := range missing {
		need += file.SizeBytes
	}
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

func (p *Payload) unpackBlob(ctx context.Context, tmp, name string, file File) error {
	r, err := p.OpenFile(file.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("unpack payload: %w", err)
	}
	defer f.Close()
	if _, err := io.Copy(f, &interruptible{ctx, r}); err != nil {
		return fmt.Errorf("unpack %s: %w", file.Path, err)
	}
	if err := errors.Join(f.Chmod(file.mode()), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("unpack %s: %w", file.Path, err)
	}
	failpoint.Reach("payload/file-unpacked")
	return os.Rename(tmp, name)
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

func syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// readBounded reads a file that must not be larger than maxBytes.
func readBounded(file string, maxBytes int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > maxBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes", file, maxBytes)
	}
	return data, nil
}
