package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/wire"
)

// someSnapshot is one of the volume there is.
func (r *rig) someSnapshot() wire.Volume {
	r.t.Helper()
	s := wire.Volume{Key: "acme/web/shop/before", UID: "0a1b-snapshot", NetworkID: "00002a", Class: "local", Source: testUID,
		Snapshot: true, SizeBytes: 320 * mib}
	for {
		if err := r.Ensure(r.t.Context(), s); err == nil {
			return s
		} else if !strings.Contains(err.Error(), copyingText) {
			r.t.Fatal(err)
		}
	}
}

// TestExportTwice: what is in memory of a file, and what was preallocated behind it, change nothing of what is exported. A try that
// fails when its turn is over, but by something else, fails.
func TestExportTwice(t *testing.T) {
	r := newRig(t)
	r.ensure(320 * mib)
	f, err := os.Create(filepath.Join(r.disk().Mount, "preallocated"))
	r.must(err)
	_, err = f.Write(make([]byte, 64<<10))
	r.must(errors.Join(err, unix.Fallocate(int(f.Fd()), 0, 0, 4<<20), f.Truncate(8<<20), f.Close()))
	f, err = os.Create(filepath.Join(r.disk().Mount, "open"))
	r.must(err)
	defer f.Close()
	for at := int64(64 << 10); at < 2<<20; at += 1 << 20 {
		_, err := f.WriteAt(bytes.Repeat([]byte("x"), 1<<20), at)
		r.must(errors.Join(err, f.Sync()))
	}
	s := r.someSnapshot()
	r.must(f.Close())
	data := r.exported(s, 1<<30)
	_, err = os.ReadFile(filepath.Join(r.place(s.UID).image().Mount, "preallocated"))
	r.must(err)
	if again := r.exported(s, 1<<30); !bytes.Equal(again, data) {
		t.Errorf("read once more it is another file: %d octets, and %d before", len(again), len(data))
	}
	r.must(r.endFile(s.UID, false))
	if again := r.exported(s, 1<<30); !bytes.Equal(again, data) {
		t.Errorf("mounted anew it is another file: %d octets, and %d before", len(again), len(data))
	}

	ends := writer(func([]byte) (int, error) {
		r.files[s.UID].end()
		return 1, errors.New("broken")
	})
	err = r.Export(t.Context(), s, wire.File{UID: s.UID, TakenAt: fileWhen}, ends)
	if err == nil || r.files[s.UID].walk != nil {
		t.Errorf("broken when its turn is over: %v", err)
	}
	r.must(r.endFile(s.UID, false))
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// checks is a context that is done once it was asked so often.
type checks struct {
	context.Context
	left int
}

func (c *checks) Err() error {
	if c.left--; c.left < 0 {
		return context.DeadlineExceeded
	}
	return nil
}

// TestWalk: wherever a turn ends, what comes then goes on there, and nothing is left out, nor counted twice.
func TestWalk(t *testing.T) {
	r := newRig(t)
	r.ensure(320 * mib)
	at := func(name string) string { return filepath.Join(r.disk().Mount, name) }
	r.must(os.Mkdir(at("folder"), 0o755))
	r.must(unix.Setxattr(at("folder"), "user.a=b", []byte("c"), 0))
	f, err := os.Create(at("folder/pieces"))
	r.must(err)
	for i := range int64(600) {
		_, err = f.WriteAt([]byte("x"), i*8192)
		r.must(err)
	}
	r.must(errors.Join(f.Sync(), f.Close()))
	for i := range 20 {
		r.must(os.WriteFile(at(fmt.Sprint("folder/", i)), []byte("text"), 0o600))
		r.must(os.Link(at(fmt.Sprint("folder/", i)), at(fmt.Sprint("same", i))))
	}
	r.must(unix.Mkfifo(at("pipe"), 0o600))
	walk := func() *walker {
		root, err := os.Open(r.disk().Mount)
		r.must(err)
		w, err := newWalker(root, true, wire.Volume{}, wire.File{TakenAt: fileWhen})
		r.must(err)
		t.Cleanup(w.close)
		return w
	}
	later := time.Now().Add(time.Hour)
	var whole, out bytes.Buffer
	w := walk()
	r.must(w.run(t.Context(), 0, later, &whole))
	for _, want := range []string{`"attributes": 1`, fmt.Sprintf(`"members": %d`, 1+1+1+40+1)} {
		if !bytes.Contains(whole.Bytes(), []byte(want)) {
			t.Errorf("there is no %s in %q", want, whole.Bytes()[max(0, whole.Len()-1500):])
		}
	}
	if whole.Len() > 4<<20 || w.named != 0 {
		t.Errorf("it has %d octets, and %d of names are remembered", whole.Len(), w.named)
	}

	w = walk()
	for try := 0; ; try++ {
		err := w.run(&checks{t.Context(), 6 + try%4}, int64(out.Len()), later, &out)
		if err == nil {
			break
		}
		if err != context.DeadlineExceeded || try > 1000 {
			t.Fatal(try, err)
		}
	}
	if !bytes.Equal(out.Bytes(), whole.Bytes()) {
		t.Errorf("ended often it is another file, of %d octets and not %d", out.Len(), whole.Len())
	}

	out.Reset()
	w = walk()
	from := int64(whole.Len() / 2)
	if err := w.run(t.Context(), from, time.Now(), &out); err != errFound || w.at != from || out.Len() > 0 {
		t.Errorf("too late it is at %d, and %d octets were written: %v", w.at, out.Len(), err)
	}
	r.must(w.run(t.Context(), from, later, &out))
	if !bytes.Equal(out.Bytes(), whole.Bytes()[from:]) {
		t.Error("once it has found the place it goes on elsewhere")
	}

	r.must(os.MkdirAll(at("deep"+strings.Repeat("/d", maxDepth)), 0o755))
	w = walk()
	if err := w.run(t.Context(), 0, later, &out); err == nil || !strings.Contains(err.Error(), "deep") {
		t.Errorf("of folders that are too deep it says %v", err)
	}
}
