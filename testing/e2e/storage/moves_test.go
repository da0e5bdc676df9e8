package storage

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// moves: a volume that a claim has goes to another host and back, where its pods find what was written, also when
// server and agents are killed on the way. While a pod has it, it stays.
func (d *trial) moves(t *testing.T) {
	machines := strings.Fields(d.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(machines) < 2 {
		t.Fatalf("the workspace has machines %v, want two", machines)
	}
	d.Apply(t, claim("nomad", "320Mi", "")+d.pod("writer", "nomad", "write", "/data/log"))
	d.runs(t, "writer")
	told := d.writes(t, "writer", 10)
	volume := strings.TrimSpace(d.Kubectl(t, "get", "pvc", "nomad", "-o", "jsonpath={.spec.volumeName}"))
	uid := d.volumeOf(t, "nomad")
	here := strings.TrimSpace(d.Kubectl(t, "get", "pod", "writer", "-o", "jsonpath={.spec.nodeName}"))
	other := machines[0]
	if other == here {
		other = machines[1]
	}
	r := d.MP(t, datacenter.Owner, "volumes", "move", volume, "--to", other)
	d.check(t, r.Code != 0 && strings.Contains(r.Err, "in use by pod writer"), "moved under a pod: %s", r)
	d.delete(t, "pod/writer")

	from := d.on(t, uid)
	began := time.Now()
	d.Must(t, datacenter.Owner, "volumes", "move", volume, "--to", other, "--timeout", "2m")
	t.Logf("a volume moved within %v", time.Since(began))
	to := d.on(t, uid)
	d.check(t, to.Name() != from.Name(), "it is on %s still", to.Name())
	d.Apply(t, d.pod("there", "nomad", "wait"))
	d.runs(t, "there")
	at := strings.TrimSpace(d.Kubectl(t, "get", "pod", "there", "-o", "jsonpath={.spec.nodeName}"))
	d.check(t, at == other, "the pod runs on %s, want %s", at, other)
	d.kept(t, t.Name(), "there", "/data/log", told)
	d.delete(t, "pod/there")

	d.Must(t, datacenter.Owner, "volumes", "move", volume, "--to", here, "--no-wait")
	all := append([]*lab.Host{d.Server}, d.Nodes...)
	for _, h := range all {
		if err := h.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range all {
		d.PartsReady(t, h)
	}
	wait.For(t, wait.Patience, "the volume is back", func(context.Context) error {
		for _, h := range d.Nodes {
			_, err := os.Stat(h.Data("volumes", uid))
			if (err == nil) != (h.Name() == from.Name()) {
				return fmt.Errorf("%s: %v", h.Name(), err)
			}
		}
		return nil
	})
	d.Apply(t, d.pod("back", "nomad", "wait"))
	d.runs(t, "back")
	d.kept(t, t.Name(), "back", "/data/log", told)
	d.delete(t, "pod/back", "pvc/nomad")
	d.gone(t, uid)
}
