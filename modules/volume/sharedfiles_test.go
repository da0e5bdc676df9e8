package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/internal/archive"
	"github.com/multipaas/multipaas/modules/wire"
)

// brickMounts has a brick for the volume that is in it. testing/e2e/storage has the real one.
type brickMounts struct{ dir string }

func (m brickMounts) Device(string, string) (uint64, error) { return 0, fs.ErrNotExist }

func (m brickMounts) Take(volume, machine string) (*os.File, error) {
	if m.dir == "" || volume != "0a1b" || machine != wire.ImportMount {
		return nil, fs.ErrNotExist
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return os.NewFile(uintptr(fd), m.dir), err
}

// asBrick makes of what is in a folder what GlusterFS would have in a brick. Times that clients see are a day later.
func (r *rig) asBrick(dir string) {
	r.t.Helper()
	hidden := filepath.Join(dir, glusterFolder)
	n := 0
	keep := func(path string) {
		var st unix.Stat_t
		r.must(unix.Lstat(path, &st))
		times := make([]byte, 57)
		times[0] = 1
		binary.BigEndian.PutUint64(times[25:], uint64(st.Mtim.Sec+86400))
		binary.BigEndian.PutUint64(times[33:], uint64(st.Mtim.Nsec))
		r.must(unix.Lsetxattr(path, glusterTimes, times, 0))
		r.must(unix.Lsetxattr(path, "trusted.gfid", fmt.Appendf(nil, "%016d", n), 0))
		if n++; st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink == 1 {
			r.must(os.Link(path, filepath.Join(dir, "..", fmt.Sprint("gfid", n))))
		} else if st.Mode&unix.S_IFMT != unix.S_IFDIR && strings.HasSuffix(path, "big") {
			r.must(os.Link(path, filepath.Join(dir, "..", "gfid-big")))
		}
	}
	r.must(filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			keep(path)
		}
		return err
	}))
	orphans := filepath.Join(dir, glusterOrphans+"0d7b2a40-0c0c-4f52-9d39-3a4c1a8f3b6e")
	var st unix.Stat_t // the root's times stay
	r.must(unix.Stat(dir, &st))
	r.must(errors.Join(os.Mkdir(hidden, 0o700), os.Mkdir(orphans, 0o700), os.WriteFile(filepath.Join(orphans, "x"), nil, 0o600)))
	all, err := filepath.Glob(filepath.Join(dir, "..", "gfid*"))
	r.must(err)
	for _, path := range all {
		r.must(os.Rename(path, filepath.Join(hidden, filepath.Base(path))))
	}
	r.must(unix.UtimesNanoAt(unix.AT_FDCWD, dir, []unix.Timespec{st.Atim, st.Mtim}, 0))
}

// TestSharedFiles: a shared volume goes out by its brick, as clients see it, and comes in as one, and as a local one, however often
// it is cut off.
func TestSharedFiles(t *testing.T) {
	a, b := newRig(t), newRig(t)
	a.ensure(320 * mib)
	brick := filepath.Join(a.disk().Mount, brickRoot)
	a.must(os.MkdirAll(brick, 0o755))
	a.fill(brick, 0)
	for _, name := range []string{"device", "socket"} {
		a.must(os.Remove(filepath.Join(brick, name)))
	}
	a.must(unix.Removexattr(filepath.Join(brick, "etc/empty"), aclAccess))
	a.must(unix.Removexattr(filepath.Join(brick, "etc"), aclDefault))
	when := []unix.Timespec{{Sec: 1600000000}, {Sec: 1600000001, Nsec: 5}}
	a.must(unix.UtimesNanoAt(unix.AT_FDCWD, brick, when, 0))
	before := tree(t, brick, 0)
	a.asBrick(brick)
	s := a.someSnapshot()
	s.Class = "shared"
	data := a.exported(s, 700_000)
	for _, none := range []string{"gfid", glusterFolder, "leftOut"} {
		if bytes.Contains(data, []byte(none)) {
			t.Errorf("the file has %s in it", none)
		}
	}
	if !bytes.Contains(data, []byte(`"class": "shared"`)) {
		t.Error("the file does not say what it is of")
	}
	var want []string
	for _, line := range before { // a day later
		f := strings.Split(line, " ")
		at := len(f)
		for i := range f {
			if strings.Contains(f[i], ":") && !strings.Contains(f[i], `"`) {
				at = min(at, i+1)
			}
		}
		var sec, nsec int64
		_, err := fmt.Sscanf(f[at], "%d.%d", &sec, &nsec)
		a.must(err)
		f[at] = fmt.Sprintf("%d.%09d", sec+86400, nsec)
		want = append(want, strings.Join(f, " "))
	}
	same := func(what string, got []string) {
		t.Helper()
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s has\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	v := importVolume(testFirst)
	if err := b.imports(v, data, 0); err != nil {
		t.Fatal(err)
	}
	same("a local volume", tree(t, b.disk().Mount, testFirst))
	b.must(b.Remove(t.Context(), wire.Volume{UID: testUID}))

	bricks, cfg := t.TempDir(), b.cfg
	b.must(unix.Mount("tmpfs", bricks, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { b.must(hostmount.Unmount(bricks)) })
	cfg.Bricks, cfg.Shared = bricks, brickMounts{}
	of := wire.Brick{Key: v.Key, Volume: "0a1b", UID: testUID, NetworkID: v.NetworkID, SizeBytes: v.SizeBytes}
	anew := func() {
		b.Host = New(cfg)
		b.must(b.EnsureBrick(t.Context(), of))
	}
	anew()
	v.Class, v.UID, v.Brick, v.FirstUID = "shared", "0a1b", testUID, 0
	said := func(state, message string) {
		t.Helper()
		if is, text := b.Imported(v); is != state || !strings.Contains(text, message) || strings.Contains(text, cfg.Dir) {
			t.Errorf("it is %s: %s", is, text)
		}
	}
	said(wire.ImportBegun, "0 of its file")
	send := func(data []byte, piece int) error {
		return b.Import(t.Context(), v, func(_ context.Context, from int64) (io.ReadCloser, error) {
			rest := data[from:]
			if piece > 0 && len(rest) > piece {
				return io.NopCloser(io.MultiReader(bytes.NewReader(rest[:piece]), failing{})), nil
			}
			return io.NopCloser(bytes.NewReader(rest)), nil
		})
	}
	if err := send(data, 0); err == nil || !strings.Contains(err.Error(), "not mounted") {
		t.Errorf("it is not mounted, and imported: %v", err)
	}
	root := filepath.Join(bricks, testUID, brickRoot)
	cfg.Shared = brickMounts{root}
	anew()
	b.must(os.MkdirAll(filepath.Join(root, "of another", "try"), 0o700))
	b.must(os.WriteFile(filepath.Join(root, ".import-0a1b"), nil, 0o600)) // of one that was killed
	for try := 0; ; try++ {
		err := send(data, 600_000)
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "goes on where it ended") || try > 200 {
			t.Fatal(err)
		}
		if try%3 == 1 {
			anew()
		}
	}
	said(wire.ImportDone, "")
	same("a shared volume", tree(t, root, 0))
	anew()
	said(wire.ImportDone, "")
	if err := send(data, 0); err == nil || !strings.Contains(err.Error(), "there already") {
		t.Errorf("imported once more: %v", err)
	}
	for what, h := range map[string]archive.Header{
		"access control lists":   {Path: "data/a", Kind: archive.File, Xattrs: []archive.Xattr{{Name: aclAccess, Value: "\x02\x00\x00\x00"}}},
		"called .import-0a1b":    {Path: "data/.import-0a1b", Kind: archive.Folder, Mode: 0o755},
		"called " + ".glusterfs": {Path: "data/.glusterfs", Kind: archive.Folder, Mode: 0o755},
	} {
		b.must(os.Remove(b.place(testUID).at(importNote)))
		h.ModTime = time.Unix(1, 0)
		if err := send(made(t, h), 0); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		said(wire.ImportBroken, what)
	}
	// The volume goes, and all that was known with it.
	b.must(b.RemoveBrick(t.Context(), of))
	if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
