package storage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/wait"
)

const gib = 1 << 30

// world is a platform with two hosts of which each runs a machine of acme/web/shop, and a
// workspace of somebody else's. What hosts would report is written down by the test.
type world struct {
	*Controller
	t        *testing.T
	db       *store.Store
	ws       *resource.Workspace
	machines []*resource.Machine
	nodes    []*resource.Node

	mu      sync.Mutex
	stopped bool // hosts do nothing
}

func newWorld(t *testing.T) *world {
	db := storetest.New(t)
	w := &world{t: t, db: db}
	account, other := &resource.Account{Meta: resource.Meta{Name: "acme"}}, &resource.Account{Meta: resource.Meta{Name: "evil"}}
	w.ws = &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	foreign := &resource.Workspace{InOrganization: resource.NewInOrganization("evil/web", "shop")}
	ops := []store.Op{store.Of[resource.Account](db).CreateOp(account), store.Of[resource.Account](db).CreateOp(other),
		store.Of[resource.Workspace](db).CreateOp(w.ws), store.Of[resource.Workspace](db).CreateOp(foreign)}
	for i := range 3 {
		n := &resource.Node{Meta: resource.Meta{Name: fmt.Sprintf("n%d", i+1)}}
		n.Status.Phase, n.Status.Capacity = resource.Ready, resource.Size{MilliCPU: 8000, MemoryBytes: 8 * gib, DiskBytes: int64(20+10*i) * gib}
		n.Status.Pools = []resource.Pool{{Name: "default", Copies: true}}
		ops, w.nodes = append(ops, store.Of[resource.Node](db).CreateOp(n)), append(w.nodes, n)
		if i < 2 {
			m := &resource.Machine{InWorkspace: resource.NewInWorkspace(w.ws.Key(), fmt.Sprintf("shop-%d", i+1))}
			m.Spec.Node, m.Spec.FirstUID, m.Spec.Size = n.Name, 1<<28, resource.Size{DiskBytes: 5 * gib}
			ops, w.machines = append(ops, store.Of[resource.Machine](db).CreateOp(m)), append(w.machines, m)
		}
	}
	if err := db.Commit(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Store: db, Seal: testSeal(t), Limits: resource.Limits{Volumes: 4, VolumeBytes: 30 * gib},
		Volumes: store.Of[resource.Volume](db).Cache(nil), Snapshots: store.Of[resource.Snapshot](db).Cache(nil), Trash: store.Of[resource.Trash](db).Cache(nil), Nodes: store.Of[resource.Node](db).Cache(nil),
		Machines: store.Of[resource.Machine](db).Cache(nil), Workspaces: store.Of[resource.Workspace](db).Cache(nil)}
	for _, run := range []func(context.Context, func()) error{cfg.Volumes.Run, cfg.Snapshots.Run, cfg.Trash.Run, cfg.Nodes.Run, cfg.Machines.Run, cfg.Workspaces.Run} {
		parttest.Run(t, run)
	}
	w.Controller = New(cfg)
	parttest.Run(t, w.Run)
	parttest.Run(t, w.hosts)
	return w
}

// hosts do what agents do and the hub writes down.
func (w *world) hosts(ctx context.Context, ready func()) error {
	ready()
	for e := range store.Of[resource.Volume](w.db).Watch(ctx, "") {
		w.mu.Lock()
		stopped := w.stopped
		w.mu.Unlock()
		if stopped || e.Object == nil || e.Object.Status.Node == "" {
			continue
		}
		w.report(ctx, e.Object)
	}
	return nil
}

func (w *world) report(ctx context.Context, v *resource.Volume) {
	_, err := store.Of[resource.Volume](w.db).Modify(ctx, v.Key(), func(v *resource.Volume) error {
		if v.Deleting() {
			if v.Status.Phase != resource.Deleting {
				return store.ErrSkip // it was not told yet
			}
			v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeRemoved, Status: resource.True})
			return nil
		}
		v.Status.Conditions.Set(resource.Condition{Type: resource.VolumeReady, Status: resource.True, Reason: "Ready"})
		v.Status.SizeBytes = v.Spec.SizeBytes
		v.Status.Attachments = []resource.VolumeAttachment{{Machine: "shop-1", Attached: true}}
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
		w.t.Error(err)
	}
}

// stop has hosts do nothing, or work again.
func (w *world) stop(stopped bool) {
	w.mu.Lock()
	w.stopped = stopped
	w.mu.Unlock()
	if stopped {
		return
	}
	all, _, err := store.Of[resource.Volume](w.db).List(w.t.Context(), "", "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range all {
		w.report(w.t.Context(), v)
	}
}

// plane is a client of a workspace's endpoint.
type plane struct {
	csi.ControllerClient
	csi.IdentityClient
}

func (w *world) plane(key string) plane {
	w.t.Helper()
	ws, err := store.Of[resource.Workspace](w.db).Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	socket := filepath.Join(w.t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		w.t.Fatal(err)
	}
	parttest.Run(w.t, func(ctx context.Context, ready func()) error {
		ready()
		return w.Serve(ctx, key, ws.UID, ln)
	})
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return plane{csi.NewControllerClient(conn), csi.NewIdentityClient(conn)}
}

var once = []*csi.VolumeCapability{{AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}}

func claim(name string, size int64, places ...string) *csi.CreateVolumeRequest {
	r := &csi.CreateVolumeRequest{Name: "pvc-" + name, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapabilities: once,
		Parameters: map[string]string{"class": "local", claimName: name, claimNamespace: "default"}}
	for _, p := range places {
		if r.AccessibilityRequirements == nil {
			r.AccessibilityRequirements = &csi.TopologyRequirement{}
		}
		r.AccessibilityRequirements.Preferred = append(r.AccessibilityRequirements.Preferred, &csi.Topology{Segments: map[string]string{PlaceKey: p}})
	}
	return r
}

// want fails unless err has the code and says text.
func want(t *testing.T, what string, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("%s: got %v, want %v with %q", what, err, code, text)
	}
}

// TestClaim: the life of a claim's volume, asked for by its plane.
func TestClaim(t *testing.T) {
	w := newWorld(t)
	p, ctx := w.plane("acme/web/shop"), t.Context()
	place := wire.Place(w.ws.UID, w.nodes[0].UID)
	made, err := p.CreateVolume(ctx, claim("data", gib, place))
	if err != nil {
		t.Fatal(err)
	}
	id := made.Volume.VolumeId
	if got := made.Volume.AccessibleTopology[0].Segments[PlaceKey]; got != place || made.Volume.CapacityBytes != gib {
		t.Errorf("it is at %s with %d bytes, want %s", got, made.Volume.CapacityBytes, place)
	}
	again, err := p.CreateVolume(ctx, claim("data", gib, place))
	if err != nil || again.Volume.VolumeId != id {
		t.Errorf("asked again: %v, %v", again, err)
	}
	v, err := store.Of[resource.Volume](w.db).Get(ctx, "acme/web/shop/pvc-data")
	if err != nil || v.Spec.Claim != "default/data" || !v.Spec.Provisioned || v.Status.FirstUID != 1<<28 {
		t.Errorf("the volume is %+v, %v", v, err)
	}
	larger := claim("data", 2*gib)
	_, err = p.CreateVolume(ctx, larger)
	want(t, "with another size", err, codes.AlreadyExists, "is there")

	grown, err := p.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 2*gib - 5}})
	if err != nil || grown.CapacityBytes != 2*gib || grown.NodeExpansionRequired {
		t.Errorf("grown: %v, %v", grown, err)
	}
	_, err = p.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 16 * gib}})
	want(t, "beyond its host", err, codes.OutOfRange, "ask the operator")

	list, err := p.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Volume.VolumeId != id {
		t.Errorf("list: %v, %v", list, err)
	}
	// Once a person has bound it, it is no longer the cluster's to delete.
	provisioned := func(is bool) {
		t.Helper()
		_, err := store.Of[resource.Volume](w.db).Modify(ctx, v.Key(), func(v *resource.Volume) error { v.Spec.Provisioned = is; return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	provisioned(false)
	_, err = p.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	want(t, "deleted by its cluster", err, codes.FailedPrecondition, "mp volumes delete pvc-data")
	provisioned(true)
	for range 2 {
		if _, err := p.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Of[resource.Volume](w.db).Get(ctx, v.Key()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it is there after its end: %v", err)
	}
}

// TestForeign: a plane that knows the id of another workspace's volume or machine gets
// nothing by it.
func TestForeign(t *testing.T) {
	w := newWorld(t)
	mine, theirs, ctx := w.plane("acme/web/shop"), w.plane("evil/web/shop"), t.Context()
	made, err := mine.CreateVolume(ctx, claim("data", gib))
	if err != nil {
		t.Fatal(err)
	}
	id := made.Volume.VolumeId
	_, err = theirs.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 2 * gib}})
	want(t, "grow", err, codes.NotFound, "no volume")
	_, err = theirs.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: once})
	want(t, "look", err, codes.NotFound, "no volume")
	if list, err := theirs.ListVolumes(ctx, &csi.ListVolumesRequest{}); err != nil || len(list.Entries) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
	if _, err := theirs.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
		t.Error(err)
	}
	if v, err := store.Of[resource.Volume](w.db).Get(ctx, "acme/web/shop/pvc-data"); err != nil || v.Deleting() {
		t.Errorf("another's call has changed it: %+v, %v", v, err)
	}
	// A workspace without machines has no place for one, and is told so.
	_, err = theirs.CreateVolume(ctx, claim("data", gib))
	want(t, "without a machine", err, codes.ResourceExhausted, "no machine yet")
	// What the socket was opened for is gone, and another workspace has its name.
	ws, err := store.Of[resource.Workspace](w.db).Get(ctx, "acme/web/shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Of[resource.Workspace](w.db).Delete(ctx, ws); err != nil {
		t.Fatal(err)
	}
	if err := store.Of[resource.Workspace](w.db).Create(ctx, &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}); err != nil {
		t.Fatal(err)
	}
	_, err = mine.CreateVolume(ctx, claim("more", gib))
	want(t, "by a former plane", err, codes.FailedPrecondition, "deleted")
}

// TestRefused: what can't be is refused with a sentence, and changes nothing.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	p, ctx := w.plane("acme/web/shop"), t.Context()
	many := []*csi.VolumeCapability{{AccessType: once[0].AccessType, AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER}}}
	block := []*csi.VolumeCapability{{AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}, AccessMode: once[0].AccessMode}}
	mount := func(m *csi.VolumeCapability_MountVolume) []*csi.VolumeCapability {
		return []*csi.VolumeCapability{{AccessType: &csi.VolumeCapability_Mount{Mount: m}, AccessMode: once[0].AccessMode}}
	}
	for name, c := range map[string]struct {
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
		text   string
	}{
		"many machines": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = many }, codes.InvalidArgument, "one machine at a time"},
		"block":         {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = block }, codes.ResourceExhausted, "raw blocks"},
		"shared block": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities, r.Parameters["class"] = block, "shared"
		}, codes.InvalidArgument, "volumeMode"},
		"encrypted block": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities, r.Parameters["encrypted"] = block, "true"
		}, codes.InvalidArgument, "volumeMode"},
		"block and not": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = append(block, once...)
		}, codes.InvalidArgument, "never both"},
		"ext4": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = mount(&csi.VolumeCapability_MountVolume{FsType: "ext4"})
		}, codes.InvalidArgument, "xfs"},
		"mount options": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = mount(&csi.VolumeCapability_MountVolume{MountFlags: []string{"dev"}})
		}, codes.InvalidArgument, "mountOptions dev"},
		"no use":         {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument, "missing"},
		"no name":        {func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, "name"},
		"a typo":         {func(r *csi.CreateVolumeRequest) { r.Parameters["Encrypted"] = "true" }, codes.InvalidArgument, `"Encrypted"`},
		"another class":  {func(r *csi.CreateVolumeRequest) { r.Parameters["class"] = "gold" }, codes.InvalidArgument, `class "gold"`},
		"too small":      {func(r *csi.CreateVolumeRequest) { r.CapacityRange = &csi.CapacityRange{LimitBytes: 100 << 20} }, codes.OutOfRange, "300Mi at least"},
		"beyond numbers": {func(r *csi.CreateVolumeRequest) { r.CapacityRange = &csi.CapacityRange{RequiredBytes: 1<<63 - 1} }, codes.OutOfRange, "is the most"},
		"below none":     {func(r *csi.CreateVolumeRequest) { r.CapacityRange = &csi.CapacityRange{RequiredBytes: -1} }, codes.OutOfRange, "can't have"},
		"a host's room":  {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 29 * gib }, codes.ResourceExhausted, "no host of its machines"},
		"a limit":        {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 200 * gib }, codes.ResourceExhausted, ""},
		"a strange place": {func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{PlaceKey: "host-00000000"}}}}
		}, codes.ResourceExhausted, "no host"},
		"another label": {func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{"kubernetes.io/hostname": "shop-1"}}}}
		}, codes.InvalidArgument, `"kubernetes.io/hostname" is not known`},
	} {
		r := claim("data", gib)
		c.change(r)
		_, err := p.CreateVolume(ctx, r)
		want(t, name, err, c.code, c.text)
	}
	for i := range 4 {
		if _, err := p.CreateVolume(ctx, claim(fmt.Sprint("a", i), gib)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.CreateVolume(ctx, claim("more", gib))
	want(t, "one too many", err, codes.ResourceExhausted, "volumes: at most 4, in use 4, asked for 1 more")
	_, err = p.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: "none", CapacityRange: &csi.CapacityRange{RequiredBytes: gib}})
	want(t, "grow none", err, codes.NotFound, "no volume")
	all, err := p.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: 3})
	if err != nil || len(all.Entries) != 3 || all.NextToken == "" {
		t.Fatalf("a page: %v, %v", all, err)
	}
	rest, err := p.ListVolumes(ctx, &csi.ListVolumesRequest{MaxEntries: 3, StartingToken: all.NextToken})
	if err != nil || len(rest.Entries) != 1 || rest.NextToken != "" {
		t.Errorf("the rest: %v, %v", rest, err)
	}
}

// TestWaits: who asks hears what is waited for, and what was asked goes on.
func TestWaits(t *testing.T) {
	w := newWorld(t)
	p := w.plane("acme/web/shop")
	w.stop(true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := p.CreateVolume(ctx, claim("data", gib))
	want(t, "hosts that do nothing", err, codes.DeadlineExceeded, "its host is making it")
	w.stop(false)
	made, err := p.CreateVolume(t.Context(), claim("data", gib))
	if err != nil {
		t.Fatal(err)
	}
	v, err := store.Of[resource.Volume](w.db).Get(t.Context(), "acme/web/shop/pvc-data")
	if err != nil || v.UID != made.Volume.VolumeId {
		t.Fatalf("another was made: %v, %v", v, err)
	}
}

// awaitVolume waits until a volume is as ok says.
func awaitVolume(t *testing.T, w *world, key, what string, ok func(*resource.Volume) bool) (now *resource.Volume) {
	t.Helper()
	wait.For(t, wait.Patience, what, func(ctx context.Context) (err error) {
		if now, err = store.Of[resource.Volume](w.db).Get(ctx, key); err == nil && !ok(now) {
			err = fmt.Errorf("it is %+v", now.Status)
		}
		return err
	})
	return now
}

// awaitNode waits until the controller has heard of a node as it is.
func awaitNode(t *testing.T, w *world, n *resource.Node) {
	t.Helper()
	wait.True(t, wait.Patience, "the cache follows", func() bool {
		now, ok := w.cfg.Nodes.Get(n.Name)
		return ok && now.Revision >= n.Revision
	})
}

// TestLife: volumes that people make get a host once there is one, and a host that is silent
// or gone is said.
func TestLife(t *testing.T) {
	w := newWorld(t)
	volumes, nodes := store.Of[resource.Volume](w.db), store.Of[resource.Node](w.db)
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "data"), Spec: resource.VolumeSpec{Class: "local", SizeBytes: gib}}
	if err := volumes.Create(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	await := func(what string, ok func(*resource.Volume) bool) *resource.Volume {
		t.Helper()
		return awaitVolume(t, w, v.Key(), what, ok)
	}
	now := await("it is ready", func(v *resource.Volume) bool {
		return v.Status.Phase == resource.Ready && v.Status.ObservedGeneration == v.Generation
	})
	if now.Status.Node != "n2" { // n3 has more room, and no machine of the workspace
		t.Errorf("it is on %s, want n2", now.Status.Node)
	}
	w.stop(true)
	if _, err := nodes.Modify(t.Context(), "n2", func(n *resource.Node) error { n.Status.Phase = resource.Degraded; return nil }); err != nil {
		t.Fatal(err)
	}
	now = await("its host is silent", func(v *resource.Volume) bool { return v.Status.Phase == resource.Degraded })
	if c := now.Status.Conditions.Get(resource.VolumeReady); c.Reason != "HostSilent" {
		t.Errorf("it says %+v", c)
	}
	if _, err := nodes.Modify(t.Context(), "n2", func(n *resource.Node) error { n.Status.Phase = resource.Ready; return nil }); err != nil {
		t.Fatal(err)
	}
	w.stop(false)
	await("it is back", func(v *resource.Volume) bool { return v.Status.Phase == resource.Ready })
	n2, err := nodes.Get(t.Context(), "n2")
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes.Delete(t.Context(), n2); err != nil {
		t.Fatal(err)
	}
	await("its host is gone", func(v *resource.Volume) bool { return v.Status.Phase == resource.Failed })
	if _, err := volumes.MarkDeleted(t.Context(), v.Key()); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "it is deleted", func(ctx context.Context) error {
		if _, err := volumes.Get(ctx, v.Key()); !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("get: %v", err)
		}
		return nil
	})
}
