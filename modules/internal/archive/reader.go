package archive

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Reader reads a file of a volume. It is for one goroutine.
type Reader struct {
	in     *bufio.Reader
	offset int64
	sum    hash.Hash
	before []byte // the sum before the last header
	header []byte // the last one, as it was read
	left   int64  // of its data
	pad    int64
}

// State is where a Reader was, so that another goes on there.
type State struct {
	Offset int64  `json:"offset"`           // in the file
	Sum    []byte `json:"sum"`              // of all before that, as SHA-256 keeps it
	Header []byte `json:"header,omitempty"` // of the member that was begun last; none: it is at the beginning
	Left   int64  `json:"left,omitempty"`   // what is still to come of that member's data
}

// NewReader reads from the beginning.
func NewReader(in io.Reader) *Reader {
	return &Reader{in: bufio.NewReaderSize(in, 64<<10), sum: sha256.New()}
}

// Resume reads on from s.Offset, where in is to begin. The header is that of the member begun last, nil if there is none.
func Resume(in io.Reader, s State) (*Reader, *Header, error) {
	r := NewReader(in)
	if err := r.sum.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.Sum); err != nil {
		return nil, nil, fmt.Errorf("go on at %d: %w", s.Offset, err)
	}
	r.offset = s.Offset
	if len(s.Header) == 0 {
		return r, nil, nil
	}
	of := NewReader(bytes.NewReader(s.Header))
	h, err := of.Next()
	if err != nil || s.Left < 0 || s.Left > h.DataBytes() {
		return nil, nil, fmt.Errorf("go on at %d: %w", s.Offset, cmp.Or(err, damaged("a member has not so much")))
	}
	r.header, r.left, r.pad = s.Header, s.Left, h.Padding()
	return r, h, nil
}

// State is where it is now.
func (r *Reader) State() (State, error) {
	sum, err := r.sum.(encoding.BinaryMarshaler).MarshalBinary()
	s := State{Offset: r.offset, Sum: sum}
	s.Header, s.Left = r.header, r.left
	return s, err
}

// Left is how much is still to be read of the last member's data.
func (r *Reader) Left() int64 { return r.left }

// SumBefore is the SHA-256 of all before the last header.
func (r *Reader) SumBefore() []byte { return r.before }

// take reads n octets that belong to a header.
func (r *Reader) take(n int64) ([]byte, error) {
	data := make([]byte, n)
	if _, err := io.ReadFull(r.in, data); err != nil {
		return nil, cut(err)
	}
	r.offset += n
	r.sum.Write(data)
	r.header = append(r.header, data...)
	return data, nil
}

// cut is err, where an end is none yet.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Read reads of the last member's data. io.EOF: that was all.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.in.Read(p[:min(int64(len(p)), r.left)])
	r.offset, r.left = r.offset+int64(n), r.left-int64(n)
	r.sum.Write(p[:n])
	if n > 0 {
		return n, nil
	}
	return 0, cut(err)
}

// Next reads the next header; what is left of the member before is left out. io.ErrUnexpectedEOF: it is cut off there.
// ErrFormat: it is none of ours.
func (r *Reader) Next() (*Header, error) {
	if _, err := io.Copy(io.Discard, struct{ io.Reader }{r}); err != nil {
		return nil, err
	}
	if r.pad > 0 {
		if _, err := r.take(r.pad); err != nil {
			return nil, err
		}
		r.pad = 0
	}
	r.before, r.header = r.sum.Sum(nil), nil
	first, err := r.take(block)
	if err != nil {
		return nil, err
	}
	kind, fields, err := decodeBlock(first)
	if err != nil {
		return nil, err
	}
	if kind != 'x' || fields.size > maxRecords {
		return nil, damaged("a member has no records")
	}
	text, err := r.take(fields.size)
	if err == nil {
		_, err = r.take(padding(fields.size))
	}
	if err != nil {
		return nil, err
	}
	records, err := parseRecords(text)
	if err != nil {
		return nil, err
	}
	second, err := r.take(block)
	if err != nil {
		return nil, err
	}
	h, size, err := decode(records, second)
	if err != nil {
		return nil, err
	}
	if h.Extents != nil {
		if size, err = r.extents(h, size); err != nil {
			return nil, err
		}
	}
	if size != h.DataBytes() {
		return nil, damaged("%d octets are said to be %d", h.DataBytes(), size)
	}
	r.left, r.pad = size, padding(size)
	return h, nil
}

// extents reads which parts a file has, and returns what is left of so many octets.
func (r *Reader) extents(h *Header, size int64) (int64, error) {
	var list []byte
	numbers := func() int { return bytes.Count(list, []byte("\n")) }
	want := -1
	for want < 0 || numbers() < want {
		if size < block || len(list) >= maxMap {
			return 0, damaged("the list of a file's parts has no end")
		}
		more, err := r.take(block)
		if err != nil {
			return 0, err
		}
		list, size = append(list, more...), size-block
		if want < 0 {
			digits, _, _ := bytes.Cut(list, []byte("\n"))
			n, err := strconv.Atoi(string(digits))
			if err != nil || n < 0 || n > MaxExtents+1 {
				return 0, damaged("a file has too many parts")
			}
			want = 2*n + 1
		}
	}
	lines := strings.Split(string(list), "\n")[1:want]
	end := int64(0)
	for i := 0; i < len(lines); i += 2 {
		at, err := strconv.ParseInt(lines[i], 10, 64)
		n, err2 := strconv.ParseInt(lines[i+1], 10, 64)
		if err != nil || err2 != nil || at < end || n < 0 || at > h.Size || n > h.Size-at {
			return 0, damaged("a file's parts are not in order")
		}
		if end = at + n; n > 0 {
			h.Extents = append(h.Extents, Extent{at, n})
		}
	}
	return size, nil
}

type fields struct {
	mode, uid, gid uint32
	size           int64
}

func decodeBlock(b []byte) (kind byte, f fields, err error) {
	octal := func(at, length int) (n int64) {
		text := strings.Trim(string(b[at:at+length]), " \x00")
		n, e := strconv.ParseInt(text, 8, 64)
		if e != nil || n < 0 {
			err = damaged("a header can't be read")
		}
		return n
	}
	sum := octal(148, 8)
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum -= int64(c)
	}
	mode, uid, gid := octal(100, 8), octal(108, 8), octal(116, 8)
	f = fields{uint32(mode) & 0o7777, uint32(uid), uint32(gid), octal(124, 12)}
	switch {
	case err != nil:
	case sum != 0 || string(b[257:262]) != "ustar":
		err = damaged("a header is not whole")
	case uid > 1<<32-2 || gid > 1<<32-2:
		err = damaged("an owner is none")
	}
	return b[156], f, err
}

// decode makes a header of what was read. Of a file with holes Extents is empty, and not nil.
func decode(records map[string]string, second []byte) (*Header, int64, error) {
	kind, f, err := decodeBlock(second)
	if err != nil {
		return nil, 0, err
	}
	h := &Header{Path: records["path"], Kind: kind, Target: records["linkpath"], Mode: f.mode, UID: f.uid, GID: f.gid}
	size := f.size
	number := func(key string) (n int64) {
		n, e := strconv.ParseInt(records[key], 10, 64)
		if e != nil || n < 0 {
			err = damaged("%s is no size", key)
		}
		return n
	}
	if records["size"] != "" {
		size = number("size")
	}
	h.Size = size
	if err == nil {
		h.ModTime, err = parseTime(records["mtime"])
	}
	if err != nil {
		return nil, 0, err
	}
	for key, value := range records {
		name, ok := strings.CutPrefix(key, xattrKey)
		if ok {
			h.Xattrs = append(h.Xattrs, Xattr{name, value})
		}
	}
	slices.SortFunc(h.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	if records["GNU.sparse.major"] != "" {
		h.Path, h.Size, h.Extents = records["GNU.sparse.name"], number("GNU.sparse.realsize"), []Extent{}
	}
	h.Path = strings.TrimSuffix(h.Path, "/")
	known := kind == File || kind == Link || kind == Symlink || kind == Folder || kind == Pipe
	switch {
	case err != nil:
	case !known:
		err = damaged("a member is of an unknown kind")
	case kind != File && (size != 0 || h.Extents != nil):
		err = damaged("something that is no file has data")
	case (h.Target == "") == (kind == Link || kind == Symlink):
		err = damaged("a link leads nowhere, or what is none somewhere")
	case h.Path == "" || strings.Contains(h.Path+h.Target, "\x00"):
		err = damaged("a member has no path")
	}
	return h, size, err
}
