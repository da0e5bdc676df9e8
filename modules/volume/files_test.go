package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/internal/archive"
	"github.com/multipaas/multipaas/modules/wire"
)

var fileWhen = time.Unix(1700000000, 5000).UTC()

// exported is the file of a snapshot, read piece by piece: each try ends after so many octets, and some by its host's end.
func (r *rig) exported(v wire.Volume, piece int) []byte {
	r.t.Helper()
	f := wire.File{UID: v.UID, Volume: "acme/web/shop/data", Class: v.Class, TakenAt: fileWhen}
	var all bytes.Buffer
	for try := 0; ; try++ {
		f.From = int64(all.Len())
		err := r.Export(r.t.Context(), v, f, &shortWriter{&all, piece})
		if err != nil && int64(all.Len()) == f.From {
			r.t.Fatal(err)
		}
		if err == nil && int64(all.Len()) == f.From {
			break
		}
		if try%3 == 1 { // as one that was killed, and has begun anew
			r.Host = newHost(r.cfg.Dir, r.cfg.Machines, debian(r.t))
		}
	}
	sum := sha256.Sum256(all.Bytes())
	end, err := archive.Trailer(sum[:], fileWhen)
	r.must(err)
	return append(all.Bytes(), end...)
}

// importVolume is a volume that is made from a file.
func importVolume(first uint32) wire.Volume {
	v := testVolume(320 * mib)
	v.Importing, v.FirstUID = true, first
	return v
}

// imports sends a file, of which each try is cut off after so many octets; 0 is never.
func (r *rig) imports(v wire.Volume, data []byte, piece int) error {
	r.t.Helper()
	r.must(r.Ensure(r.t.Context(), v))
	for try := 0; ; try++ {
		froms := int64(0)
		err := r.Import(r.t.Context(), v, func(_ context.Context, from int64) (io.ReadCloser, error) {
			froms = from
			rest := data[from:]
			if piece > 0 && len(rest) > piece {
				return io.NopCloser(io.MultiReader(bytes.NewReader(rest[:piece]), failing{})), nil
			}
			return io.NopCloser(bytes.NewReader(rest)), nil
		})
		if err == nil || piece == 0 || !strings.Contains(err.Error(), "goes on where it ended") {
			return err
		}
		if try%3 == 1 {
			r.Host = newHost(r.cfg.Dir, r.cfg.Machines, debian(r.t))
			r.must(r.Ensure(r.t.Context(), v))
		}
		if try > 200 {
			r.t.Fatalf("it does not come to an end: %d: %v", froms, err)
		}
	}
}

// shortWriter takes so much.
type shortWriter struct {
	io.Writer
	left int
}

func (s *shortWriter) Write(p []byte) (int, error) {
	n, _ := s.Writer.Write(p[:min(len(p), s.left)])
	if s.left -= n; n < len(p) {
		return n, errors.New("cut off here")
	}
	return n, nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut off here") }

// tree says what is in a folder: owners from first on, rights, times, attributes, data, and which names are of one file.
func tree(t *testing.T, dir string, first uint32) (all []string) {
	t.Helper()
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err != nil {
			return err
		}
		at, _ := filepath.Rel(dir, path)
		say := fmt.Sprintf("%q %o %d:%d %d.%09d", at, st.Mode, st.Uid-first, st.Gid-first, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if inodes[st.Ino] == "" {
				inodes[st.Ino] = at
			}
			say += fmt.Sprintf(" %d %s", st.Size, inodes[st.Ino])
			if st.Size < 1<<30 {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				say += fmt.Sprintf(" %x", sha256.Sum256(data))
			} else if st.Blocks*512 > 1<<20 {
				say += " without holes"
			}
		case unix.S_IFLNK:
			to, _ := os.Readlink(path)
			say += " " + to
		}
		names := make([]byte, 1<<10)
		if n, err := unix.Llistxattr(path, names); err == nil {
			for name := range strings.SplitSeq(strings.Trim(string(names[:n]), "\x00"), "\x00") {
				value := make([]byte, 1<<10)
				if n, err := unix.Lgetxattr(path, name, value); err == nil {
					value = value[:n]
					if acl, ok := changeACL(value, owners{first}.inside); ok {
						value = acl
					}
					if strings.HasPrefix(name, "trusted.SGI_ACL") { // the same, as XFS has it
						continue
					}
					say += fmt.Sprintf(" %s=%x", name, value)
				}
			}
		}
		all = append(all, say)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fill makes all sorts of files in a volume, as its workspace does.
func (r *rig) fill(dir string, first uint32) {
	r.t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"etc", "etc/deep", "locked"} {
		r.must(os.Mkdir(at(d), 0o755))
	}
	big := bytes.Repeat([]byte("some text, and more of it\n"), 100_000)
	for name, data := range map[string][]byte{"etc/big": big, "etc/empty": nil, "etc/deep/new\nline": []byte("x"),
		"locked/file": bytes.Repeat([]byte("y"), 512)} {
		r.must(os.WriteFile(at(name), data, 0o640))
	}
	r.must(os.Link(at("etc/big"), at("locked/same")))
	r.must(os.Symlink("../../../etc/passwd", at("etc/away")))
	r.must(unix.Mkfifo(at("pipe"), 0o600))
	for _, name := range []string{"device", "socket"} {
		mode := map[string]uint32{"device": unix.S_IFCHR, "socket": unix.S_IFSOCK}[name]
		r.must(unix.Mknod(at(name), mode|0o600, int(unix.Mkdev(1, 3))))
	}
	f, err := os.Create(at("holes"))
	r.must(err)
	_, err = f.WriteAt([]byte("in the middle"), 1<<38)
	r.must(errors.Join(err, f.Truncate(1<<39), f.Close()))
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
		16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	acl, _ = changeACL(acl, owners{first}.outside)
	r.must(unix.Setxattr(at("etc/empty"), aclAccess, acl, 0))
	r.must(unix.Setxattr(at("etc"), aclDefault, acl, 0))
	r.must(unix.Setxattr(at("etc/big"), "user.note", []byte("a\x00=b"), 0))
	i := uint32(0)
	r.must(filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		i++
		return errors.Join(err, os.Lchown(path, int(first+i%3*1000), int(first+65535*(i%2))))
	}))
	r.must(os.Chmod(at("etc/big"), 0o755|fs.ModeSetuid))
	r.must(os.Chmod(at("locked"), 0o500))
	when := []unix.Timespec{{Sec: 1600000000, Nsec: 7}, {Sec: 1600000001, Nsec: 123456789}}
	for _, name := range []string{"etc/big", "etc/away", "locked", "."} {
		r.must(unix.UtimesNanoAt(unix.AT_FDCWD, at(name), when, unix.AT_SYMLINK_NOFOLLOW))
	}
}

// TestFiles: what a volume held when its snapshot was made is in another, however often it was cut off on its way, with
// the numbers of that one's workspace; and tar can read it.
func TestFiles(t *testing.T) {
	a, b := newRig(t), newRig(t)
	a.ensure(320 * mib)
	a.fill(a.disk().Mount, testFirst)
	want := tree(t, a.disk().Mount, testFirst)
	s := a.someSnapshot()
	a.write("later", "is not in it")
	data := a.exported(s, 700_000)
	f := wire.File{UID: s.UID, Volume: "acme/web/shop/data", Class: "local", TakenAt: fileWhen}
	if err := a.Export(t.Context(), s, f, &shortWriter{io.Discard, 1000}); err == nil {
		t.Error("what is cut off is not told")
	}
	a.must(a.endFile(s.UID, false))
	if _, mounted, err := device(a.place(s.UID).image().Mount); mounted || err != nil {
		t.Errorf("cut off, the snapshot stays mounted: %v", err)
	}
	if again := a.exported(s, 1<<30); !bytes.Equal(again, data) {
		t.Error("cut off, it is another file")
	}
	for _, left := range []string{"devices", "sockets"} {
		if !bytes.Contains(data, []byte(`"`+left+`": 1`)) {
			t.Errorf("%s that are left out are not told", left)
		}
	}
	if tar, err := exec.LookPath("tar"); err == nil {
		dir := t.TempDir()
		cmd := exec.Command(tar, "-xf", "-", "-C", dir, "--no-same-owner", "--sparse")
		cmd.Stdin = bytes.NewReader(data)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("tar: %v: %s", err, out)
		}
		if info, err := os.Stat(filepath.Join(dir, "data/holes")); err != nil || info.Size() != 1<<39 {
			t.Errorf("tar makes %v, %v", info, err)
		}
	}
	// What is left when the snapshot is not read any more.
	a.must(a.endFile(s.UID, false))
	if mounted, err := hostmount.Has(a.place(s.UID).image().Mount); mounted || err != nil {
		t.Errorf("the snapshot is mounted still: %v", err)
	}

	const first = testFirst + 5<<16
	v := importVolume(first)
	b.must(b.Ensure(t.Context(), v))
	if seen := b.seen(); seen.Import != wire.ImportBegun {
		t.Errorf("before anything came it is seen as %+v", seen)
	}
	if err := b.imports(v, data, 600_000); err != nil {
		t.Fatal(err)
	}
	if seen := b.seen(); seen.Import != wire.ImportDone || !seen.Ready {
		t.Errorf("when all came it is seen as %+v", seen)
	}
	var there []string
	for _, line := range want {
		if !strings.Contains(line, `"device"`) && !strings.Contains(line, `"socket"`) {
			there = append(there, line)
		}
	}
	got := tree(t, b.disk().Mount, first)
	if strings.Join(got, "\n") != strings.Join(there, "\n") {
		t.Errorf("there is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(there, "\n"))
	}
	v.Importing, v.Made = false, true
	b.must(b.Ensure(t.Context(), v))
}

// TestFilesAtHand: of those that rest so many are known; one that does not end is waited for a while.
func TestFilesAtHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New(Config{})
		begin := func(i int) (*fileWork, error) {
			w, _, err := h.beginFile(t.Context(), fmt.Sprint("uid", i), fmt.Sprint("network", i))
			time.Sleep(time.Second)
			return w, err
		}
		known := func(uid string) *fileWork {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.files[uid]
		}
		var works []*fileWork
		for i := range maxFiles {
			w, err := begin(i)
			if err != nil {
				t.Fatal(err)
			}
			works = append(works, w)
		}
		if _, err := begin(maxFiles); err == nil {
			t.Error("all are at work, and one more begins")
		}
		for i := range 2 {
			h.restFile(fmt.Sprint("uid", 4-i), works[4-i])
			time.Sleep(time.Second)
		}
		if _, err := begin(maxFiles); err != nil || known("uid4") != nil || known("uid3") == nil {
			t.Errorf("two rest, and one of them does not make way: %v, %v, %v", known("uid4"), known("uid3"), err)
		}
		began := time.Now()
		if err := h.endFile("uid0", true); err == nil || time.Since(began) != endTime {
			t.Errorf("one that does not end was waited for %v: %v", time.Since(began), err)
		}
		if known("uid0") != works[0] {
			t.Error("it is not known any more")
		}
		h.restFile("uid0", works[0])
		if err := h.endFile("uid0", true); err != nil || known("uid0") != nil {
			t.Errorf("one that rests does not end: %v", err)
		}
		time.Sleep(fileIdle) // the timers
	})
}
