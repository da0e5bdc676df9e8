package volume

import (
	"context"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/internal/archive"
)

// What linux/fiemap.h says of the one call that tells where a file has data, and is sure: SEEK_DATA takes what was
// preallocated for data once its pages were read, so that who goes through a file twice is told two things; and st_blocks has
// what was preallocated behind the end.
const (
	fiemapCall    = 0xc020_660b // FS_IOC_FIEMAP, _IOWR('f', 11, 32 bytes)
	fiemapSync    = 1           // FIEMAP_FLAG_SYNC
	partLast      = 1           // FIEMAP_EXTENT_LAST
	partUnwritten = 0x800       // FIEMAP_EXTENT_UNWRITTEN: it reads as a hole does
)

// fiemap is struct fiemap, with room for some parts of a file.
type fiemap struct {
	start, length          uint64
	flags, mapped, room, _ uint32
	parts                  [256]fiemapPart
}

// fiemapPart is struct fiemap_extent.
type fiemapPart struct {
	offset, _, length, _, _ uint64
	flags, _, _, _          uint32
}

// extents are the parts of a file that are no holes; nil: it has none. If there are too many, small holes are none. They are the
// same however often the file was read, and wherever ctx ended it before.
func (w *walker) extents(ctx context.Context, file *os.File, size int64) ([]archive.Extent, error) {
	all, least, m := []archive.Extent{}, int64(0), &w.mapped
	for at, last := int64(0), false; at < size && !last; {
		m.start, m.length, m.flags, m.room = uint64(at), uint64(size-at), fiemapSync, uint32(len(m.parts))
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fiemapCall, uintptr(unsafe.Pointer(m))); errno != 0 {
			return nil, &os.PathError{Op: "fiemap", Path: file.Name(), Err: errno}
		}
		if m.mapped == 0 {
			break // nothing more
		}
		for _, e := range m.parts[:m.mapped] {
			begin, end := max(int64(e.offset), at), min(int64(e.offset+e.length), size)
			if last = e.flags&partLast != 0 || begin >= size; begin >= size {
				break
			}
			if end <= begin {
				return nil, &os.PathError{Op: "fiemap", Path: file.Name(), Err: errors.New("its parts are not in order")}
			}
			if at = end; e.flags&partUnwritten != 0 {
				continue
			}
			all = join(append(all, archive.Extent{Offset: begin, Size: end - begin}), len(all), least)
			for len(all) >= archive.MaxExtents {
				least = max(2*least, 64<<10)
				all = join(all, 1, least)
			}
		}
		if err := w.rest(ctx); err != nil {
			return nil, err
		}
	}
	if size == 0 || len(all) == 1 && all[0] == (archive.Extent{Size: size}) {
		return nil, nil
	}
	return all, nil
}

// join makes one of parts, from the one with this index on, between which are holes of less than so many octets.
func join(all []archive.Extent, from int, least int64) []archive.Extent {
	out := all[:max(from, 1)]
	for _, e := range all[len(out):] {
		last := &out[len(out)-1]
		if end := last.Offset + last.Size; e.Offset-end < least || e.Offset == end {
			last.Size = e.Offset + e.Size - last.Offset
		} else {
			out = append(out, e)
		}
	}
	return out
}
