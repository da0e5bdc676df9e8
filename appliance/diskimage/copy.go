package diskimage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
)

// ErrTooMuch is returned by Copy for an image that is mounted and has more in it than can be read
// while its file system stands still.
var ErrTooMuch = errors.New("it has too much in it to be copied while it is in use")

// MaxLiveCopy is how many bytes that is: a disk of 200 MB/s reads them in 20 s.
const MaxLiveCopy = 4 << 30

// frozenTime is how long that may take: of a slow disk it is ErrTooMuch, too.
const frozenTime = 30 * time.Second

// maxLiveCopy is MaxLiveCopy but in tests.
var maxLiveCopy int64 = MaxLiveCopy

const (
	copyChunk = 1 << 20
	// copyPace is how many bytes a second a copy reads at most while others have their disk too; and
	// it rests as long as it works.
	copyPace = 200 << 20
)

// Copy makes another image of what is in this one at a moment, as Clone does, where files can't
// share blocks. It blocks while it reads all that is in the image, twice: the first time at
// a pace that leaves the disk to others, the second time to find what has changed meanwhile, with
// the file system frozen: who writes waits for so long. So of one that is mounted no more than
// MaxLiveCopy is copied: ErrTooMuch. tell is told how many bytes
// of how many the first time has come to; it must not block. One that is cut off leaves
// nothing, or if the process was killed a file that the next replaces, and a file system that is
// frozen until Thaw.
func (d Image) Copy(ctx context.Context, to string, tell func(done, of int64)) error {
	if err := d.copy(ctx, to, tell); err != nil {
		return fmt.Errorf("copy disk %s: %w", d.File, err)
	}
	return nil
}

func (d Image) copy(ctx context.Context, to string, tell func(done, of int64)) error {
	return copyFile(ctx, d.File, to, tell, d.checkLive, func(pass passing) error {
		return d.frozen(func() error {
			ctx, cancel := context.WithTimeoutCause(ctx, frozenTime, ErrTooMuch)
			defer cancel()
			return pass(ctx, false, func(int64, int64) {})
		})
	})
}

// passing is copying.pass.
type passing func(ctx context.Context, paced bool, tell func(done, of int64)) error

// copyFile copies the file of an image. live says why it can't be read now, and still has the last pass be of one moment.
func copyFile(
	ctx context.Context, from, to string, tell func(done, of int64), live func(*os.File) error,
	still func(pass passing) error,
) (err error) {
	if _, err := os.Lstat(to); err == nil {
		return &os.PathError{Op: "copy", Path: to, Err: fs.ErrExist}
	}
	partial := to + Partial
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(partial)
		}
	}()
	c := copying{seed: maphash.MakeSeed()}
	if c.from, err = openDirect(from, os.O_RDONLY); err != nil {
		return err
	}
	defer c.from.Close()
	if c.to, err = openDirect(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL); err != nil {
		return err
	}
	defer c.to.Close()
	// Memory of its own begins at a page, as direct I/O wants it.
	if c.chunk, err = unix.Mmap(-1, 0, copyChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(c.chunk) }()
	if err := live(c.from); err != nil {
		return err
	}
	if err := c.pass(ctx, true, tell); err != nil {
		return err
	}
	if err := live(c.from); err != nil { // it may have grown
		return err
	}
	if err := still(c.pass); err != nil {
		return err
	}
	if err := c.to.Sync(); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: partial, New: to, Err: err}
	}
	return atomicfile.SyncDir(filepath.Dir(to))
}

// checkLive says whether what is in an image can be read while nobody writes to it.
func (d Image) checkLive(file *os.File) error {
	mounted, err := hostmount.Has(d.Mount)
	if err != nil || !mounted {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return err
	}
	if st.Blocks*512 > maxLiveCopy {
		return ErrTooMuch
	}
	return nil
}

// openDirect opens a file by direct I/O, if that can be: a loop device writes around the page cache,
// and a copy has no use for that.
func openDirect(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, unix.O_DIRECT); err != nil && !errors.Is(err, unix.EINVAL) {
		return nil, errors.Join(&os.PathError{Op: "fcntl", Path: name, Err: err}, f.Close())
	}
	return f, nil
}

// copying is two files of which the second becomes as the first is.
type copying struct {
	from, to *os.File
	chunk    []byte
	seed     maphash.Seed
	sums     []uint64 // of each chunk that to has; 0: a hole
}

// pass writes what is another than it was at the last pass.
func (c *copying) pass(ctx context.Context, paced bool, tell func(done, of int64)) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(c.from.Fd()), &st); err != nil {
		return err
	}
	if err := c.to.Truncate(st.Size); err != nil {
		return err
	}
	chunks := int((st.Size + copyChunk - 1) / copyChunk)
	c.sums = append(c.sums, make([]uint64, max(chunks-len(c.sums), 0))...)
	done, next := int64(0), int64(0)
	for i := range chunks {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		at, began := int64(i)*copyChunk, time.Now()
		if next < at+copyChunk {
			var err error
			if next, err = unix.Seek(int(c.from.Fd()), max(next, at), unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
				next = st.Size // nothing more
			} else if err != nil {
				return fmt.Errorf("look for data: %w", err)
			}
		}
		if next >= at+copyChunk {
			if err := c.put(i, 0, min(copyChunk, st.Size-at)); err != nil {
				return err
			}
			continue
		}
		n, err := c.from.ReadAt(c.chunk[:min(copyChunk, st.Size-at)], at)
		if err != nil {
			return err
		}
		next = at + int64(n)
		sum := uint64(0)
		if !zero(c.chunk[:n]) {
			sum = max(maphash.Bytes(c.seed, c.chunk[:n]), 1)
		}
		if err := c.put(i, sum, int64(n)); err != nil {
			return err
		}
		done += int64(n)
		tell(done, max(st.Blocks*512, done))
		if took := time.Since(began); paced {
			rest(ctx, max(took, copyChunk*time.Second/copyPace-took))
		}
	}
	return nil
}

// put has chunk i be what was read, or a hole of n bytes, unless it is so already.
func (c *copying) put(i int, sum uint64, n int64) error {
	if c.sums[i] == sum {
		return nil
	}
	at := int64(i) * copyChunk
	if sum == 0 {
		const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		if err := unix.Fallocate(int(c.to.Fd()), punch, at, n); err != nil {
			return fmt.Errorf("make a hole: %w", err)
		}
	} else if _, err := c.to.WriteAt(c.chunk[:n], at); err != nil {
		return err
	}
	c.sums[i] = sum
	return nil
}

func zero(data []byte) bool {
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}

// rest waits, or until ctx is done.
func rest(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause): // not waiting for an event: this is the pace
	}
}

// frozen does something while nothing is written to the image: all that was is in it.
func (d Image) frozen(do func() error) error {
	mounted, err := hostmount.Has(d.Mount)
	if err != nil {
		return err
	}
	if !mounted {
		return do()
	}
	if err := d.freeze(freezeCall); err != nil {
		return fmt.Errorf("freeze its file system: %w", err)
	}
	failpoint.Reach("disk/copy-frozen")
	err = do()
	if thaw := d.Thaw(); thaw != nil {
		err = errors.Join(err, thaw)
	}
	return err
}

// Thaw lets the file system of an image be written to again that a process was killed over which
// copied it. One that is not frozen, or not mounted, is no error. Nobody may copy it meanwhile.
func (d Image) Thaw() error {
	err := d.freeze(thawCall)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("thaw disk %s: %w", d.File, err)
	}
	return nil
}

// FIFREEZE and FITHAW of linux/fs.h.
const (
	freezeCall = 0xc004_5877
	thawCall   = 0xc004_5878
)

func (d Image) freeze(number uint) error {
	var f *os.File
	var at, above unix.Stat_t
	err := hostmount.Do(func() (err error) {
		if f, err = os.Open(d.Mount); err != nil {
			return err
		}
		return cmp.Or(unix.Fstat(int(f.Fd()), &at), unix.Stat(filepath.Dir(d.Mount), &above))
	})
	if f != nil {
		defer f.Close()
	}
	if err == nil && at.Dev == above.Dev {
		// What it is mounted on is the host's.
		err = &os.PathError{Op: "freeze", Path: d.Mount, Err: fs.ErrNotExist}
	}
	if err != nil {
		return err
	}
	_, err = unix.IoctlRetInt(int(f.Fd()), number)
	return err
}
