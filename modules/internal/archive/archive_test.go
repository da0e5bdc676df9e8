package archive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

var when = time.Unix(1700000000, 123456789)

func members() []Header {
	return []Header{
		{Path: "data", Kind: Folder, Mode: 0o1777, ModTime: when},
		{Path: "data/plain", Kind: File, Mode: 0o4755, UID: 1000, GID: 65535, ModTime: when, Size: 700,
			Xattrs: []Xattr{{"system.posix_acl_access", "\x02\x00\x00\x00\n="}, {"user.a", "b"}}},
		{Path: "data/" + strings.Repeat("ü\n", 300), Kind: File, ModTime: time.Unix(-5, 250000000)},
		{Path: "data/holes", Kind: File, ModTime: when, Size: 1 << 50, Extents: []Extent{{4096, 600}, {1 << 40, 5}}},
		{Path: "data/empty", Kind: File, ModTime: when, Size: 1 << 20, Extents: []Extent{}},
		{Path: "data/other", Kind: Link, Target: "data/plain", ModTime: when},
		{Path: "data/to", Kind: Symlink, Target: "../../etc/passwd", ModTime: when, Mode: 0o777},
		{Path: "data/pipe", Kind: Pipe, ModTime: when},
	}
}

// whole is a file with all of them, in which the data is x.
func whole(t testing.TB) []byte {
	t.Helper()
	out, err := JSON(AboutName, when, About{Format: Format})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range members() {
		head, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, head...), bytes.Repeat([]byte("x"), int(h.DataBytes()))...)
		out = append(out, make([]byte, h.Padding())...)
	}
	sum := sha256.Sum256(out)
	end, err := Trailer(sum[:], when)
	if err != nil {
		t.Fatal(err)
	}
	return append(out, end...)
}

// TestRoundTrip: what is written is read, by this and by archive/tar, also by a reader that goes on where another was cut off.
func TestRoundTrip(t *testing.T) {
	data := whole(t)
	r := NewReader(bytes.NewReader(data))
	var seen []Header
	for {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Path == EndName {
			break
		}
		if h.Path != AboutName {
			seen = append(seen, *h)
		}
		for step := int64(7); h.DataBytes() > step; step += 500 {
			if n, err := io.CopyN(io.Discard, r, min(step, r.left)); err != nil {
				t.Fatal(n, err)
			}
			s, err := r.State()
			if err != nil {
				t.Fatal(err)
			}
			again, same, err := Resume(bytes.NewReader(data[s.Offset:]), s)
			if err != nil || same == nil || !same.ModTime.Equal(h.ModTime) || same.Path != h.Path {
				t.Fatalf("going on in %s: %+v, %v", h.Path, same, err)
			}
			r = again
		}
	}
	text, err := io.ReadAll(r)
	if want := sha256.Sum256(data[:bytes.Index(data, text)-3*block]); err != nil || !bytes.Equal(r.SumBefore(), want[:]) {
		t.Errorf("the sum is %x, want %x: %v", r.SumBefore(), want, err)
	}
	for i, want := range members() {
		if !seen[i].ModTime.Equal(want.ModTime) {
			t.Errorf("%q: %v, want %v", want.Path, seen[i].ModTime, want.ModTime)
		}
		seen[i].ModTime = want.ModTime
		if !reflect.DeepEqual(seen[i], want) {
			t.Errorf("read %+v, want %+v", seen[i], want)
		}
	}
	theirs := tar.NewReader(bytes.NewReader(data))
	for _, want := range append([]Header{{Path: AboutName, Kind: File, Size: -1, ModTime: when}}, members()...) {
		h, err := theirs.Next()
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSuffix(h.Name, "/") != want.Path || h.Typeflag != want.Kind || h.Linkname != want.Target ||
			!h.ModTime.Equal(want.ModTime) || want.Size >= 0 && h.Size != want.Size || h.Uid != int(want.UID) {
			t.Errorf("archive/tar has %+v, want %+v", h, want)
		}
	}
}

// FuzzReader: whatever is read, it ends, and what was read once is read again where that is gone on with.
func FuzzReader(f *testing.F) {
	data := whole(f)
	f.Add(data)
	f.Add(data[:3000])
	for _, change := range [][2]string{{"GNU.sparse.realsize=1125899906842624", "GNU.sparse.realsize=-125899906842624"},
		{"4096\n600", "4096\n-60"}, {"data/plain", "../../../x"}} {
		f.Add(bytes.Replace(data, []byte(change[0]), []byte(change[1]), 1))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		for {
			h, err := r.Next()
			if err != nil {
				if !errors.Is(err, ErrFormat) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatal(err)
				}
				return
			}
			if h.DataBytes() < 0 || len(h.Extents) > MaxExtents {
				t.Fatalf("%+v", h)
			}
			if _, err := h.Encode(); err != nil && len(h.Xattrs) == 0 && len(h.Path)+len(h.Target) < maxRecords/4 {
				t.Fatalf("%+v: %v", h, err)
			}
			s, err := r.State()
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Header) > 0 {
				if _, _, err := Resume(bytes.NewReader(data[s.Offset:]), s); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
