package plane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/testing/wait"
)

const (
	csiDriver  = "storage.multipaas.internal"
	csiPlace   = csiDriver + "/host"
	csiMachine = "11111111-2222-3333-4444-555555555555"
)

// controller is this harness's CSI controller: it keeps what it is asked for and makes no
// volume. The real one is modules/storage, in the server's process.
type controller struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer

	mu      sync.Mutex
	volumes map[string]*csi.CreateVolumeRequest // by id
	sizes   map[string]int64
}

func newController() *controller {
	return &controller{volumes: map[string]*csi.CreateVolumeRequest{}, sizes: map[string]int64{}}
}

// open serves the plane that has this socket, as the server does: root's, and for its group.
func (c *controller) open(t *testing.T, cfg Config) (shut func()) {
	t.Helper()
	_ = os.Remove(cfg.StorageSocket)
	ln, err := net.Listen("unix", cfg.StorageSocket)
	if err == nil {
		err = cmp.Or(os.Chown(cfg.StorageSocket, 0, cfg.UID), os.Chmod(cfg.StorageSocket, 0o660))
	}
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, c)
	csi.RegisterControllerServer(server, c)
	go func() { _ = server.Serve(ln) }()
	shut = sync.OnceFunc(server.Stop)
	t.Cleanup(shut)
	return shut
}

func (c *controller) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: csiDriver, VendorVersion: "1"}, nil
}

func (c *controller) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	resp := &csi.GetPluginCapabilitiesResponse{}
	for _, s := range []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_CONTROLLER_SERVICE, csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS} {
		resp.Capabilities = append(resp.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: s}}})
	}
	return resp, nil
}

func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	for _, r := range []csi.ControllerServiceCapability_RPC_Type{csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME, csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER} {
		resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: r}}})
	}
	return resp, nil
}

const tooMuch = "the account has 10 GiB left: make it smaller, or ask for more"

func (c *controller) CreateVolume(_ context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := req.CapacityRange.RequiredBytes
	if size > 10<<30 {
		return nil, status.Error(codes.InvalidArgument, tooMuch)
	}
	id := strings.TrimPrefix(req.Name, "pvc-")
	c.volumes[id], c.sizes[id] = req, size
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: id, CapacityBytes: size, AccessibleTopology: req.AccessibilityRequirements.GetRequisite()}}, nil
}

func (c *controller) DeleteVolume(_ context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.volumes, req.VolumeId)
	return &csi.DeleteVolumeResponse{}, nil
}

func (c *controller) ControllerExpandVolume(_ context.Context, req *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes[req.VolumeId] = req.CapacityRange.RequiredBytes
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: req.CapacityRange.RequiredBytes}, nil
}

// count is how many volumes there are.
func (c *controller) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.volumes)
}

// heartbeat says of the node what its kubelet says from time to time: it is well, and none
// of its volumes is in use.
func heartbeat(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	status := applycorev1.Node("m1").WithStatus(applycorev1.NodeStatus().
		WithConditions(applycorev1.NodeCondition().WithType(corev1.NodeReady).WithStatus(corev1.ConditionTrue).
			WithLastHeartbeatTime(metav1.Now()).WithLastTransitionTime(metav1.Now())).
		WithAllocatable(corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("200Mi"), corev1.ResourcePods: resource.MustParse("10")}))
	if _, err := client.CoreV1().Nodes().ApplyStatus(t.Context(), status, metav1.ApplyOptions{FieldManager: "kubelet", Force: true}); err != nil {
		t.Error(err)
	}
}

// joinWithVolumes makes a node as a machine's kubelet does that has the driver.
func joinWithVolumes(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m1", Labels: map[string]string{csiPlace: "host-1"},
		Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}}
	if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	heartbeat(t, client)
	has := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "m1"}, Spec: storagev1.CSINodeSpec{
		Drivers: []storagev1.CSINodeDriver{{Name: csiDriver, NodeID: csiMachine, TopologyKeys: []string{csiPlace}}}}}
	if _, err := client.StorageV1().CSINodes().Create(t.Context(), has, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func newClaim(name, size string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}}}
}

// claim makes a claim of the default class, and a pod that waits for it.
func claim(t *testing.T, client kubernetes.Interface, name, size string) {
	t.Helper()
	made, err := client.CoreV1().PersistentVolumeClaims("default").Create(t.Context(), newClaim(name, size), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if class := made.Spec.StorageClassName; class == nil || *class != "local" {
		t.Errorf("claim %s has class %v, want the default", name, class)
	}
	_, err = client.CoreV1().Pods("default").Create(t.Context(), pod(name, func(s *corev1.PodSpec) {
		s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
	}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStorage follows claims through the plane of a workspace, within its walls: to a volume, to a
// machine, to a larger size, and to the end.
func TestStorage(t *testing.T) {
	ns := newNamespace(t)
	cfg := newConfig(t, ns)
	cfg.StorageSocket = filepath.Join(cfg.Dir, "storage.sock")
	p, _ := start(t, cfg)
	client := clientFor(t, p.RESTConfig())
	s := newShell(t, p)
	ctx := t.Context()
	wait.For(t, wait.Patience, "default service account", func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	furnish(s, "multipaas:storage", "kind: CSIDriver", "kind: StorageClass")
	joinWithVolumes(t, client)
	claim(t, client, "data", "1Gi")
	claim(t, client, "huge", "100Gi")

	// Nobody has answered so far.
	c := newController()
	shut := c.open(t, cfg)
	began := time.Now()
	bound := func(name string) (pvc *corev1.PersistentVolumeClaim) {
		wait.For(t, wait.Patience, "claim "+name+" bound", func(ctx context.Context) (err error) {
			pvc, err = client.CoreV1().PersistentVolumeClaims("default").Get(ctx, name, metav1.GetOptions{})
			if err == nil && pvc.Status.Phase != corev1.ClaimBound {
				err = fmt.Errorf("it is %s", pvc.Status.Phase)
			}
			if err != nil {
				return err
			}
			return nil
		})
		return pvc
	}
	data := bound("data")
	t.Logf("provided after %s", time.Since(began).Round(time.Millisecond))
	c.mu.Lock()
	asked := c.volumes[string(data.UID)]
	c.mu.Unlock()
	for key, want := range map[string]string{"class": "local", "csi.storage.k8s.io/pvc/namespace": "default", "csi.storage.k8s.io/pvc/name": "data"} {
		if got := asked.GetParameters()[key]; got != want {
			t.Errorf("asked for with %s %q, want %q", key, got, want)
		}
	}
	pv, err := client.CoreV1().PersistentVolumes().Get(ctx, data.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || pv.Spec.CSI == nil || pv.Spec.CSI.VolumeHandle != string(data.UID) || pv.Spec.NodeAffinity == nil ||
		pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Key != csiPlace {
		t.Errorf("%+v, %v: want its volume where it is", pv.Spec, err)
	}

	t.Run("refused", func(t *testing.T) {
		host, _ := os.Hostname()
		wait.For(t, wait.Patience, "an event that says why", func(ctx context.Context) error {
			events, err := client.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=huge,reason=ProvisioningFailed"})
			if err != nil {
				return err
			}
			for _, e := range events.Items {
				if strings.HasSuffix(e.Message, " "+tooMuch) && e.Source.Component == "multipaas" && e.Source.Host == "" {
					if strings.Contains(fmt.Sprint(e), host) {
						t.Errorf("an event names the server: %+v", e)
					}
					return nil
				}
			}
			return fmt.Errorf("%d events: %+v", len(events.Items), events.Items)
		})
	})
	t.Run("grows", func(t *testing.T) {
		patch := []byte(`{"spec": {"resources": {"requests": {"storage": "2Gi"}}}}`)
		if _, err := client.CoreV1().PersistentVolumeClaims("default").Patch(ctx, "data", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		wait.For(t, wait.Patience, "the new size", func(ctx context.Context) error {
			now, err := client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "data", metav1.GetOptions{})
			if err == nil && now.Status.Capacity.Storage().Value() != 2<<30 {
				err = fmt.Errorf("%s", now.Status.Capacity.Storage())
			}
			return err
		})
	})
	// The server goes and comes, and the plane stays.
	pid := p.PID()
	shut()
	claim(t, client, "later", "1Gi")
	c.open(t, cfg)
	bound("later")
	if p.PID() != pid {
		t.Error("the plane was started again")
	}
	t.Run("rights", func(t *testing.T) { testStorageRights(t, client) })
	t.Run("deleted", func(t *testing.T) {
		now := int64(0)
		for _, name := range []string{"data", "huge", "later"} {
			if err := errors.Join(client.CoreV1().Pods("default").Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}),
				client.CoreV1().PersistentVolumeClaims("default").Delete(ctx, name, metav1.DeleteOptions{})); err != nil {
				t.Fatal(err)
			}
		}
		wait.For(t, wait.Patience, "all volumes are gone", func(ctx context.Context) error {
			heartbeat(t, client)
			pvs, err := client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			if volumes := c.count(); volumes+len(pvs.Items) > 0 {
				return fmt.Errorf("%d volumes, %d PersistentVolumes", volumes, len(pvs.Items))
			}
			return nil
		})
	})
	testStorageRefusals(t, p, client)
}

// testStorageRights: who looks after volumes may do that, and reads no secret and runs no pod.
func testStorageRights(t *testing.T, client kubernetes.Interface) {
	for what, want := range map[string]bool{"create persistentvolumes": true, "update persistentvolumeclaims": true, "create events": true,
		"get secrets": false, "create pods": false, "create persistentvolumeclaims": false, "delete persistentvolumeclaims": false, "patch nodes": false, "create serviceaccounts": false} {
		verb, kind, _ := strings.Cut(what, " ")
		review, err := client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: storageUser, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: kind, Namespace: "default"}}}, metav1.CreateOptions{})
		if err != nil || review.Status.Allowed != want {
			t.Errorf("%s may %s: %v, %v", storageUser, what, review.Status.Allowed, err)
		}
	}
}

// testStorageRefusals: what a tenant makes of the platform's driver.
func testStorageRefusals(t *testing.T, p *Plane, platform kubernetes.Interface) {
	source := corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: csiDriver, VolumeHandle: csiMachine, FSType: "ext4"}}
	posing := p.RESTConfig()
	posing.Impersonate.UserName, posing.Impersonate.Groups = "ann", []string{"system:masters"} // a cluster-admin
	admin := clientFor(t, posing)
	_, err := admin.CoreV1().PersistentVolumes().Create(t.Context(), volume("ext4", source), metav1.CreateOptions{})
	wantRefused(t, "another file system", err, "leave the type out")
	inline := pod("inline", func(s *corev1.PodSpec) {
		s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: csiDriver}}}}
	})
	_, err = admin.CoreV1().Pods("default").Create(t.Context(), inline, metav1.CreateOptions{})
	wantRefused(t, "inline", err, "PersistentVolumeClaim")
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "suid"}, Provisioner: csiDriver, MountOptions: []string{"suid"}}
	_, err = admin.StorageV1().StorageClasses().Create(t.Context(), class, metav1.CreateOptions{})
	wantRefused(t, "a class with options", err, `"suid"`)
	posing.Impersonate.UserName = storageUser
	_, err = clientFor(t, posing).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	wantRefused(t, "impersonating who looks after volumes", err, "can't be impersonated")

	// A machine has its own driver's entry, and no other's.
	machine := p.RESTConfig()
	machine.Impersonate.UserName, machine.Impersonate.Groups = "system:node:m2", []string{"system:nodes"}
	_, err = clientFor(t, machine).StorageV1().CSINodes().Patch(t.Context(), "m1", types.MergePatchType, []byte(`{"metadata": {"labels": {"a": "b"}}}`), metav1.PatchOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("a machine writes another's CSINode: %v", err)
	}
}

func TestStorageSocketIsInDir(t *testing.T) {
	err := New(Config{ID: "x", Dir: "/d/plane", StorageSocket: "/d/storage.sock"}).Run(t.Context(), func() {}, nil)
	if err == nil || !strings.Contains(err.Error(), "storage socket") {
		t.Errorf("got %v", err)
	}
}
