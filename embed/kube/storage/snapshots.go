package storage

import (
	"context"
	"sync"
	"time"

	provisioning "github.com/kubernetes-csi/external-provisioner/v6/pkg/controller"
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
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/multipaas/multipaas/embed/kube/volumes"
)

// Upstream's controllers look their kinds up in this table when they write events, and it can't be
// changed any more once others in the process read it.
func init() { utilruntime.Must(snapshotscheme.AddToScheme(scheme.Scheme)) }

// snapshotClass is what VolumeSnapshots have that name no class.
const snapshotClass = "local"

// lastKind is the last that a new cluster gets of the kinds of snapshots. Its admin may take them away.
const lastKind = "volumesnapshotclasses.snapshot.storage.k8s.io"

// sweep is how often upstream lets go of snapshots that it held for claims which are made, or gone.
const sweep = 5 * time.Minute

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
	definitions, err := metadata.NewForConfig(config)
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
	lets := provisioning.NewSnapshotFinalizerController(own, core.PersistentVolumeClaims().Lister(), d.control, sweep)
	return own, func(ctx context.Context) {
		if !awaitKinds(ctx, definitions, own) {
			return
		}
		kinds.Start(ctx.Done())
		klog.InfoS("Snapshots of volumes are made", "driver", volumes.Driver)
		var running sync.WaitGroup
		running.Go(func() { binds.Run(workers, ctx.Done(), new(sync.WaitGroup)) })
		running.Go(func() { makes.Run(workers, ctx.Done(), new(sync.WaitGroup)) })
		if lets != nil {
			running.Go(func() { lets.Run(ctx, new(sync.WaitGroup)) })
		}
		running.Wait()
		kinds.Shutdown()
	}, nil
}

// awaitKinds waits until the cluster has the kinds, and gives it a class if it has none of this name. It is false
// if ctx ended first.
func awaitKinds(ctx context.Context, definitions metadata.Interface, client snapshotclient.Interface) bool {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	changed := make(chan struct{}, 1)
	kind := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	informer := metadatainformer.NewFilteredMetadataInformer(definitions, kind, "", 0, cache.Indexers{},
		func(o *metav1.ListOptions) { o.FieldSelector = "metadata.name=" + lastKind }).Informer()
	tell := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: tell, UpdateFunc: func(_, now any) { tell(now) }}); err != nil {
		klog.ErrorS(err, "The kinds of snapshots can't be watched")
		return false
	}
	go informer.RunWithContext(watching)
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		_, err := client.SnapshotV1().VolumeSnapshotClasses().Create(ctx, &snapshotapi.VolumeSnapshotClass{
			ObjectMeta: metav1.ObjectMeta{Name: snapshotClass,
				Annotations: map[string]string{"snapshot.storage.kubernetes.io/is-default-class": "true"}},
			Driver: volumes.Driver, DeletionPolicy: snapshotapi.VolumeSnapshotContentDelete,
		}, metav1.CreateOptions{})
		if err == nil || apierrors.IsAlreadyExists(err) {
			return true
		}
		// Defined, but not served yet, or something else is wrong: that comes true without a word.
		var soon <-chan time.Time
		if gone := apierrors.IsNotFound(err); !gone || len(informer.GetStore().List()) > 0 {
			soon = time.After(wait)
			if !gone {
				klog.ErrorS(err, "The class of snapshots can't be made; trying again")
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		case <-soon:
		}
	}
}
