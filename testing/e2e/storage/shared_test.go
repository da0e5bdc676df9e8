package storage

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/wait"
)

// shared: pods on two hosts, of a user who is in their fsGroup, have one volume at once, and each reads what the other has
// written. It has one copy, since there are two hosts. Its client is killed under them, and what was written is there.
func (d *trial) shared(t *testing.T) {
	machines := strings.Fields(d.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(machines) < 2 {
		t.Fatalf("the workspace has machines %v, want two", machines)
	}
	at := func(machine, pod string, args ...string) string {
		return strings.Replace(d.pod(pod, "both", args...), "spec:\n", "spec:\n  nodeSelector: {kubernetes.io/hostname: "+machine+"}\n", 1)
	}
	d.Apply(t, strings.ReplaceAll(claim("both", "320Mi", ", storageClassName: shared"), "ReadWriteOnce", "ReadWriteMany")+
		at(machines[0], "writer", "write", "/data/log")+at(machines[1], "reader", "wait"))
	d.runs(t, "writer")
	d.runs(t, "reader")
	told := d.writes(t, "writer", 10)
	d.kept(t, "on the other host", "reader", "/data/log", told)
	s := d.ask(t, "reader", "space", "/data")
	d.check(t, s[0] <= 320*mib && s[0] > 200*mib, "it has %d bytes", s[0])
	d.check(t, s[2] == 0 && s[3] == 65532, "its root belongs to %d:%d, want root and the pods' fsGroup", s[2], s[3])
	volume := strings.TrimSpace(d.Kubectl(t, "get", "pvc", "both", "-o", "jsonpath={.spec.volumeName}"))
	shown := d.Must(t, datacenter.Owner, "volumes", "show", volume)
	d.check(t, strings.Contains(shown, "There is no copy of it"), "of a volume with one copy is shown:\n%s", shown)

	t.Run("agent killed", func(t *testing.T) {
		for _, h := range d.Nodes {
			if err := h.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			d.PartsReady(t, h)
		}
		told = d.writes(t, "writer", told)
		d.kept(t, t.Name(), "reader", "/data/log", told)
	})
	t.Run("client killed", func(t *testing.T) {
		uid := d.volumeOf(t, "both")
		killed := 0
		for _, h := range d.Nodes {
			for pid := range d.Processes(t, h, "glusterfs --") {
				d.Kill(t, h, pid)
				killed++
			}
		}
		d.check(t, killed > 0, "no client of a volume runs")
		d.delete(t, "pod/writer", "pod/reader")
		d.Apply(t, at(machines[0], "again", "wait")+at(machines[1], "other", "wait"))
		d.runs(t, "again")
		d.runs(t, "other")
		d.kept(t, t.Name(), "again", "/data/log", told)
		d.kept(t, t.Name(), "other", "/data/log", told)
		d.delete(t, "pod/again", "pod/other", "pvc/both")
		d.gone(t, uid)
	})
	wait.For(t, wait.Patience, "no host serves bricks", func(context.Context) error {
		for _, h := range d.Nodes {
			if left := d.Processes(t, h, "glusterd"); len(left) > 0 {
				return fmt.Errorf("%s has %v", h.Name(), left)
			}
		}
		return nil
	})
}
