package diskimage

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// The stream by which an image comes to another host, numbers big-endian:
//
//	magic      8 octets
//	size, at   2 x 8: of the image, and when it was written to last (ns): by both it is known again
//	blocks     8 offset, 4 length, 32 SHA-256 of these 12 and the data, then the data
//	end        a block of length 0, its offset the size, its sum that of all blocks' heads
//
// What isn't sent are holes, and blocks of nothing but zeros.
const (
	streamMagic = "mpimage1"
	headBytes   = 8 + 4 + sha256.Size
	// keepEvery is how much is received until how far it came is on the disk: so much is sent twice after
	// a crash.
	keepEvery = 256 << 20
)

// ErrStream is returned by Receive for a stream that is not whole or not right: what came before counts.
var ErrStream = errors.New("the copy was cut off")

// ErrChanged is returned by Send for an image that somebody writes to.
var ErrChanged = errors.New("it is written to")

// Send writes what is in an image to w, from an offset on, for Receive. Nobody may have the image
// mounted. It blocks as long as w does, and reads at a pace that leaves the disk to others.
func (d Image) Send(ctx context.Context, w io.Writer, from int64) error {
	if err := d.send(ctx, w, from); err != nil {
		return fmt.Errorf("send disk %s: %w", d.File, err)
	}
	return nil
}

func (d Image) send(ctx context.Context, w io.Writer, from int64) error {
	file, err := openDirect(d.File, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	var was unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &was); err != nil {
		return err
	}
	if from < 0 || from > was.Size || from%copyChunk != 0 {
		return fmt.Errorf("there is no block at %d", from)
	}
	chunk, err := unix.Mmap(-1, 0, copyChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(chunk) }()
	if _, err := w.Write(streamHead(was)); err != nil {
		return err
	}
	all := sha256.New()
	err = eachBlock(ctx, file, from, was.Size, chunk, func(head, data []byte) error {
		all.Write(head)
		if _, err := w.Write(head); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	var now unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &now); err != nil {
		return err
	}
	if now.Size != was.Size || now.Mtim != was.Mtim {
		return ErrChanged
	}
	end := binary.BigEndian.AppendUint64(nil, uint64(was.Size))
	_, err = w.Write(all.Sum(binary.BigEndian.AppendUint32(end, 0)))
	return err
}

// eachBlock calls do with each block of a file that is not zeros, from an offset on and before another, at a pace
// that leaves the disk to others. chunk is what it reads into.
func eachBlock(ctx context.Context, file *os.File, from, end int64, chunk []byte, do func(head, data []byte) error) error {
	for at := from; at < end; at += copyChunk {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		data, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return nil // nothing more
		}
		if err != nil {
			return fmt.Errorf("look for data: %w", err)
		}
		at = data / copyChunk * copyChunk
		began := time.Now()
		n, err := file.ReadAt(chunk[:min(copyChunk, end-at)], at)
		if err != nil {
			return err
		}
		if zero(chunk[:n]) {
			continue
		}
		head := blockHead(at, chunk[:n])
		took := time.Since(began)
		if err := do(head, chunk[:n]); err != nil {
			return err
		}
		rest(ctx, max(took, copyChunk*time.Second/copyPace-time.Since(began)))
	}
	return nil
}

func streamHead(st unix.Stat_t) []byte {
	head := binary.BigEndian.AppendUint64([]byte(streamMagic), uint64(st.Size))
	return binary.BigEndian.AppendUint64(head, uint64(st.Mtim.Nano()))
}

// blockHead is what goes before a block, which never is empty.
func blockHead(at int64, data []byte) []byte {
	head := binary.BigEndian.AppendUint64(make([]byte, 0, headBytes), uint64(at))
	head = binary.BigEndian.AppendUint32(head, uint32(len(data)))
	sum := sha256.New()
	sum.Write(head)
	sum.Write(data)
	return sum.Sum(head)
}

// received is how far an image has come: what stands before At is on the disk. Head is the stream's, and Sum
// the state of the SHA-256 of the heads of all blocks before At.
type received struct {
	At   int64  `json:"at"`
	Head []byte `json:"head"`
	Sum  []byte `json:"sum"`
}

// reopen opens a file of which a beginning came already. have is nothing if that isn't there any more, or is no
// beginning of this.
func (have *received) reopen(partial string) (*os.File, hash.Hash, error) {
	sum := sha256.New()
	if have.At > 0 && len(have.Head) == len(streamMagic)+16 &&
		sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(have.Sum) == nil {
		to, err := openDirect(partial, os.O_RDWR) // a new one would have zeros for what came
		if err == nil {
			info, err := to.Stat()
			if err == nil && uint64(info.Size()) == binary.BigEndian.Uint64(have.Head[len(streamMagic):]) {
				return to, sum, nil
			}
			if err := errors.Join(err, to.Close()); err != nil {
				return nil, nil, err
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	*have = received{}
	if err := os.RemoveAll(partial); err != nil {
		return nil, nil, err
	}
	to, err := openDirect(partial, os.O_RDWR|os.O_CREATE)
	return to, sha256.New(), err
}

// progressName is the file beside an image that comes, in which that stands.
func (d Image) progressName() string { return d.File + Partial + ".json" }

// Receive makes the image of what a stream of Send brings, which open begins at an offset. One that was
// cut off, ErrStream, goes on where it ended when it is called again. most is how large the image may be. tell
// is told at which byte of how many it is; it must not block. It blocks as long as the stream does.
func (d Image) Receive(
	ctx context.Context, most int64, open func(from int64) (io.ReadCloser, error), tell func(at, size int64),
) error {
	if err := d.receive(ctx, most, open, tell); err != nil {
		return fmt.Errorf("receive disk %s: %w", d.File, err)
	}
	return nil
}

func (d Image) receive(
	ctx context.Context, most int64, open func(from int64) (io.ReadCloser, error), tell func(at, size int64),
) error {
	if _, err := os.Lstat(d.File); err == nil {
		return &os.PathError{Op: "receive", Path: d.File, Err: fs.ErrExist}
	}
	var have received
	if data, err := os.ReadFile(d.progressName()); err == nil {
		if err := json.Unmarshal(data, &have); err != nil {
			have = received{} // it begins anew
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	partial := d.File + Partial
	to, sum, err := have.reopen(partial)
	if err != nil {
		return err
	}
	defer to.Close()
	stream, err := open(have.At)
	if err != nil {
		return err
	}
	defer stream.Close()
	in := bufio.NewReaderSize(stream, 64<<10)
	head := make([]byte, len(streamMagic)+16)
	if err := fill(in, head); err != nil {
		return err
	}
	size := int64(binary.BigEndian.Uint64(head[len(streamMagic):]))
	if string(head[:len(streamMagic)]) != streamMagic || size <= 0 || size > most {
		return fmt.Errorf("%w: it is of another kind, or too large", ErrStream)
	}
	if have.At > 0 && !bytes.Equal(head, have.Head) {
		// Another one than what came of it before: that is worth nothing.
		return errors.Join(ErrStream, remove(d.progressName()))
	}
	have.Head = head
	if err := to.Truncate(size); err != nil {
		return err
	}
	if err := d.blocks(ctx, in, to, size, have, sum, tell); err != nil {
		return err
	}
	if err := to.Sync(); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, d.File, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: partial, New: d.File, Err: err}
	}
	if err := remove(d.progressName()); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(d.File))
}

// Forget has what came of an image so far be no beginning of what Receive is asked for next.
func (d Image) Forget() error { return remove(d.progressName()) }

// blocks writes the blocks of a stream to a file, and returns once its end is there and right. sum is of the
// heads of the blocks that are there.
func (d Image) blocks(
	ctx context.Context, in io.Reader, to *os.File, size int64, have received, sum hash.Hash, tell func(at, size int64),
) (err error) {
	chunk, err := unix.Mmap(-1, 0, copyChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(chunk) }()
	all, head, next := sha256.New(), make([]byte, headBytes), have.At
	from, before := next, sum.Sum(nil)
	tell(next, size)
	keep := func() error {
		if err := to.Sync(); err != nil {
			return err
		}
		state, err := sum.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			return err
		}
		have.At, have.Sum = next, state
		return atomicfile.WriteJSON(d.progressName(), have)
	}
	defer func() {
		if (errors.Is(err, ErrStream) || ctx.Err() != nil) && next > have.At && next < size {
			err = errors.Join(err, keep())
		}
	}()
	for kept := int64(0); ; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := fill(in, head); err != nil {
			return err
		}
		at, n := int64(binary.BigEndian.Uint64(head)), int64(binary.BigEndian.Uint32(head[8:]))
		if n == 0 {
			if at != size || !bytes.Equal(all.Sum(nil), head[12:]) {
				next = 0 // nobody knows which: it begins anew
				return errors.Join(fmt.Errorf("%w: blocks are missing", ErrStream), remove(d.progressName()))
			}
			// The sender's sum is of what it sent now. What came before has to be there as it came.
			there := sha256.New()
			if err := eachBlock(ctx, to, 0, from, chunk, func(head, _ []byte) error { there.Write(head); return nil }); err != nil {
				return err
			}
			if !bytes.Equal(there.Sum(nil), before) {
				next = 0
				return errors.Join(fmt.Errorf("%w: what came before is not there as it came", ErrStream), remove(d.progressName()))
			}
			return nil
		}
		if at < next || at%copyChunk != 0 || n != min(copyChunk, size-at) {
			return fmt.Errorf("%w: a block is where none can be", ErrStream)
		}
		if err := fill(in, chunk[:n]); err != nil {
			return err
		}
		if !bytes.Equal(blockHead(at, chunk[:n]), head) {
			return fmt.Errorf("%w: a block is not what was sent", ErrStream)
		}
		all.Write(head)
		if _, err := to.WriteAt(chunk[:n], at); err != nil {
			return err
		}
		sum.Write(head)
		next, kept = at+n, kept+n
		tell(next, size)
		if kept < keepEvery || next == size {
			continue
		}
		kept = 0
		if err := keep(); err != nil {
			return err
		}
	}
}

// fill reads all of data, or says that the stream was cut off.
func fill(in io.Reader, data []byte) error {
	if _, err := io.ReadFull(in, data); err != nil {
		return fmt.Errorf("%w: %w", ErrStream, err)
	}
	return nil
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
