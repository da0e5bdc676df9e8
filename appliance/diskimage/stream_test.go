package diskimage

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestStream: what is sent comes to be what it was, with its holes, also if it is cut off again and again; what
// is damaged on the way, or written to, never does.
func TestStream(t *testing.T) {
	dir := t.TempDir()
	from, to := Image{File: filepath.Join(dir, "from")}, Image{File: filepath.Join(dir, "to")}
	const size, blocks = 32 * mib, 4
	f, err := os.Create(from.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	for i := range blocks {
		at := i*7*mib + i*4096
		_, _ = rand.Read(want[at : at+5000])
		if _, err := f.WriteAt(want[at:at+5000], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	var whole bytes.Buffer
	if err := from.Send(t.Context(), &whole, 0); err != nil {
		t.Fatal(err)
	}
	// receive takes it with what change makes of it, and says at which offset it began.
	receive := func(change func(data []byte) []byte) (began int64, err error) {
		t.Helper()
		err = to.Receive(t.Context(), size, func(at int64) (io.ReadCloser, error) {
			began = at
			var all bytes.Buffer
			if err := from.Send(t.Context(), &all, at); err != nil {
				return nil, err
			}
			return io.NopCloser(bytes.NewReader(change(all.Bytes()))), nil
		}, func(int64, int64) {})
		return began, err
	}
	broken := func(what string, change func(data []byte) []byte) {
		t.Helper()
		if _, err := receive(change); !errors.Is(err, ErrStream) {
			t.Errorf("%s: %v, want ErrStream", what, err)
		}
		if _, err := os.Stat(to.File); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the image is there: %v", what, err)
		}
	}
	broken("nothing", func([]byte) []byte { return nil })
	broken("too large", func(data []byte) []byte { data[8] = 1; return data })
	broken("a bit of the first block is another", func(data []byte) []byte { data[100] ^= 1; return data })
	broken("the first block is missing", func(data []byte) []byte {
		return append(data[:24:24], data[24+headBytes+mib:]...)
	})
	broken("no end", func(data []byte) []byte { return data[:len(data)-1] })
	last := int64(-1)
	for n := 0; ; n++ {
		began, err := receive(func(data []byte) []byte { return data[:min(len(data), 2*mib)] })
		if began < last || n > 2*blocks {
			t.Fatalf("it began at %d, after %d", began, last)
		}
		if last = began; err == nil {
			break
		}
		if !errors.Is(err, ErrStream) {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(to.File)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("what came is another: %d octets, %v", len(got), err)
	}
	if n := to.taken(t); n > (2*blocks+1)*mib {
		t.Errorf("it takes %d MiB: the holes are gone", n>>20)
	}
	if left, _ := filepath.Glob(to.File + ".*"); left != nil {
		t.Errorf("left: %v", left)
	}
	if _, err := receive(func(data []byte) []byte { return data }); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another: %v", err)
	}
	// What came of another image, or of this one before it was written to, is no beginning of it.
	if err := os.Remove(to.File); err != nil {
		t.Fatal(err)
	}
	broken("half of it", func(data []byte) []byte { return data[:3*mib] })
	if _, err := f.WriteAt([]byte("more"), 0); err != nil {
		t.Fatal(err)
	}
	broken("it has changed", func(data []byte) []byte { return data })
	if began, err := receive(func(data []byte) []byte { return data }); err != nil || began != 0 {
		t.Errorf("after that it began at %d, %v", began, err)
	}
	// What came before is not there any more, or is another than what came: it begins anew.
	for what, spoil := range map[string]func() error{
		"gone":  func() error { return os.Remove(to.File + Partial) },
		"short": func() error { return os.Truncate(to.File+Partial, mib) },
		"zeros": func() error { return errors.Join(os.Truncate(to.File+Partial, 0), os.Truncate(to.File+Partial, size)) },
	} {
		if err := os.Remove(to.File); err != nil {
			t.Fatal(err)
		}
		if want, err = os.ReadFile(from.File); err != nil {
			t.Fatal(err)
		}
		broken("half of it", func(data []byte) []byte { return data[:3*mib] })
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if what == "zeros" { // which only shows at the end
			broken(what, func(data []byte) []byte { return data })
		}
		began, err := receive(func(data []byte) []byte { return data })
		if got, _ := os.ReadFile(to.File); err != nil || began != 0 || !bytes.Equal(got, want) {
			t.Errorf("%s: it began at %d, %v, and is another: %v", what, began, err, !bytes.Equal(got, want))
		}
	}
	changing := writerFunc(func(p []byte) (int, error) { return f.WriteAt([]byte("now"), 0) })
	if err := from.Send(t.Context(), io.MultiWriter(io.Discard, lenient{changing}), 0); !errors.Is(err, ErrChanged) {
		t.Errorf("while it is written to: %v", err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

type lenient struct{ io.Writer }

func (l lenient) Write(p []byte) (int, error) { _, err := l.Writer.Write(p); return len(p), err }
