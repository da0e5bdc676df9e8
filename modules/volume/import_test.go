package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/internal/archive"
	"github.com/multipaas/multipaas/modules/wire"
)

// made is a file with these members, of which each file has x in it.
func made(t *testing.T, members ...archive.Header) []byte {
	t.Helper()
	out, err := archive.JSON(archive.AboutName, fileWhen, archive.About{Format: archive.Format})
	for _, h := range members {
		head, e := h.Encode()
		if e != nil {
			t.Fatal(e)
		}
		out = append(append(out, head...), bytes.Repeat([]byte("x"), int(h.DataBytes()))...)
		out = append(out, make([]byte, h.Padding())...)
	}
	sum := sha256.Sum256(out)
	end, e := archive.Trailer(sum[:], fileWhen)
	if err != nil || e != nil {
		t.Fatal(err, e)
	}
	return append(out, end...)
}

// TestHostileFiles: whoever made the file, nothing is written but in the volume, which nobody gets.
func TestHostileFiles(t *testing.T) {
	r := newRig(t)
	v := importVolume(testFirst)
	r.must(r.Ensure(t.Context(), v))
	outside := filepath.Join(t.TempDir(), "outside")
	r.must(os.Mkdir(outside, 0o755))
	up := strings.Repeat("../", 12)
	file := func(path string) archive.Header {
		return archive.Header{Path: path, Kind: archive.File, Mode: 0o644, ModTime: fileWhen, Size: 10}
	}
	link := func(kind byte, path, to string) archive.Header {
		return archive.Header{Path: path, Kind: kind, Target: to, ModTime: fileWhen}
	}
	folder := func(path string) archive.Header {
		return archive.Header{Path: path, Kind: archive.Folder, Mode: 0o755, ModTime: fileWhen}
	}
	with := func(h archive.Header, name string) archive.Header {
		h.Xattrs = []archive.Xattr{{Name: name, Value: "\x01\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}
		return h
	}
	whole := made(t, folder("data"), file("data/a"))
	for name, data := range map[string][]byte{
		"a path that leads up":            made(t, file("data/"+up+outside[1:]+"/a")),
		"a path from the root":            made(t, file(outside+"/a")),
		"a path beside":                   made(t, file("database/a")),
		"a path with a step up in it":     made(t, folder("data/d"), file("data/d/../../a")),
		"a symlink that is walked by":     made(t, link(archive.Symlink, "data/out", outside), file("data/out/a")),
		"a symlink up that is walked by":  made(t, link(archive.Symlink, "data/out", up+outside[1:]), file("data/out/a")),
		"a folder in a symlink":           made(t, link(archive.Symlink, "data/out", outside), folder("data/out/d")),
		"a folder that is a symlink":      made(t, link(archive.Symlink, "data/out", outside), folder("data/out")),
		"a link to a file outside":        made(t, link(archive.Link, "data/a", "data/"+up+"etc/passwd")),
		"a link by a symlink":             made(t, link(archive.Symlink, "data/etc", "/etc"), link(archive.Link, "data/a", "data/etc/passwd")),
		"a link to a symlink":             made(t, link(archive.Symlink, "data/p", "/etc/passwd"), link(archive.Link, "data/a", "data/p")),
		"a link to a folder":              made(t, folder("data/d"), link(archive.Link, "data/a", "data/d")),
		"a link to itself":                made(t, file("data/a"), link(archive.Link, "data/a", "data/a")),
		"a folder that is not there":      made(t, file("data/d/a")),
		"a name that is too long":         made(t, file("data/"+strings.Repeat("a", 300))),
		"a path that is too long":         made(t, file("data/"+strings.Repeat("a", 5000))),
		"a capability":                    made(t, with(file("data/a"), "security.capability")),
		"an attribute of the host's":      made(t, with(file("data/a"), "trusted.overlay.opaque")),
		"a list that is none":             made(t, with(file("data/a"), aclAccess)),
		"no beginning":                    whole[bytes.Index(whole, []byte("data/"))/512*512-512:],
		"another sum":                     bytes.Replace(whole, []byte("xxxxxxxxxx"), []byte("xxxxyxxxxx"), 1),
		"an end that is not at the end":   bytes.Replace(whole, []byte(`"sha256": "`), []byte(`"sha256": "0`), 1),
		"a root that is a file":           made(t, archive.Header{Path: "data", Kind: archive.File, ModTime: fileWhen}),
		"another format":                  bytes.Replace(whole, []byte(archive.Format), []byte("multipaas-volume/9"), 1),
		"something else":                  bytes.Repeat([]byte("no tar\n"), 1000),
		"a file in the place of a folder": made(t, folder("data/d"), file("data/d/a"), file("data/d")),
	} {
		r.must(os.RemoveAll(r.place(testUID).at(importNote)))
		there, err := os.ReadDir(r.disk().Mount)
		r.must(err)
		for _, f := range there { // of the one before
			r.must(os.RemoveAll(filepath.Join(r.disk().Mount, f.Name())))
		}
		err = r.imports(v, data, 0)
		if err == nil || !strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), r.cfg.Dir) {
			t.Errorf("%s: %v", name, err)
		}
		if seen := r.seen(); seen.Import != wire.ImportBroken || !strings.Contains(seen.Message, "delete the volume") {
			t.Errorf("%s: it is seen as %+v", name, seen)
		}
		if again := r.imports(v, whole, 0); again == nil { // also another file
			t.Errorf("%s: it is gone on with", name)
		}
		v := v
		v.Importing, v.Made = false, true
		if err := r.Ensure(t.Context(), v); err == nil {
			t.Errorf("%s: machines have it", name)
		}
	}
	if found, err := os.ReadDir(outside); err != nil || len(found) > 0 {
		t.Errorf("outside: %v, %v", found, err)
	}
	r.must(r.Remove(t.Context(), v))
}

// TestImportAnew: what was unpacked after it was taken down last, when the host was killed, is unpacked again to the same;
// and one whose disk is lost begins at the beginning.
func TestImportAnew(t *testing.T) {
	r := newRig(t)
	v := importVolume(testFirst)
	head := func(h archive.Header) archive.Header { h.ModTime = fileWhen; return h }
	data := made(t, head(archive.Header{Path: "data", Kind: archive.Folder, Mode: 0o755}),
		head(archive.Header{Path: "data/f", Kind: archive.Folder, Mode: 0o500}),
		head(archive.Header{Path: "data/f/a", Kind: archive.File, Mode: 0o400, Size: 3 << 20}),
		head(archive.Header{Path: "data/f/b", Kind: archive.Link, Target: "data/f/a"}),
		head(archive.Header{Path: "data/f/c", Kind: archive.Symlink, Target: "a"}),
		head(archive.Header{Path: "data/f/p", Kind: archive.Pipe, Mode: 0o640}),
		head(archive.Header{Path: "data/f", Kind: archive.Folder, Mode: 0o500}),
		head(archive.Header{Path: "data/z", Kind: archive.File, Mode: 0o600, Size: 2 << 20}))
	note := r.place(testUID).at(importNote)
	cut := func(n int) importing { // in a, then in z
		r.must(r.Ensure(t.Context(), v))
		err := r.Import(t.Context(), v, func(_ context.Context, from int64) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(data[from:n]), failing{})), nil
		})
		if err == nil || !strings.Contains(err.Error(), "goes on where it ended") {
			t.Fatal(err)
		}
		now, err := r.place(testUID).importing()
		r.must(err)
		return now
	}
	first := cut(1 << 20)
	if second := cut(len(data) - 1<<20); second.Offset <= first.Offset || first.Offset == 0 {
		t.Fatalf("it was at %d, and then at %d", first.Offset, second.Offset)
	}
	r.must(atomicfile.WriteJSON(note, first)) // as if it had been killed before it took down more
	r.Host = newHost(r.cfg.Dir, r.cfg.Machines, debian(t))
	if err := r.imports(v, data, 0); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(tree(t, r.disk().Mount, testFirst), "\n")
	want := fmt.Sprintf("3145728 f/a %x", sha256.Sum256(bytes.Repeat([]byte("x"), 3<<20)))
	if strings.Count(got, want) != 2 || !strings.Contains(got, `"f" 40500 0:0 1700000000.000005000`) || !strings.Contains(got, `"f/p" 10640 0:0`) {
		t.Errorf("there is\n%s", got)
	}
	r.must(r.Remove(t.Context(), v))

	cut(1 << 20)
	r.must(r.endFile(testUID, true))
	r.must(hostmount.Unmount(r.disk().Mount))
	r.must(os.Remove(r.disk().File))
	r.must(r.Ensure(t.Context(), v))
	if now, err := r.place(testUID).importing(); now.Offset != 0 || err != nil {
		t.Errorf("of a lost disk it goes on at %d: %v", now.Offset, err)
	}
	r.must(r.Remove(t.Context(), v))
}

// TestImportOnFullDisk: that the disk of the host is full is not the volume's end.
func TestImportOnFullDisk(t *testing.T) {
	for err, want := range map[error]string{
		unix.ENOSPC:                              "more in it than the volume holds",
		fmt.Errorf("%w: %w", errCut, errOdd):     "damaged",
		onPool(unix.ENOSPC):                      "",
		errors.Join(errCut, onPool(unix.EDQUOT)): "",
		errCut:                                   "",
	} {
		if got := brokenBy(err); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%v: it is broken by %q, want %q", err, got, want)
		}
	}
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("full", dir, "tmpfs", 0, "size=4k"))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	must(os.WriteFile(filepath.Join(dir, "all"), make([]byte, 4096), 0o600))
	root, err := os.Open(dir)
	must(err)
	defer root.Close()
	u := &unpacker{place: place(dir), root: root, in: archive.NewReader(strings.NewReader(""))}
	err = u.checkpoint(true)
	if !errors.Is(err, unix.ENOSPC) || brokenBy(err) != "" || err.Error() != poolFull {
		t.Errorf("where it is can't be taken down: %v", err)
	}
	u.mark = "shared"
	if err := u.fullShared(unix.ENOSPC); brokenBy(err) == "" {
		t.Errorf("the volume is full, and it goes on: %v", err)
	}
	must(os.Truncate(filepath.Join(dir, "all"), 0))
	if err := u.fullShared(unix.ENOSPC); brokenBy(err) != "" || !strings.Contains(err.Error(), "one of its copies is full") {
		t.Errorf("a host's disk is full, and not the volume: %v", err)
	}
}

// TestImportTwice: whether all is there already is asked by the try that has the volume, and not before it has it.
func TestImportTwice(t *testing.T) {
	r := newRig(t)
	p := r.place(testUID)
	r.must(os.MkdirAll(string(p), 0o700))
	r.must(unix.Mkfifo(p.at(recordName), 0o600)) // who reads it waits
	done := make(chan error)
	go func() {
		done <- r.Import(t.Context(), importVolume(testFirst), func(context.Context, int64) (io.ReadCloser, error) {
			return nil, errors.New("it is to be emptied")
		})
	}()
	f, err := os.OpenFile(p.at(recordName), os.O_WRONLY, 0)
	r.must(err)
	r.mu.Lock()
	if w := r.files[testUID]; w == nil || len(w.working) == 0 {
		t.Error("its record is read before the volume is its own")
	}
	r.mu.Unlock()
	r.must(json.NewEncoder(f).Encode(record{UID: testUID, Owned: true, Import: importDone}))
	r.must(f.Close())
	if err := <-done; err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("once more: %v", err)
	}
}
