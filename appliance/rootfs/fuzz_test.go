package rootfs

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// FuzzLayer unpacks any bytes as a layer of an image, twice into one folder as
// two layers would be: nothing gets out, no device gets in, and no more is
// written than was read.
func FuzzLayer(f *testing.F) {
	add := func(headers ...*tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			h.Size = 0
			if h.Typeflag == tar.TypeReg {
				h.Size = 3
			}
			if err := w.WriteHeader(h); err != nil {
				f.Fatal(err)
			}
			if h.Size > 0 {
				if _, err := w.Write([]byte("abc")); err != nil {
					f.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	add(&tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "../x"}, &tar.Header{Name: "a/b", Typeflag: tar.TypeReg, Mode: 0o4755})
	add(&tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1777}, &tar.Header{Name: "d/.wh..wh..opq", Typeflag: tar.TypeReg}, &tar.Header{Name: "d/.wh...", Typeflag: tar.TypeReg})
	add(&tar.Header{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, &tar.Header{Name: "p", Typeflag: tar.TypeFifo})
	add(&tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "/../../etc/passwd"}, &tar.Header{Name: "./", Typeflag: tar.TypeDir})
	add(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"path": "../../y", "mtime": "9999999999999"}})
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		began := time.Now()
		for range 2 {
			_ = untar(t.Context(), root, tar.NewReader(bytes.NewReader(data))) // refused or not
		}
		if took := time.Since(began); took > time.Minute {
			t.Errorf("%d bytes took %v", len(data), took)
		}
		if found, _ := os.ReadDir(parent); len(found) != 1 {
			t.Errorf("beside the image: %v", found)
		}
		var size int64
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				t.Fatal(err)
			}
			if d.Type()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket) != 0 {
				t.Errorf("%s is %v", path, d.Type())
			}
			if d.Type().IsRegular() {
				size += info.Size()
			}
			return nil
		})
		// A sparse file may say that it is larger than what came: it must not be.
		if size > 2*int64(len(data)) {
			t.Errorf("%d bytes unpack to %d", len(data), size)
		}
	})
}
