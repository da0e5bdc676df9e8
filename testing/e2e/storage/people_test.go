package storage

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/wait"
)

// people: what is done by typing: a volume is made, given to a claim, used, taken back,
// made larger, and given to another with all that was in it. An app has one as a folder.
func (d *trial) people(t *testing.T) {
	mp := func(args ...string) string { t.Helper(); return d.Must(t, datacenter.Owner, args...) }
	refused := func(says string, args ...string) {
		t.Helper()
		r := d.MP(t, datacenter.Owner, args...)
		d.check(t, r.Code != 0 && strings.Contains(r.Err, says), "mp %s: no %q in %s", strings.Join(args, " "), says, r)
	}
	mp("volumes", "create", "db", "--size", "320Mi", "--timeout", "4m")
	shown := mp("volumes", "show", "db")
	d.check(t, strings.Contains(shown, "pods that use it run there") && strings.Contains(shown, "No claim has it"), "shown as:\n%s", shown)
	mp("volumes", "bind", "db", "--claim", "first", "--timeout", "4m")
	uid := d.volumeOf(t, "first")
	d.Apply(t, d.pod("disk", "first", "wait"))
	d.runs(t, "disk")
	full := d.ask(t, "disk", "fill", "/data/full")[0]
	refused("in use by pod disk in namespace default", "volumes", "unbind", "db", "--yes")
	refused("The claim default/first has the volume", "volumes", "delete", "db", "--yes")
	refused("The claim default/first has the volume", "volumes", "bind", "db", "--claim", "second")
	d.delete(t, "pod", "disk")
	wait.For(t, wait.Patience, "the claim lets go", func(context.Context) error {
		if r := d.MP(t, datacenter.Owner, "volumes", "unbind", "db", "--yes"); r.Code != 0 {
			return fmt.Errorf("%s", r) // it is still being detached
		}
		return nil
	})
	d.check(t, d.Kube(t, d.Kubeconfig(), "", "get", "pv", "db").Code != 0, "the PersistentVolume is left")
	// What it holds is kept, and becomes another volume, which outlives both.
	mp("volumes", "snapshot", "db", "before", "--timeout", "4m")
	d.check(t, strings.Contains(mp("snapshots", "list"), "before"), "the snapshot is not listed")
	mp("volumes", "restore", "before", "back", "--size", "400Mi", "--timeout", "4m")
	mp("volumes", "clone", "back", "twin", "--timeout", "4m")
	mp("snapshots", "delete", "before", "--yes", "--timeout", "4m")
	mp("volumes", "delete", "back", "--purge", "--yes", "--timeout", "4m")
	mp("volumes", "bind", "twin", "--claim", "third", "--timeout", "4m")
	d.Apply(t, d.pod("twin", "third", "wait"))
	d.runs(t, "twin")
	r := d.Kube(t, d.Kubeconfig(), "", "exec", "twin", "--", "/probe", "read", "/data/full")
	d.check(t, r.Code == 0 && strings.Contains(r.Out, fmt.Sprint("of ", full)), "of what was copied a pod reads: %s", r)
	d.delete(t, "pod/twin")
	wait.For(t, wait.Patience, "the claim lets go", func(context.Context) error {
		if r := d.MP(t, datacenter.Owner, "volumes", "unbind", "twin", "--yes"); r.Code != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	mp("volumes", "delete", "twin", "--purge", "--yes", "--timeout", "4m")
	// From the trash it comes back with all that the next pod reads.
	said := mp("volumes", "delete", "db", "--yes")
	trash := strings.TrimSpace(mp("volumes", "trash", "list", "-o", "name"))
	d.check(t, strings.HasPrefix(trash, "db-") && strings.Contains(said, trash), "in the trash is %q after %s", trash, said)
	mp("volumes", "trash", "restore", trash, "--timeout", "4m")
	mp("volumes", "resize", "db", "--size", "512Mi", "--timeout", "4m")
	refused("can't shrink", "volumes", "resize", "db", "--size", "400Mi")
	mp("volumes", "bind", "db", "--claim", "second", "--timeout", "4m")
	d.check(t, d.volumeOf(t, "second") == uid, "it is another")
	d.Apply(t, d.pod("again", "second", "wait"))
	d.runs(t, "again")
	r = d.Kube(t, d.Kubeconfig(), "", "exec", "again", "--", "/probe", "read", "/data/full")
	d.check(t, r.Code == 0 && strings.Contains(r.Out, fmt.Sprint("of ", full)), "the next pod reads: %s", r)
	s := d.ask(t, "again", "space", "/data")
	d.check(t, s[0] > 320*mib, "it has grown to %d bytes", s[0])
	r = d.MP(t, datacenter.Admin, "nodes", "remove", d.on(t, uid).Name(), "--yes")
	d.check(t, r.Code != 0 && strings.Contains(r.Err, "acme/web/shop/db"), "removed with a volume: %s", r)
	d.delete(t, "pod/again")

	// An app, with a claim that is typed.
	mp("pvc", "create", "kept", "--size", "320Mi")
	listed := mp("pvc", "list")
	d.check(t, strings.Contains(listed, "first pod that uses it"), "listed as:\n%s", listed)
	mp("apps", "deploy", "keeper", "--image", "probe:1", "--port", "8080", "--no-route", "--volume", "kept:/kept", "--timeout", "5m")
	refused("one instance", "apps", "scale", "keeper", "2")
	wrote := strings.TrimSpace(d.Kubectl(t, "exec", "deploy/keeper", "--", "/probe", "fill", "/kept/full"))
	mp("apps", "deploy", "keeper", "--env", "A=b", "--timeout", "5m")
	r = d.Kube(t, d.Kubeconfig(), "", "exec", "deploy/keeper", "--", "/probe", "read", "/kept/full")
	d.check(t, r.Code == 0 && strings.HasPrefix(r.Out, "has "), "after %s the next release reads: %s", wrote, r)
	other := d.volumeOf(t, "kept")
	mp("apps", "delete", "keeper", "--yes", "--timeout", "5m")
	mp("pvc", "delete", "kept", "--yes")
	d.gone(t, other)

	wait.For(t, wait.Patience, "the claim lets go", func(context.Context) error {
		if r := d.MP(t, datacenter.Owner, "volumes", "unbind", "db", "--yes"); r.Code != 0 {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	mp("volumes", "delete", "db", "--purge", "--yes", "--timeout", "4m")
	d.gone(t, uid)
}
