// Package storage tries volumes in a datacenter: claims of pods, what people type, and
// bad days. Short is what each run of all tests has room for, and stands among the parts of
// testing/e2e; the package's own test has a datacenter to itself, and tries all.
//
// It counts what it has checked, and every record that a writer was told to be on the disk
// and that is not there afterwards as lost.
package storage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// trial is one datacenter in which volumes are tried.
type trial struct {
	*dctest.Datacenter
	checks, failed int
	lost           int64 // bytes
}

// check counts one, and fails the test unless ok.
func (d *trial) check(t *testing.T, ok bool, format string, args ...any) {
	t.Helper()
	d.checks++
	if !ok {
		d.failed++
		t.Errorf(format, args...)
	}
}

// claim is a manifest of a claim.
func claim(name, size, more string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: %s}}%s}
`, name, size, more)
}

// pod is a manifest of a pod of the probe that has a claim at /data.
func (d *trial) pod(name, claim string, args ...string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 65532}
  containers:
  - {name: c, image: %q, args: [%s], volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, persistentVolumeClaim: {claimName: %s}}]
`, name, d.ProbeImage("acme/web"), strings.Join(args, ", "), claim)
}

// runs waits until a pod runs.
func (d *trial) runs(t *testing.T, pod string) {
	t.Helper()
	d.Kubectl(t, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=4m")
}

// delete deletes pods at once, and waits until they are gone.
func (d *trial) delete(t *testing.T, what ...string) {
	t.Helper()
	d.Kubectl(t, append([]string{"delete", "--ignore-not-found", "--timeout=4m"}, what...)...)
}

// ask runs the probe in a pod and returns the numbers in its answer.
func (d *trial) ask(t *testing.T, pod string, args ...string) (numbers []int64) {
	t.Helper()
	out := d.Kubectl(t, append([]string{"exec", pod, "--", "/probe"}, args...)...)
	for _, word := range strings.Fields(out) {
		if n, err := strconv.ParseInt(word, 10, 64); err == nil {
			numbers = append(numbers, n)
		}
	}
	if len(numbers) == 0 {
		t.Fatalf("the probe says %q", out)
	}
	return numbers
}

// told is the last record that a writer has said to be on the disk. Where lines are cut off
// it was fewer.
func (d *trial) told(t *testing.T, pod string) int64 {
	t.Helper()
	r := d.Kube(t, d.Kubeconfig(), "", "logs", pod, "--tail", "20")
	n := int64(0)
	for line := range strings.Lines(r.Out) {
		if number, ok := strings.CutPrefix(line, "wrote "); ok && strings.HasSuffix(line, "\n") {
			if k, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64); err == nil {
				n = max(n, k)
			}
		}
	}
	return n
}

// writes waits until a writer has written more than n records, and returns how many.
func (d *trial) writes(t *testing.T, pod string, n int64) (now int64) {
	t.Helper()
	wait.For(t, wait.Patience, pod+" writes", func(context.Context) error {
		if now = d.told(t, pod); now <= n {
			return fmt.Errorf("%d records", now)
		}
		return nil
	})
	return now
}

// kept checks that a file has all records of which a writer was told.
func (d *trial) kept(t *testing.T, what, pod, file string, told int64) {
	t.Helper()
	has := d.ask(t, pod, "read", file)[0]
	if has < told {
		d.lost += (told - has) * 4096
	}
	d.check(t, has >= told, "%s: %d records are there, and %d were written for good", what, has, told)
}

// event waits until an object has an event that says text.
func (d *trial) event(t *testing.T, object, text string) {
	t.Helper()
	d.checks++
	wait.For(t, wait.Patience, "an event of "+object, func(context.Context) error {
		r := d.Kube(t, d.Kubeconfig(), "", "get", "events", "--field-selector", "involvedObject.name="+object,
			"-o", `jsonpath={range .items[*]}{.message}{"\n"}{end}`)
		if !strings.Contains(r.Out, text) {
			return fmt.Errorf("none says %q: %s%s", text, r.Out, r.Err)
		}
		return nil
	})
}

// volumeOf is the UID of the volume that a claim has.
func (d *trial) volumeOf(t *testing.T, claim string) string {
	t.Helper()
	volume := strings.TrimSpace(d.Kubectl(t, "get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}"))
	return strings.TrimSpace(d.Kubectl(t, "get", "pv", volume, "-o", "jsonpath={.spec.csi.volumeHandle}"))
}

// on is the host that has a volume's image.
func (d *trial) on(t *testing.T, uid string) *lab.Host {
	t.Helper()
	for _, h := range d.Nodes {
		if _, err := os.Stat(h.Data("volumes", uid)); err == nil {
			return h
		}
	}
	t.Fatalf("no host has volume %s", uid)
	return nil
}

// gone waits until no host has anything of a volume.
func (d *trial) gone(t *testing.T, uid string) {
	t.Helper()
	d.checks++
	wait.For(t, wait.Patience, "nothing is left of volume "+uid, func(context.Context) error {
		for _, h := range d.Nodes {
			if left, _ := filepath.Glob(h.Data("volumes", uid+"*")); len(left) > 0 {
				return fmt.Errorf("%s has %v", h.Name(), left)
			}
		}
		return nil
	})
}

const mib = 1 << 20

// Short tries the life of a claim's volume in the workspace acme/web/shop of a datacenter
// that is up, and leaves nothing.
func Short(t *testing.T, dc *dctest.Datacenter) { (&trial{Datacenter: dc}).life(t) }

// life is the life of a claim: made when a pod wants it, with a size that is a limit, grown
// under the pod, read again by the next, and gone with all that was in it.
func (d *trial) life(t *testing.T) {
	d.PushProbe(t)
	d.Apply(t, claim("data", "320Mi", "")+d.pod("disk", "data", "wait"))
	d.runs(t, "disk")
	s := d.ask(t, "disk", "space", "/data")
	d.check(t, s[0] <= 320*mib && s[0] > 200*mib, "it has %d bytes", s[0])
	// The group is the pod's fsGroup, by which a probe that is not root writes.
	d.check(t, s[2] == 0 && s[3] == 65532, "its root belongs to %d:%d", s[2], s[3])
	full := d.ask(t, "disk", "fill", "/data/full")[0]
	d.check(t, full <= 320*mib && full > 200*mib, "it took %d bytes", full)

	asks := func(size string) []string {
		return []string{"patch", "pvc", "data", "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"` + size + `"}}}}`}
	}
	d.Kubectl(t, asks("100Ti")...) // who asked for too much asks for less
	d.event(t, "data", "at most")
	d.Kubectl(t, asks("512Mi")...)
	wait.For(t, wait.Patience, "the claim has grown", func(context.Context) error {
		if s := d.ask(t, "disk", "space", "/data"); s[0] <= 320*mib {
			return fmt.Errorf("it has %d bytes", s[0])
		}
		return nil
	})
	more := d.ask(t, "disk", "fill", "/data/more")[0]
	d.check(t, more > 100*mib && full+more <= 512*mib, "once grown it took %d and %d bytes", full, more)
	r := d.Kube(t, d.Kubeconfig(), "", asks("300Mi")...)
	d.check(t, r.Code != 0, "it was made smaller")

	listed := d.Must(t, datacenter.Owner, "volumes", "list")
	d.check(t, strings.Contains(listed, "default/data") && strings.Contains(listed, "512Mi"), "it is listed as:\n%s", listed)
	uid := d.volumeOf(t, "data")
	d.on(t, uid)
	volume := strings.TrimSpace(d.Kubectl(t, "get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}"))
	r = d.MP(t, datacenter.Owner, "volumes", "delete", volume, "--yes")
	d.check(t, r.Code != 0 && strings.Contains(r.Err, "default/data"), "deleted under its claim: %s", r)

	d.delete(t, "pod", "disk")
	d.Apply(t, d.pod("again", "data", "wait"))
	d.runs(t, "again")
	r = d.Kube(t, d.Kubeconfig(), "", "exec", "again", "--", "/probe", "read", "/data/full")
	d.check(t, r.Code == 0 && strings.Contains(r.Out, fmt.Sprint("of ", full)), "the next pod reads: %s", r)

	// What can't be is said where people look.
	d.Apply(t, strings.ReplaceAll(claim("many", "320Mi", ""), "ReadWriteOnce", "ReadWriteMany")+d.pod("many", "many", "wait"))
	d.event(t, "many", "one machine at a time")
	d.delete(t, "pod/again", "pod/many", "pvc/data", "pvc/many")
	d.gone(t, uid)
	wait.For(t, wait.Patience, "no volume is listed", func(context.Context) error {
		if out := d.Must(t, datacenter.Owner, "volumes", "list", "-o", "json"); strings.Contains(out, uid) {
			return fmt.Errorf("listed: %s", out)
		}
		return nil
	})
}
