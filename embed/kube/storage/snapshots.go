package storage

import (
	"context"
	"sync"
	"time"

	snapshotapi "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapshotclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	snapshotscheme "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned/scheme"
	snapshotinformers "github.com/kubernetes-csi/external-snapshotter/client/v8/informers/externalversions"
	common "github.com/kubernetes-csi/external-snapshotter/v8/pkg/common-controller"
	"github.com/kubernetes-csi/external-snapshotter/v8/pkg/metrics"
	sidecar "github.com/kubernetes-csi/external-snapshotter/v8/pkg/sidecar-controller"
	"github.com/kubernetes-csi/external-snapshotter/v8/pkg/snapshotter"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/multipaas/multipaas/embed/kube/volumes"
)

// Upstream's controllers look their kinds up in this table when they write events, and it can't be
// changed any more once others in the process read it.
func init() { utilruntime.Must(snapshotscheme.AddToScheme(scheme.Scheme)) }

// snapshotClass is what VolumeSnapshots have that name no class.
const snapshotClass = "local"

// lookForKinds is how often it is looked whether the cluster has VolumeSnapshots: a new one gets them with what
// every cluster gets, and its admin may take them away.
const lookForKinds = 10 * time.Second

// snapshots makes snapshots of volumes for VolumeSnapshots: what elsewhere are the snapshot controller
// and the sidecar external-snapshotter. It runs nothing before the cluster has those kinds.
func (d *driver) snapshots(
	config *rest.Config, client kubernetes.Interface, factory informers.SharedInformerFactory,
) (snapshotclient.Interface, func(context.Context), error) {
	config = rest.CopyConfig(config)
	config.ContentType = "application/json" // kinds that a cluster has been given know no other
	own, err := snapshotclient.NewForConfig(config)
	if err != nil {
		return nil, nil, err
	}
	kinds := snapshotinformers.NewSharedInformerFactoryWithOptions(own, resync, snapshotinformers.WithTransform(lean))
	snaps, core := kinds.Snapshot().V1(), factory.Core().V1()
	binds := common.NewCSISnapshotCommonController(own, client,
		snaps.VolumeSnapshots(), snaps.VolumeSnapshotContents(), snaps.VolumeSnapshotClasses(),
		nil, nil, nil, // no groups of snapshots
		core.PersistentVolumeClaims(), core.PersistentVolumes(), nil, metrics.NewMetricsManager(), resync,
		retries(), retries(), retries(), retries(),
		false,        // one for all nodes
		false, false, // there are no block devices, and no groups
	)
	makes := sidecar.NewCSISnapshotSideCarController(own, client, volumes.Driver,
		snaps.VolumeSnapshotContents(), snaps.VolumeSnapshotClasses(), snapshotter.NewSnapshotter(d.conn), nil,
		callTimeout, resync,
		"snapshot", -1, // the prefix of names, then the VolumeSnapshot's whole UID
		"", -1, false, retries(), false, nil, nil, retries(),
	)
	return own, func(ctx context.Context) {
		if !awaitKinds(ctx, own) {
			return
		}
		kinds.Start(ctx.Done())
		klog.InfoS("Snapshots of volumes are made", "driver", volumes.Driver)
		var running sync.WaitGroup
		running.Go(func() { binds.Run(workers, ctx.Done(), new(sync.WaitGroup)) })
		running.Go(func() { makes.Run(workers, ctx.Done(), new(sync.WaitGroup)) })
		running.Wait()
		kinds.Shutdown()
	}, nil
}

// awaitKinds waits until the cluster has the kinds, and gives it a class if it has none of this name. It is false
// if ctx ended first.
func awaitKinds(ctx context.Context, client snapshotclient.Interface) bool {
	for {
		classes := client.SnapshotV1().VolumeSnapshotClasses()
		_, err := classes.Create(ctx, &snapshotapi.VolumeSnapshotClass{
			ObjectMeta: metav1.ObjectMeta{Name: snapshotClass,
				Annotations: map[string]string{"snapshot.storage.kubernetes.io/is-default-class": "true"}},
			Driver: volumes.Driver, DeletionPolicy: snapshotapi.VolumeSnapshotContentDelete,
		}, metav1.CreateOptions{})
		switch {
		case err == nil, apierrors.IsAlreadyExists(err):
			return true
		case !apierrors.IsNotFound(err):
			klog.ErrorS(err, "The class of snapshots can't be made; trying again")
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(lookForKinds):
		}
	}
}
