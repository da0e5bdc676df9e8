// Package storage runs upstream's controllers of volumes, which elsewhere are sidecars in a
// cluster: external-provisioner makes a volume for a claim, external-resizer lets it grow,
// external-snapshotter and the snapshot controller make snapshots.
// Here they speak CSI to a unix socket that the platform's server opens beside the plane.
//
// It promises that claims go on by themselves whenever somebody answers at the socket, and
// that nothing there ends the plane. They share one connection and one cache of the
// cluster's objects.
//
// They act as a user who may do what volumes need and nothing else (embed/manifests has
// the role): as the controller manager, a secret that a tenant names in a StorageClass would be
// read for whoever may make such a class. What is at the socket takes nothing they say for more than the
// tenant's word.
//
// Only package plane imports it.
package storage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	_ "gates.multipaas.internal" // before these
	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/rpc"
	provisioning "github.com/kubernetes-csi/external-provisioner/v6/pkg/controller"
	resizing "github.com/kubernetes-csi/external-resizer/v2/pkg/controller"
	"github.com/kubernetes-csi/external-resizer/v2/pkg/resizer"
	snapshotclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	csitrans "k8s.io/csi-translation-lib"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/multipaas/multipaas/embed/kube/volumes"
)

// Config says where the CSI controller is, and as whom to speak to the API server.
type Config struct {
	Socket     string `json:"socket"`     // path of a unix socket
	Kubeconfig string `json:"kubeconfig"` // path of a file
}

const (
	// callTimeout is how long a volume may take to be made before it is asked for
	// again; the answer to the second question is the same.
	callTimeout = 30 * time.Second
	// helloTimeout bounds a question that needs no work.
	helloTimeout = 10 * time.Second
	// Between two attempts at a claim, and at the socket.
	firstRetry, lastRetry = time.Second, time.Minute
	// resync is how often everything is looked at without cause, as upstream has it.
	resync = 10 * time.Minute
	// workers of each: a tenant's claims wait for each other, not for those of others.
	workers = 4
)

// Run looks after volumes until ctx is done. Whatever goes wrong is logged and tried again.
func Run(ctx context.Context, cfg Config) {
	for wait := firstRetry; ctx.Err() == nil; wait = min(2*wait, lastRetry) {
		if err := serve(ctx, cfg); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Volumes can't be provided; trying again", "socket", cfg.Socket, "after", wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// driver is what is at the socket.
type driver struct {
	conn    *grpc.ClientConn
	can     rpc.PluginCapabilitySet
	control rpc.ControllerCapabilitySet
}

// dial opens a connection that comes back by itself: the server may be started again, and
// what is asked meanwhile waits for it.
func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithUnaryInterceptor(plain),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: helloTimeout,
		}))
}

// await returns once somebody listens at the other end, or ctx is done.
func await(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return nil
		}
		if state == connectivity.Idle {
			conn.Connect()
		}
		if !conn.WaitForStateChange(ctx, state) {
			return ctx.Err()
		}
	}
}

// meet asks who answers at the socket, and what it can do.
func meet(ctx context.Context, conn *grpc.ClientConn) (*driver, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	name, err := rpc.GetDriverName(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("nobody answers at the socket: %w", err)
	}
	if name != volumes.Driver {
		return nil, fmt.Errorf("%q answers at the socket, want %q", name, volumes.Driver)
	}
	d := &driver{conn: conn}
	if d.can, err = rpc.GetPluginCapabilities(ctx, conn); err != nil {
		return nil, fmt.Errorf("ask what it serves: %w", err)
	}
	if d.control, err = rpc.GetControllerCapabilities(ctx, conn); err != nil {
		return nil, fmt.Errorf("ask what its controller can do: %w", err)
	}
	for _, need := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	} {
		if !d.control[need] {
			return nil, fmt.Errorf("what answers at the socket has no %s", need)
		}
	}
	return d, nil
}

// serve runs the controllers until ctx is done. Those of upstream leave goroutines behind
// that end with their work: it returns an error only before it has started them.
func serve(ctx context.Context, cfg Config) error {
	conn, err := dial(cfg.Socket)
	if err != nil {
		return err
	}
	defer conn.Close() // ends what is being asked
	klog.InfoS("Waiting for who provides volumes", "socket", cfg.Socket)
	if err := await(ctx, conn); err != nil {
		return err
	}
	d, err := meet(ctx, conn)
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.QPS, config.Burst = 50, 100
	loud, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	client := quiet{loud}
	factory := informers.NewSharedInformerFactoryWithOptions(client, resync, informers.WithTransform(lean))
	snapshots, snap, err := d.snapshots(config, client, factory)
	if err != nil {
		return err
	}
	runs := []func(context.Context){snap, d.provision(ctx, client, snapshots, factory)}
	resize, err := d.resize(client, factory)
	if err != nil {
		return err
	}
	runs = append(runs, resize)
	factory.StartWithContext(ctx)
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("read %s", kind)
		}
	}
	klog.InfoS("Volumes are provided", "driver", volumes.Driver)
	var running sync.WaitGroup
	for _, run := range runs {
		running.Go(func() { run(ctx) })
	}
	running.Wait()
	factory.Shutdown()
	return nil
}

func retries() workqueue.TypedRateLimiter[string] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry)
}

func (d *driver) provision(
	ctx context.Context, client kubernetes.Interface, snapshots snapshotclient.Interface, factory informers.SharedInformerFactory,
) func(context.Context) {
	core, storage := factory.Core().V1(), factory.Storage().V1()
	claims := core.PersistentVolumeClaims()
	var topology provisioning.TopologyProvider
	var csiNodes storagelisters.CSINodeLister
	if provisioning.SupportsTopology(d.can) {
		topology, csiNodes = provisioning.NewInMemoryStore(), storage.CSINodes().Lister()
	}
	provisioner := provisioning.NewCSIProvisioner(client, callTimeout, volumes.Driver,
		"pvc", -1, // the prefix of names, then the claim's whole UID
		d.conn,
		snapshots,
		volumes.Driver, d.can, d.control,
		"",          // it replaces no plugin of Kubernetes' own
		true, false, // the place of the node that was chosen, no other; none if none was
		csitrans.New(),
		storage.StorageClasses().Lister(), csiNodes, core.Nodes().Lister(), claims.Lister(),
		nil,   // nothing is attached: all machines on a volume's host see it
		nil,   // no sources in other namespaces
		true,  // names of claims with the request
		"",    // the platform chooses the file system
		nil,   // not one per node
		false, // no read-only attachments by access mode
		true,  // a block device's snapshot stays one
		topology,
	)
	run := controller.NewProvisionController(ctx, client, volumes.Driver, provisioner,
		controller.LeaderElection(false),
		controller.FailedProvisionThreshold(0), // never give up
		controller.FailedDeleteThreshold(0),
		controller.RateLimiter(retries()),
		controller.RetryIntervalMax(lastRetry),
		controller.Threadiness(workers),
		controller.CreateProvisionedPVLimiter(workqueue.DefaultTypedControllerRateLimiter[string]()),
		controller.ClaimsInformer(claims.Informer()),
		controller.VolumesInformer(core.PersistentVolumes().Informer()),
		controller.ClassesInformer(storage.StorageClasses().Informer()),
		controller.AddFinalizer(true),
	)
	// What a claim is cloned from stays until that is done, by a finalizer that this takes away.
	protects := provisioning.NewCloningProtectionController(client, claims.Lister(), claims.Informer(),
		workqueue.NewTypedRateLimitingQueue(retries()), d.control)
	return func(ctx context.Context) {
		var running sync.WaitGroup
		if protects != nil {
			running.Go(func() { protects.Run(ctx, 1, new(sync.WaitGroup)) })
		}
		run.Run(ctx)
		running.Wait()
	}
}

func (d *driver) resize(client kubernetes.Interface, factory informers.SharedInformerFactory) (func(context.Context), error) {
	sizer, err := resizer.NewResizerFromClient(expander{d}, callTimeout, client, volumes.Driver)
	if err != nil {
		return nil, err
	}
	// Volumes grow under their pods, so nothing is to be known of pods: a cache of
	// them would be the largest here.
	const askForPods = false
	run := resizing.NewResizeController(volumes.Driver, sizer, client, resync, factory, retries(), askForPods, lastRetry)
	return func(ctx context.Context) { run.Run(workers, ctx, new(sync.WaitGroup)) }, nil
}

// expander is the resizer's client. Upstream's own ends the process when the connection is lost.
type expander struct{ *driver }

func (expander) GetDriverName(context.Context) (string, error) { return volumes.Driver, nil }

func (e expander) SupportsPluginControllerService(context.Context) (bool, error) {
	return e.can[csi.PluginCapability_Service_CONTROLLER_SERVICE], nil
}

func (e expander) SupportsControllerResize(context.Context) (bool, error) {
	return e.control[csi.ControllerServiceCapability_RPC_EXPAND_VOLUME], nil
}

func (expander) SupportsNodeResize(context.Context) (bool, error) { return false, nil }

func (expander) SupportsControllerModify(context.Context) (bool, error) { return false, nil }

func (e expander) SupportsControllerSingleNodeMultiWriter(context.Context) (bool, error) {
	return e.control[csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER], nil
}

func (e expander) Expand(
	ctx context.Context, id string, bytes int64, secrets map[string]string, capability *csi.VolumeCapability,
) (int64, bool, error) {
	resp, err := csi.NewControllerClient(e.conn).ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, Secrets: secrets, VolumeCapability: capability})
	return resp.GetCapacityBytes(), resp.GetNodeExpansionRequired(), err
}

func (expander) Modify(context.Context, string, map[string]string, map[string]string) error {
	return errors.ErrUnsupported
}

func (expander) CloseConnection() {}

// lean takes what nobody here reads from what is kept of the cluster's objects.
func lean(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	if n, ok := o.(*corev1.Node); ok {
		n.Spec, n.Status, n.Annotations = corev1.NodeSpec{}, corev1.NodeStatus{}, nil
	}
	return o, nil
}
