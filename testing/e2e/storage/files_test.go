package storage

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// files: a volume that a pod writes to goes out as a file and in again, while server and agents are killed, and holds what was
// fsynced before, and all sorts of files as they were.
func (d *trial) files(t *testing.T) {
	d.Apply(t, claim("packed", "320Mi", "")+d.pod("writer", "packed", "write", "/data/log"))
	d.runs(t, "writer")
	volume := strings.TrimSpace(d.Kubectl(t, "get", "pvc", "packed", "-o", "jsonpath={.spec.volumeName}"))
	uid := d.volumeOf(t, "packed")
	tree := func(uid string) string { return d.on(t, uid).Root("var/lib/multipaas/volumes", uid, "mount", "tree") }
	fill(t, tree(uid))
	told := d.writes(t, "writer", 10)

	file := filepath.Join(t.TempDir(), "packed.tar")
	began := time.Now()
	d.during(t, datacenter.Owner, d.killAll, func() error {
		info, err := os.Stat(file + ".part")
		if err == nil && info.Size() < 1<<20 {
			err = errors.New("it is short")
		}
		return err
	}, "volumes", "export", volume, file)
	t.Logf("exported, with all killed on the way, within %v", time.Since(began))
	wait.For(t, wait.Patience, "its snapshot is gone", func(context.Context) error {
		if r := d.MP(t, datacenter.Owner, "snapshots", "list", "-o", "name"); r.Code != 0 || strings.TrimSpace(r.Out) != "" {
			return fmt.Errorf("%s", r)
		}
		return nil
	})

	began = time.Now()
	d.during(t, datacenter.Owner, d.killAll, func() error {
		r := d.MP(t, datacenter.Owner, "volumes", "show", "unpacked", "-o", "json")
		if !strings.Contains(r.Out, "of its file have come") {
			return fmt.Errorf("%s", r)
		}
		return nil
	}, "volumes", "import", file, "unpacked")
	t.Logf("imported, with all killed on the way, within %v", time.Since(began))
	d.Must(t, datacenter.Owner, "volumes", "bind", "unpacked", "--timeout", "2m")
	// Before a pod has it, which gives all of it to its group.
	want, got := listed(t, tree(uid)), listed(t, tree(d.volumeOf(t, "unpacked")))
	d.check(t, got == want, "there is\n%s\nwant\n%s", got, want)
	d.Apply(t, d.pod("reader", "unpacked", "wait"))
	d.runs(t, "reader")
	d.kept(t, t.Name(), "reader", "/data/log", told)

	// One whose file is damaged is nobody's.
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r := d.MP(t, datacenter.Owner, "volumes", "import", file, "damaged")
	d.check(t, r.Code != 0 && strings.Contains(r.Err, "damaged"), "a flipped bit: %s", r)
	r = d.MP(t, datacenter.Owner, "volumes", "bind", "damaged")
	d.check(t, r.Code != 0, "it is bound: %s", r)
	d.Must(t, datacenter.Owner, "volumes", "delete", "damaged", "--purge", "--yes")
	d.delete(t, "pod/writer", "pod/reader", "pvc/packed")
	d.gone(t, uid)
	back := d.volumeOf(t, "unpacked")
	d.Must(t, datacenter.Owner, "volumes", "unbind", "unpacked", "--yes")
	d.Must(t, datacenter.Owner, "volumes", "delete", "unpacked", "--purge", "--yes")
	d.gone(t, back)
}

// during runs the client, and kill once something has come.
func (d *trial) during(t *testing.T, who string, kill func(*testing.T), begun func() error, args ...string) {
	t.Helper()
	done := make(chan dctest.Result, 1)
	go func() { done <- d.MP(t, who, args...) }()
	wait.For(t, wait.Patience, "something has come", func(context.Context) error { return begun() })
	kill(t)
	select {
	case r := <-done:
		d.check(t, r.Code == 0, "%s", r)
	case <-time.After(wait.Patience):
		t.Fatalf("mp %s does not end", strings.Join(args, " "))
	}
}

// killAll kills all that is the platform's, and waits until it is there again.
func (d *trial) killAll(t *testing.T) {
	t.Helper()
	all := append([]*lab.Host{d.Server}, d.Nodes...)
	for _, h := range all {
		if err := h.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range all {
		d.PartsReady(t, h)
	}
}

// fill makes some files in a folder of a volume, with the owner of that.
func fill(t *testing.T, dir string) {
	t.Helper()
	var root unix.Stat_t
	big := make([]byte, 60<<20)
	_, _ = rand.Read(big)
	err := errors.Join(unix.Stat(filepath.Dir(dir), &root), os.MkdirAll(filepath.Join(dir, "deep"), 0o700),
		os.WriteFile(filepath.Join(dir, "big"), big, 0o600), os.WriteFile(filepath.Join(dir, "deep/text"), []byte("text"), 0o640),
		os.Link(filepath.Join(dir, "big"), filepath.Join(dir, "deep/same")), os.Symlink("../../../etc", filepath.Join(dir, "out")))
	if err == nil {
		err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(root.Uid)+1000, int(root.Uid)+100))
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// listed is what is in a folder of a volume, or of a shared one's brick, as machines see it.
func listed(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	var root unix.Stat_t
	if err := unix.Stat(filepath.Dir(dir), &root); err != nil {
		t.Fatal(err)
	}
	first := root.Uid &^ 0xffff
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st, times := info.Sys().(*syscall.Stat_t), make([]byte, 57)
		at, _ := filepath.Rel(dir, path)
		when, names := info.ModTime().UTC(), st.Nlink
		if n, err := unix.Lgetxattr(path, "trusted.glusterfs.mdata", times); err == nil && n == len(times) {
			when = time.Unix(int64(binary.BigEndian.Uint64(times[25:])), int64(binary.BigEndian.Uint64(times[33:]))).UTC()
			if !info.IsDir() {
				names-- // GlusterFS's own
			}
		}
		fmt.Fprintf(&all, "%s %v %d:%d %v %d", at, info.Mode(), st.Uid-first, st.Gid-first, when, names)
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&all, " %x", sha256.Sum256(data))
		}
		all.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
