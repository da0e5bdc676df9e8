package storage

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/wait"
)

// sharedTrash: a shared volume that was deleted is nobody's while it is in the trash, and comes back with what was in it.
func (d *trial) sharedTrash(t *testing.T) {
	mp := func(args ...string) string { t.Helper(); return d.Must(t, datacenter.Owner, args...) }
	put := func(volume string) (name string) {
		t.Helper()
		wait.For(t, wait.Patience, "the claim lets go", func(context.Context) error {
			if r := d.MP(t, datacenter.Owner, "volumes", "unbind", volume, "--yes"); r.Code != 0 {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		mp("volumes", "delete", volume, "--yes")
		wait.For(t, wait.Patience, "it is put away", func(context.Context) error {
			out := mp("volumes", "trash", "list")
			if !strings.Contains(out, "Kept") {
				return fmt.Errorf("listed as %s", out)
			}
			return nil
		})
		return strings.TrimSpace(mp("volumes", "trash", "list", "-o", "name"))
	}
	mp("volumes", "create", "share", "--class", "shared", "--size", "320Mi", "--timeout", "4m")
	mp("volumes", "bind", "share", "--timeout", "4m")
	uid := d.volumeOf(t, "share")
	d.Apply(t, d.pod("first", "share", "write", "/data/log"))
	d.runs(t, "first")
	told := d.writes(t, "first", 10)
	d.delete(t, "pod/first")
	name := put("share")
	for _, h := range d.Nodes {
		left := d.Processes(t, h, "glusterfsd")
		d.check(t, len(left) == 0, "%s serves what is in the trash: %v", h.Name(), left)
	}
	mp("volumes", "trash", "restore", name, "--as", "back", "--timeout", "4m")
	mp("volumes", "bind", "back", "--timeout", "4m")
	d.check(t, d.volumeOf(t, "back") == uid, "it is another")
	d.Apply(t, d.pod("second", "back", "wait"))
	d.runs(t, "second")
	d.kept(t, "from the trash", "second", "/data/log", told)
	d.delete(t, "pod/second")
	mp("volumes", "trash", "purge", put("back"), "--yes", "--timeout", "4m")
	wait.For(t, wait.Patience, "no host serves bricks", func(context.Context) error {
		for _, h := range d.Nodes {
			if left := d.Processes(t, h, "glusterd"); len(left) > 0 {
				return fmt.Errorf("%s has %v", h.Name(), left)
			}
		}
		return nil
	})
}
