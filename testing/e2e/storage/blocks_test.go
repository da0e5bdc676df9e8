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

// device is a manifest of a pod of the probe, root in it, that has a claim's raw blocks at /dev/xvda.
func (d *trial) device(name, claim string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: %q, args: [wait], securityContext: {runAsUser: 0, runAsGroup: 0}, volumeDevices: [{name: data, devicePath: /dev/xvda}]}
  volumes: [{name: data, persistentVolumeClaim: {claimName: %s}}]
`, name, d.ProbeImage("acme/web"), claim)
}

// rawBlocks: a pod has the raw blocks of a volume and nothing else of its device; what it wrote is there for the next, when the
// volume has grown, moved, and come back from the trash, and wherever agent and kubelet were killed.
func (d *trial) rawBlocks(t *testing.T) {
	has := func(pod, begins, writes string, size int64) {
		t.Helper()
		out := d.Kubectl(t, "exec", pod, "--", "/probe", "blocks", "/dev/xvda", writes)
		want := fmt.Sprintf("size %d begins %q allows []", size, begins)
		d.check(t, strings.TrimSpace(out) == want, "pod %s: %s, want %s", pod, out, want)
	}
	d.Apply(t, claim("raw", "320Mi", ", volumeMode: Block")+d.device("first", "raw"))
	d.runs(t, "first")
	has("first", "", "one", 320*mib)
	uid := d.volumeOf(t, "raw")
	h := d.on(t, uid)

	// Who lost his processes finds what he had.
	if err := h.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.PartsReady(t, h)
	for pid := range d.Processes(t, h, "kube kubelet") {
		d.Kill(t, h, pid)
	}
	d.Kubectl(t, "patch", "pvc", "raw", "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"512Mi"}}}}`)
	wait.For(t, wait.Patience, "the pod's device has grown", func(context.Context) error {
		r := d.Kube(t, d.Kubeconfig(), "", "exec", "first", "--", "/probe", "blocks", "/dev/xvda", "two")
		if !strings.Contains(r.Out, fmt.Sprint("size ", 512*mib)) {
			return fmt.Errorf("it says %s", r)
		}
		return nil
	})
	has("first", "two", "three", 512*mib)
	d.delete(t, "pod/first")
	d.Apply(t, d.device("second", "raw"))
	d.runs(t, "second")
	has("second", "three", "four", 512*mib)

	// A snapshot is of raw blocks too, and so is what is made from it; not by a claim that wants a file system.
	d.Must(t, datacenter.Owner, "volumes", "snapshot", strings.TrimSpace(d.Kubectl(t, "get", "pvc", "raw", "-o",
		"jsonpath={.spec.volumeName}")), "before", "--timeout", "4m")
	has("second", "four", "more", 512*mib)
	d.Must(t, datacenter.Owner, "volumes", "restore", "before", "again", "--timeout", "4m")
	d.Must(t, datacenter.Owner, "volumes", "bind", "again")
	d.Apply(t, d.device("again", "again"))
	d.runs(t, "again")
	has("again", "four", "five", 512*mib)
	d.delete(t, "pod/again")
	d.Must(t, datacenter.Owner, "volumes", "unbind", "again", "--yes")
	d.Must(t, datacenter.Owner, "volumes", "delete", "again", "--purge", "--yes")
	d.Must(t, datacenter.Owner, "snapshots", "delete", "before", "--yes", "--timeout", "4m")

	// Its machine is started anew.
	for pid := range d.Processes(t, h, "/opt/multipaas/init --config") {
		d.Kill(t, h, pid)
	}
	d.NodesReady(t, len(d.Nodes))
	d.delete(t, "pod/second")
	d.Apply(t, d.device("third", "raw"))
	d.runs(t, "third")
	has("third", "more", "last", 512*mib)
	d.delete(t, "pod/third", "pvc/raw")
	d.gone(t, uid)

	// By hand: bound, taken back, put into the trash, restored, moved.
	d.Must(t, datacenter.Owner, "volumes", "create", "disk", "--size", "320Mi", "--block")
	r := d.MP(t, datacenter.Owner, "volumes", "create", "no", "--size", "320Mi", "--block", "--class", "shared")
	d.check(t, r.Code != 0 && strings.Contains(r.Err, "file system"), "a shared one: %s", r)
	d.Must(t, datacenter.Owner, "volumes", "bind", "disk")
	d.Apply(t, d.device("third", "disk"))
	d.runs(t, "third")
	has("third", "", "five", 320*mib)
	uid = d.volumeOf(t, "disk")
	at := strings.TrimSpace(d.Kubectl(t, "get", "pod", "third", "-o", "jsonpath={.spec.nodeName}"))
	d.delete(t, "pod/third")
	d.Must(t, datacenter.Owner, "volumes", "unbind", "disk", "--yes")
	d.Must(t, datacenter.Owner, "volumes", "delete", "disk", "--yes")
	d.Must(t, datacenter.Owner, "volumes", "trash", "restore", strings.TrimSpace(d.Must(t, datacenter.Owner, "volumes", "trash", "list", "-o", "name")))
	for _, other := range strings.Fields(d.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")) {
		if other != at {
			d.Must(t, datacenter.Owner, "volumes", "move", "disk", "--to", other, "--timeout", "2m")
		}
	}
	d.Must(t, datacenter.Owner, "volumes", "bind", "disk")
	d.Apply(t, d.device("fourth", "disk"))
	d.runs(t, "fourth")
	has("fourth", "five", "six", 320*mib)
	d.delete(t, "pod/fourth")
	d.Must(t, datacenter.Owner, "volumes", "unbind", "disk", "--yes")
	d.Must(t, datacenter.Owner, "volumes", "delete", "disk", "--purge", "--yes")
	d.gone(t, uid)
	wait.For(t, wait.Patience, "no image, node or device is left of what is gone", func(context.Context) error {
		for _, h := range d.Nodes {
			out, err := h.Run(t.Context(), "sh", "-c", `find /var/lib/multipaas -name blocks.img; grep "/mount tmpfs" /proc/mounts
for d in /sys/block/loop[1-9][0-9][0-9][0-9][0-9][0-9]*/loop/backing_file; do grep -Hs "$0" "$d"; done; true`, uid)
			if err != nil || len(out) > 0 {
				return fmt.Errorf("left on %s: %s %w", h.Name(), out, err)
			}
		}
		return nil
	})
}
