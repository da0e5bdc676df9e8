package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/loopdisk"
	"github.com/multipaas/multipaas/testing/wait"
)

// disks: a disk that a host gets has volumes from then on. While it is away those wait, and say so; others go on, and so
// does it once it is back, under another name. And a host that has no loop device free makes no volume, and harms none.
func (d *trial) disks(t *testing.T) {
	h := d.Nodes[0]
	machine, err := os.ReadFile(filepath.Join(d.machineRoot(t, h), "etc/multipaas/hostname"))
	if err != nil {
		t.Fatal(err)
	}
	on := fmt.Sprintf("spec:\n  nodeSelector: {kubernetes.io/hostname: %s}\n", strings.TrimSpace(string(machine)))
	here := func(name, claimed string, args ...string) string {
		return claim(claimed, "320Mi", "") + strings.Replace(d.pod(name, claimed, args...), "spec:\n", on, 1)
	}
	d.Apply(t, here("beside", "beside", "write", "/data/log"))
	d.runs(t, "beside")
	beside := d.writes(t, "beside", 10)

	t.Run("no loop device", func(t *testing.T) {
		const control = "/dev/loop-control"
		run := func(args ...string) {
			t.Helper()
			if _, err := h.Run(t.Context(), args...); err != nil {
				t.Fatal(err)
			}
		}
		run("mount", "--bind", "/dev/null", control)
		d.Apply(t, here("late", "late", "wait"))
		d.event(t, "late", "as many disks mounted as it can")
		beside = d.writes(t, "beside", beside+10)
		run("umount", control)
		d.runs(t, "late")
		d.delete(t, "pod/late", "pvc/late")
	})

	// Larger than the host's own, so that volumes go there.
	file := sparse(t, 512<<30)
	disk := plug(t, file)
	d.Must(t, datacenter.Admin, "nodes", "storage", "add", h.Name(), "--device", disk.Name(), "--name", "fast", "--timeout", "4m")
	d.Apply(t, here("writer", "plugged", "write", "/data/log"))
	d.runs(t, "writer")
	told := d.writes(t, "writer", 10)
	uid := d.volumeOf(t, "plugged")
	in := func() []string {
		found, _ := filepath.Glob(h.Root("var/lib/multipaas/pools/*", uid))
		return found
	}
	if len(in()) != 1 {
		t.Fatalf("volume %s is not on the disk: %v", uid, in())
	}
	pool := filepath.Dir(in()[0])
	r := d.MP(t, datacenter.Admin, "nodes", "storage", "remove", h.Name(), "fast", "--yes")
	d.check(t, r.Code != 0 && strings.Contains(r.Err, "acme/web/shop"), "a disk with a volume is taken away: %s", r)

	t.Run("disk away", func(t *testing.T) {
		told = d.writes(t, "writer", told)
		d.shutDown(t, filepath.Join(in()[0], "mount"))
		d.shutDown(t, pool)
		if err := h.Kill(t.Context()); err != nil { // it lets go of the disk, as unplugging one does
			t.Fatal(err)
		}
		disk.Close()
		plug(t, sparse(t, mib)) // takes its name, unless somebody else on this machine was faster
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.PartsReady(t, h)
		d.shown(t, "plugged", "the disk with volumes of its host is not there")
		wait.For(t, wait.Patience, "what is on another disk goes on", func(context.Context) error {
			if r := d.Kube(t, d.Kubeconfig(), "", "exec", "beside", "--", "/probe", "space", "/data"); r.Code != 0 {
				return errors.New(r.String())
			}
			return nil
		})
		plug(t, file)
		wait.For(t, wait.Patience, "the pod runs again", func(context.Context) error {
			r := d.Kube(t, d.Kubeconfig(), "", "exec", "writer", "--", "/probe", "read", "/data/log")
			if r.Code != 0 || !strings.HasPrefix(r.Out, "has ") {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		d.kept(t, t.Name(), "writer", "/data/log", told)
		d.PartsReady(t, h)
	})
	d.delete(t, "pod/writer", "pvc/plugged", "pod/beside", "pvc/beside")
	wait.For(t, wait.Patience, "nothing is left on the disk", func(context.Context) error {
		if r := d.MP(t, datacenter.Admin, "nodes", "storage", "remove", h.Name(), "fast", "--yes", "--timeout", "2m"); r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
}

// shown waits until of the volume of a claim is said text.
func (d *trial) shown(t *testing.T, claim, text string) {
	t.Helper()
	d.checks++
	name := strings.TrimSpace(d.Kubectl(t, "get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}"))
	wait.For(t, wait.Patience, "it is said", func(context.Context) error {
		if out := d.Must(t, datacenter.Owner, "volumes", "show", name); !strings.Contains(out, text) {
			return fmt.Errorf("no %q in:\n%s", text, out)
		}
		return nil
	})
}

// plug has a file be a disk, until it is closed and nobody has it open any more.
func plug(t *testing.T, file string) *os.File {
	t.Helper()
	disk, err := loopdisk.Plug(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	return disk
}

// sparse makes the file of a disk.
func sparse(t *testing.T, bytes int64) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, bytes)); err != nil {
		t.Fatal(err)
	}
	return file
}
