package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// sharedFiles: what is in a local volume's file comes into a shared one, goes out of that under a writer, and into another
// workspace, as shared and as local, while all that works at it is killed on the way.
func (d *trial) sharedFiles(t *testing.T) {
	d.BeginBox(t)
	mp := func(args ...string) { t.Helper(); d.Must(t, datacenter.Owner, args...) }
	mp("volumes", "create", "seed", "--size", "320Mi", "--timeout", "4m")
	seed := filepath.Join(d.folderOf(t, "acme/web/shop/seed"), "tree")
	fill(t, seed)
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first.tar"), filepath.Join(dir, "second.tar")
	mp("volumes", "export", "seed", first)
	want := listed(t, seed)

	// comes waits until some of a volume's file is in its brick.
	comes := func(key string) func() error {
		return func() error {
			dir, err := d.findFolder(key)
			if err != nil {
				return err
			}
			info, err := os.Stat(filepath.Join(dir, "tree/big"))
			if err == nil && info.Size() < 1<<20 {
				err = errors.New("nothing is in the file")
			}
			return err
		}
	}
	began := time.Now()
	d.during(t, datacenter.Owner, d.killAll, comes("acme/web/shop/files"), "volumes", "import", first, "files", "--class", "shared")
	t.Logf("imported, with all killed on the way, within %v", time.Since(began))
	brick := d.folderOf(t, "acme/web/shop/files")
	got := listed(t, filepath.Join(brick, "tree"))
	d.check(t, got == want, "in the shared volume is\n%s\nwant\n%s", got, want)
	mp("volumes", "bind", "files", "--timeout", "4m")
	d.Apply(t, d.pod("writer", "files", "write", "/data/log"))
	d.runs(t, "writer")
	told := d.writes(t, "writer", 10)

	began = time.Now()
	d.during(t, datacenter.Owner, d.killAll, func() error {
		info, err := os.Stat(second + ".part")
		if err == nil && info.Size() < 1<<20 {
			err = errors.New("it is short")
		}
		return err
	}, "volumes", "export", "files", second)
	t.Logf("exported under a writer, with all killed on the way, within %v", time.Since(began))
	d.writes(t, "writer", told) // it goes on
	want = listed(t, filepath.Join(brick, "tree"))

	d.Box(t)
	clients := func(t *testing.T) {
		var v struct{ UID string }
		r, killed := d.MP(t, dctest.Rival, "volumes", "show", "files", "-o", "json"), 0
		if err := json.Unmarshal([]byte(r.Out), &v); err != nil || v.UID == "" {
			t.Fatal(r)
		}
		for _, h := range d.Nodes {
			for pid := range d.Processes(t, h, "--volfile-id="+strings.ToLower(v.UID)) {
				d.Kill(t, h, pid)
				killed++
			}
		}
		t.Logf("%d clients are killed", killed)
	}
	d.during(t, dctest.Rival, clients, comes("beta/ops/box/files"), "volumes", "import", second, "files", "--class", "shared")
	d.Must(t, dctest.Rival, "volumes", "import", second, "plain")
	for what, key := range map[string]string{"shared": "beta/ops/box/files", "local": "beta/ops/box/plain"} {
		dir := d.folderOf(t, key)
		got := listed(t, filepath.Join(dir, "tree"))
		d.check(t, got == want, "in the %s volume of another workspace is\n%s\nwant\n%s", what, got, want)
		info, err := os.Stat(filepath.Join(dir, "log"))
		d.check(t, err == nil && info.Size()/4096 >= told, "in the %s one the log is %v, %v: want %d records", what, info, err, told)
		if left, _ := filepath.Glob(filepath.Join(dir, ".import*")); left != nil {
			t.Errorf("in the %s one is left %v", what, left)
		}
	}
	wait.For(t, wait.Patience, "no host has them mounted for that any more", func(context.Context) error {
		for _, h := range d.Nodes {
			if left, _ := filepath.Glob(h.Data("storage/clients/*.import")); left != nil {
				return fmt.Errorf("%s has %v", h.Name(), left)
			}
		}
		return nil
	})
	d.delete(t, "pod/writer")
	wait.For(t, wait.Patience, "the claim lets go", func(context.Context) error {
		if r := d.MP(t, datacenter.Owner, "volumes", "unbind", "files", "--yes"); r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	for _, name := range []string{"seed", "files"} {
		mp("volumes", "delete", name, "--purge", "--yes", "--timeout", "4m")
	}
	for _, name := range []string{"plain", "files"} {
		d.Must(t, dctest.Rival, "volumes", "delete", name, "--purge", "--yes", "--timeout", "4m")
	}
	d.Must(t, dctest.Rival, "ws", "delete", "box", "--yes", "--timeout", "4m")
}

// findFolder is the root of a volume, or of its first brick that is found, on its host.
func (d *trial) findFolder(key string) (string, error) {
	for _, h := range d.Nodes {
		if dir := folderOn(h, key); dir != "" {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no host has %s", key)
}

func (d *trial) folderOf(t *testing.T, key string) string {
	t.Helper()
	dir, err := d.findFolder(key)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func folderOn(h *lab.Host, key string) string {
	records, _ := filepath.Glob(h.Data("volumes/*/volume.json"))
	for _, file := range records {
		var rec struct {
			Key             string
			Brick, Snapshot bool
		}
		if text, err := os.ReadFile(file); err != nil || json.Unmarshal(text, &rec) != nil || rec.Key != key || rec.Snapshot {
			continue
		}
		uid := filepath.Base(filepath.Dir(file))
		root := h.Root("var/lib/multipaas/volumes", uid, "mount")
		if rec.Brick {
			root = filepath.Join(root, "volume/brick")
		}
		return strings.TrimSuffix(root, "/")
	}
	return ""
}
