package storage

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/wait"
)

// snapshots: what tools ask of any cluster: a VolumeSnapshot of a claim, a claim that is made from it, and one that
// is cloned from the claim. All go with their objects.
func (d *trial) snapshots(t *testing.T, class string) {
	class = ", storageClassName: " + class
	d.Apply(t, claim("data", "320Mi", class)+d.pod("first", "data", "wait"))
	d.runs(t, "first")
	d.ask(t, "first", "fill", "/data/full")
	full := d.Kube(t, d.Kubeconfig(), "", "exec", "first", "--", "/probe", "read", "/data/full").Out
	d.Apply(t, `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: before}
spec: {source: {persistentVolumeClaimName: data}}
`)
	wait.For(t, wait.Patience, "the snapshot can be used", func(context.Context) error {
		r := d.Kube(t, d.Kubeconfig(), "", "get", "volumesnapshot", "before", "-o", "jsonpath={.status}")
		if !strings.Contains(r.Out, `"readyToUse":true`) {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
	listed := d.Must(t, datacenter.Owner, "snapshots", "list")
	d.check(t, strings.Contains(listed, "snapshot-"), "it is listed as:\n%s", listed)
	d.Apply(t, claim("back", "400Mi", class+", dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}")+
		d.pod("second", "back", "wait"))
	d.runs(t, "second")
	r := d.Kube(t, d.Kubeconfig(), "", "exec", "second", "--", "/probe", "read", "/data/full")
	d.check(t, r.Code == 0 && r.Out == full, "the second pod reads: %s", r)
	d.Apply(t, claim("twin", "320Mi", class+", dataSource: {kind: PersistentVolumeClaim, name: data}")+d.pod("third", "twin", "wait"))
	d.runs(t, "third")
	r = d.Kube(t, d.Kubeconfig(), "", "exec", "third", "--", "/probe", "read", "/data/full")
	d.check(t, r.Code == 0 && r.Out == full, "the pod with the clone reads: %s", r)
	uids := []string{d.volumeOf(t, "data"), d.volumeOf(t, "back"), d.volumeOf(t, "twin")}
	// The first goes although it was held for its clone.
	d.delete(t, "pod/first", "pvc/data")
	d.delete(t, "volumesnapshot/before", "pod/second", "pod/third", "pvc/back", "pvc/twin")
	for _, uid := range uids {
		d.gone(t, uid)
	}
	wait.For(t, wait.Patience, "no snapshot is listed", func(context.Context) error {
		if out := d.Must(t, datacenter.Owner, "snapshots", "list", "-o", "name"); strings.TrimSpace(out) != "" {
			return fmt.Errorf("listed: %s", out)
		}
		return nil
	})
}
