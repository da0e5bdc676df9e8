package storage

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/quota"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// Driver is the name of the platform's CSI driver in every cluster.
const Driver = "storage.multipaas.internal"

// PlaceKey is the topology key of the places of volumes and machines.
const PlaceKey = Driver + "/host"

// What upstream's provisioner says besides of the claim that a volume is for.
const (
	addedParameters = "csi.storage.k8s.io/"
	claimName       = addedParameters + "pvc/name"
	claimNamespace  = addedParameters + "pvc/namespace"
	classParameter  = "class"
	// Of class shared.
	replicasParameter = "replicas"
	arbiterParameter  = "arbiter"
	// encryptedParameter is "true" for volumes that shall be encrypted on their hosts' disks.
	encryptedParameter = "encrypted"
)

// defaultVolumeBytes is the size of a volume of which nobody says one.
const defaultVolumeBytes = 1 << 30

// answerBefore is left of a call's time for the answer that says what it waits for.
const answerBefore = 500 * time.Millisecond

// endpoint answers one workspace's plane: CSI's Identity and Controller services. A volume's
// id is its UID. Calls block until what they ask for is done, or nearly until their time is
// over; all may be repeated. There is no ControllerPublishVolume: all machines on a volume's
// host see it. With that a pod's start took 11 s instead of 2: a kubelet mounts nothing that
// has to be attached before it has reported its node anew, which it does every 10 s.
type endpoint struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer

	*Controller
	workspace string // key
	uid       string // of the workspace: another may have its key by now
	pace      flowcontrol.RateLimiter
}

// A plane has so many hosts chosen in the long run, and so many at once: it takes a list
// of all machines each time.
const (
	choosePace  = 2 // in a second
	chooseBurst = 20
)

// turn waits until it is the plane's turn to have a host chosen. done lets the next.
func (e *endpoint) turn(ctx context.Context) (done func(), err error) {
	if err = e.pace.Wait(ctx); err == nil {
		done, err = e.alone(ctx)
	}
	if err != nil {
		return nil, refuse(codes.DeadlineExceeded, "others come first; it is tried again")
	}
	return done, nil
}

func (e *endpoint) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Driver, VendorVersion: "1"}, nil
}

func (e *endpoint) GetPluginCapabilities(
	context.Context, *csi.GetPluginCapabilitiesRequest,
) (*csi.GetPluginCapabilitiesResponse, error) {
	res := &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{
		Type: &csi.PluginCapability_VolumeExpansion_{
			VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE}},
	}}}
	for _, t := range []csi.PluginCapability_Service_Type{
		csi.PluginCapability_Service_CONTROLLER_SERVICE,
		csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
	} {
		res.Capabilities = append(res.Capabilities, &csi.PluginCapability{
			Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}})
	}
	return res, nil
}

func (e *endpoint) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func (e *endpoint) ControllerGetCapabilities(
	context.Context, *csi.ControllerGetCapabilitiesRequest,
) (*csi.ControllerGetCapabilitiesResponse, error) {
	res := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		res.Capabilities = append(res.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return res, nil
}

func refuse(code codes.Code, format string, args ...any) error {
	return status.Errorf(code, format, args...)
}

// open is a write that fails if the workspace is going, or another has its name.
func (e *endpoint) open() store.Op {
	return store.Of[resource.Workspace](e.cfg.Store).ModifyOp(e.workspace, func(w *resource.Workspace) error {
		if w.UID != e.uid || w.Deleting() {
			return refuse(codes.FailedPrecondition, "the workspace is being deleted")
		}
		return store.ErrSkip
	})
}

// nameOf is what the volume with this name of CSI's is called here. Claims' volumes have
// names that fit, "pvc-" and a UID; others may say anything.
func nameOf(name string) string {
	if resource.CheckName("volume", name) == nil {
		return name
	}
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(name)))[:44]
}

// sizeOf is what a volume gets of which this is asked: whole MiB, and no less than one can have.
func sizeOf(r *csi.CapacityRange) (int64, error) {
	least, most := r.GetRequiredBytes(), r.GetLimitBytes()
	if least < 0 || most < 0 || least > resource.MaxVolumeBytes {
		return 0, refuse(codes.OutOfRange, "a volume can't have %d bytes: %s is the most", least,
			resource.Bytes.Text(resource.MaxVolumeBytes))
	}
	size := least
	if size == 0 {
		size = defaultVolumeBytes
		if most > 0 {
			size = min(size, most)
		}
	}
	size = (max(size, resource.MinVolumeBytes) + 1<<20 - 1) &^ (1<<20 - 1)
	if most > 0 && size > most {
		return 0, refuse(codes.OutOfRange, "a volume has whole MiB and %s at least: %d bytes at most can't be",
			resource.Bytes.Text(resource.MinVolumeBytes), most)
	}
	return size, nil
}

// checkCapabilities says why a volume of a class can't be had in such a way.
func checkCapabilities(spec resource.VolumeSpec, all []*csi.VolumeCapability) error {
	class := spec.Class
	if len(all) == 0 {
		return refuse(codes.InvalidArgument, "how the volume shall be used is missing")
	}
	for _, c := range all {
		switch mode := c.GetAccessMode().GetMode(); {
		case spec.Block != (c.GetBlock() != nil):
			return refuse(codes.InvalidArgument, "a volume is raw blocks or a file system, and never both: volumeMode Block is %t",
				spec.Block)
		case spec.Block && class == resource.SharedVolume:
			return refuse(codes.InvalidArgument, "volumeMode Block: class %s has file systems; leave volumeMode out, "+
				"or use class local", class)
		case spec.Block && spec.Encrypted:
			return refuse(codes.InvalidArgument, "volumeMode Block: encrypted volumes have file systems; leave volumeMode out, "+
				"or name a class without the parameter %s", encryptedParameter)
		case spec.Block && mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
			return refuse(codes.InvalidArgument, "volumeMode Block: raw blocks can't be had read-only")
		case !spec.Block && c.GetMount() == nil:
			return refuse(codes.InvalidArgument, "how the volume shall be mounted is missing")
		case c.GetMount().GetFsType() != "" && c.GetMount().GetFsType() != "xfs":
			return refuse(codes.InvalidArgument, "fsType %q: volumes of class %s have the file system that the platform "+
				"chose, xfs; leave it out", c.GetMount().GetFsType(), class)
		case len(c.GetMount().GetMountFlags()) > 0:
			return refuse(codes.InvalidArgument, "mountOptions %s: volumes of class %s have none",
				strings.Join(c.GetMount().GetMountFlags(), ","), class)
		default:
			switch mode {
			case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
				csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
			case csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER, csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY,
				csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER:
				if class == resource.SharedVolume {
					continue
				}
				fallthrough
			default:
				return refuse(codes.InvalidArgument, "a volume of class local is on one machine at a time: "+
					"use accessModes ReadWriteOnce or ReadWriteOncePod")
			}
		}
	}
	return nil
}

// CreateVolume makes a volume, or finds the one that an earlier call has made, and waits
// until its host has it.
func (e *endpoint) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if req.GetName() == "" {
		return nil, refuse(codes.InvalidArgument, "a name is missing")
	}
	spec, err := e.specOf(req.GetParameters())
	if err != nil {
		return nil, err
	}
	spec.Block = slices.ContainsFunc(req.GetVolumeCapabilities(), func(c *csi.VolumeCapability) bool { return c.GetBlock() != nil })
	if err := checkCapabilities(spec, req.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	if spec.SizeBytes, err = sizeOf(req.GetCapacityRange()); err != nil {
		return nil, err
	}
	if from := req.GetVolumeContentSource(); from != nil {
		var is resource.VolumeSpec
		if spec.Source, is, err = e.sourceOf(ctx, from); err != nil {
			return nil, err
		}
		if spec.Class != is.Class {
			return nil, refuse(codes.InvalidArgument, "class %s: what it is made from is of class %s, and a copy is as that is",
				spec.Class, is.Class)
		}
		least := is.SizeBytes
		if spec.Encrypted && !is.Encrypted {
			return nil, refuse(codes.InvalidArgument, "what it is made from is not encrypted, and a copy is as that is: "+
				"name a class without the parameter %s", encryptedParameter)
		}
		if spec.Block != is.Block {
			return nil, refuse(codes.InvalidArgument, "what it is made from has volumeMode Block %t, and a copy is as that is", is.Block)
		}
		spec.Encrypted = is.Encrypted
		switch most := req.GetCapacityRange().GetLimitBytes(); {
		case req.GetCapacityRange().GetRequiredBytes() == 0 && (most == 0 || most >= least):
			spec.SizeBytes = least
		case spec.SizeBytes < least:
			return nil, refuse(codes.OutOfRange, "%s is less than what it is made from has, %s",
				resource.Bytes.Text(spec.SizeBytes), resource.Bytes.Text(least))
		}
	}
	places, err := placesOf(req.GetAccessibilityRequirements())
	if err != nil {
		return nil, err
	}
	v, err := e.record(ctx, nameOf(req.GetName()), spec, places)
	if err != nil {
		return nil, err
	}
	if err := e.fits(v, req.GetCapacityRange()); err != nil {
		return nil, err
	}
	v, err = follow(ctx, store.Of[resource.Volume](e.cfg.Store), "volume", v, func(v *resource.Volume) (bool, string) {
		if c := v.Status.Conditions.Get(resource.VolumeReady); c == nil || c.Status != resource.True {
			return false, messageOf(v)
		}
		if v.Status.SizeBytes < v.Spec.SizeBytes {
			return false, "it grows"
		}
		ok, why := v.Attached()
		return ok, cmp.Or(why, "its machines are shown it")
	})
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: e.volume(v)}, nil
}

// specOf is the volume that a StorageClass's parameters ask for, but for its size.
func (e *endpoint) specOf(p map[string]string) (s resource.VolumeSpec, err error) {
	if err := onlyKnown(p, classParameter, replicasParameter, arbiterParameter, encryptedParameter); err != nil {
		return s, err
	}
	s = resource.VolumeSpec{Class: cmp.Or(p[classParameter], resource.LocalVolume), Provisioned: true}
	if s.Class != resource.LocalVolume && s.Class != resource.SharedVolume {
		return s, refuse(codes.InvalidArgument, "class %q: there are local and shared", s.Class)
	}
	if text := p[replicasParameter]; text != "" {
		if s.Replicas, err = strconv.Atoi(text); err != nil {
			return s, refuse(codes.InvalidArgument, "%s %q: want a number", replicasParameter, text)
		}
	}
	for name, is := range map[string]*bool{arbiterParameter: &s.Arbiter, encryptedParameter: &s.Encrypted} {
		switch text := p[name]; text {
		case "", "false":
		case "true":
			*is = true
		default:
			return s, refuse(codes.InvalidArgument, "%s %q: want true or false", name, text)
		}
	}
	if why, remedy := s.CheckCopies(); why != "" {
		return s, refuse(codes.InvalidArgument, "%s %d: %s. %s", replicasParameter, s.Replicas, why, remedy)
	}
	if p[claimName] != "" {
		s.Claim = p[claimNamespace] + "/" + p[claimName]
	}
	return s, nil
}

// onlyKnown refuses parameters of a class that are not among these: who writes "Encrypted" shall not get a volume that isn't.
// What the provisioner and the snapshotter add of themselves is not the class's.
func onlyKnown(parameters map[string]string, known ...string) error {
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		if slices.Contains(known, name) || strings.HasPrefix(name, addedParameters) {
			continue
		}
		has := "none"
		if len(known) > 0 {
			has = strings.Join(known, ", ")
		}
		return refuse(codes.InvalidArgument, "parameter %q of the class is not known; known: %s", name, has)
	}
	return nil
}

// placesOf are the places that may have a volume, in the order in which they are liked; nil is any. InvalidArgument if
// machines are told by another label: which these are is not known here, and the volume would be anywhere.
func placesOf(r *csi.TopologyRequirement) (places []string, err error) {
	for _, t := range slices.Concat(r.GetPreferred(), r.GetRequisite()) {
		for _, key := range slices.Sorted(maps.Keys(t.GetSegments())) {
			if key != PlaceKey {
				return nil, refuse(codes.InvalidArgument, "allowedTopologies of the class: the key %q is not known; known: %s, "+
					"which machines have as a label", key, PlaceKey)
			}
		}
		if p := t.GetSegments()[PlaceKey]; p != "" && !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	return places, nil
}

// record finds a volume by its name, or makes one under the account's limits, with a host.
func (e *endpoint) record(
	ctx context.Context, name string, spec resource.VolumeSpec, places []string,
) (*resource.Volume, error) {
	volumes := store.Of[resource.Volume](e.cfg.Store)
	for {
		v, err := volumes.Get(ctx, e.workspace+"/"+name)
		switch {
		case err == nil && v.Deleting():
			return nil, refuse(codes.Aborted, "volume %s is being deleted", name)
		case err == nil && v.Spec.Claim != spec.Claim:
			return nil, refuse(codes.AlreadyExists, "volume %s is there, and not of claim %q", name, spec.Claim)
		case err == nil && uidOf(v.Spec.Source) != uidOf(spec.Source):
			return nil, refuse(codes.AlreadyExists, "volume %s is there, and made from something else", name)
		case err == nil && spec.Source == nil && v.Spec.Encrypted != spec.Encrypted:
			return nil, refuse(codes.AlreadyExists, "volume %s is there, and encrypted is %t", name, v.Spec.Encrypted)
		case err == nil && v.Spec.Block != spec.Block:
			return nil, refuse(codes.AlreadyExists, "volume %s is there, and its volumeMode is Block is %t", name, v.Spec.Block)
		case err == nil && v.Spec.Class != spec.Class:
			return nil, refuse(codes.AlreadyExists, "volume %s is there, and of class %s", name, v.Spec.Class)
		case err == nil:
			return v, nil
		case !errors.Is(err, store.ErrNotFound):
			return nil, internal(err)
		}
		fresh := &resource.Volume{InWorkspace: resource.NewInWorkspace(e.workspace, name), Spec: spec}
		err = e.make(ctx, fresh, places)
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
			continue // somebody else was faster, in the account or with this very volume
		}
		return fresh, err
	}
}

func (e *endpoint) make(ctx context.Context, fresh *resource.Volume, places []string) error {
	// First: who is at his limit or has no machine, and asks again and again, keeps nobody waiting.
	if !e.hasMachine(e.workspace) {
		return refuse(codes.ResourceExhausted, "%s", noMachine)
	}
	if _, _, err := e.quota.Grant(ctx, quota.AccountOf(fresh), fresh.Asks()); err != nil {
		return refusal(err)
	}
	if fresh.Spec.Source == nil {
		if err := e.canSeal(ctx, fresh); err != nil {
			return short(err)
		}
	}
	done, err := e.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	// And anew: one from before the wait is worth nothing if the account got anything meanwhile.
	_, granted, err := e.quota.Grant(ctx, quota.AccountOf(fresh), fresh.Asks())
	if err != nil {
		return refusal(err)
	}
	var ops []store.Op
	if fresh.Spec.Source != nil {
		ops, err = e.assignCopy(ctx, fresh)
	} else {
		var at []spot
		if at, err = e.assign(ctx, fresh, places); err == nil {
			fresh.UID = store.NewUID()
			ops = append(e.stays(at...), e.newKey(fresh))
		}
	}
	if err != nil {
		return short(err)
	}
	ops = append(ops, granted, e.open(), store.Of[resource.Volume](e.cfg.Store).CreateOp(fresh))
	if err := e.cfg.Store.Commit(ctx, ops...); err != nil {
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
			return err
		}
		return short(refusal(err))
	}
	failpoint.Reach("storage/volume/recorded")
	return nil
}

// fits says whether a volume that is there is what a repeated call asks for.
func (e *endpoint) fits(v *resource.Volume, r *csi.CapacityRange) error {
	if v.Spec.SizeBytes < r.GetRequiredBytes() || r.GetLimitBytes() > 0 && v.Spec.SizeBytes > r.GetLimitBytes() {
		return refuse(codes.AlreadyExists, "volume %s is there, with %d bytes", v.Name, v.Spec.SizeBytes)
	}
	return nil
}

// messageOf is why a volume isn't ready.
func messageOf(v *resource.Volume) string {
	for _, c := range v.Status.Conditions {
		if c.Status != resource.True && c.Message != "" {
			return c.Message
		}
	}
	return "its host has not reported it yet"
}

// volume is v as CSI shows it.
func (e *endpoint) volume(v *resource.Volume) *csi.Volume {
	out := &csi.Volume{VolumeId: v.UID, CapacityBytes: max(v.Status.SizeBytes, v.Spec.SizeBytes)}
	if from := v.Spec.Source; from != nil && from.Snapshot != "" {
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: from.UID}}}
	} else if from != nil {
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: from.UID}}}
	}
	if v.Status.NodeUID != "" { // a shared one can be had everywhere
		out.AccessibleTopology = []*csi.Topology{{Segments: map[string]string{PlaceKey: wire.Place(e.uid, v.Status.Home())}}}
	}
	return out
}

// find is the volume of this workspace with a UID, from the store. CSI's NOT_FOUND if there
// is none: another workspace's is none.
func (e *endpoint) find(ctx context.Context, uid string) (*resource.Volume, error) {
	if uid == "" {
		return nil, refuse(codes.InvalidArgument, "a volume's id is missing")
	}
	all, _, err := store.Of[resource.Volume](e.cfg.Store).List(ctx, e.workspace, "", 0)
	if err != nil {
		return nil, internal(err)
	}
	for _, v := range all {
		if v.UID == uid {
			return v, nil
		}
	}
	return nil, refuse(codes.NotFound, "this workspace has no volume %q", uid)
}

// DeleteVolume deletes a volume that was made by CreateVolume, and waits until it is gone. Whether
// a pod uses it is for its cluster to know, which asks once none does. None there is no error. What
// people have made, bound or unbound is not the cluster's to delete: it may be of a
// PersistentVolume that a tenant has made, or of one from before the volume was taken from it.
func (e *endpoint) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	v, err := e.find(ctx, req.GetVolumeId())
	if status.Code(err) == codes.NotFound {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	stays := func(now *resource.Volume) error {
		if now.Spec.Provisioned {
			return nil
		}
		return refuse(codes.FailedPrecondition, "volume %s was not made for this claim, and stays: have the PersistentVolume "+
			"keep it (persistentVolumeReclaimPolicy: Retain); who wants it gone types: mp volumes delete %s", now.Name, now.Name)
	}
	return &csi.DeleteVolumeResponse{},
		erase(ctx, store.Of[resource.Volume](e.cfg.Store), "volume", v, stays, resource.VolumeRemoved)
}

// ControllerExpandVolume has a volume grow, under the account's limits, and waits until it has.
func (e *endpoint) ControllerExpandVolume(
	ctx context.Context, req *csi.ControllerExpandVolumeRequest,
) (*csi.ControllerExpandVolumeResponse, error) {
	if req.GetVolumeId() == "" || req.GetCapacityRange() == nil {
		return nil, refuse(codes.InvalidArgument, "the volume or its new size is missing")
	}
	size, err := sizeOf(req.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	for {
		v, err := e.find(ctx, req.GetVolumeId())
		if err != nil {
			return nil, err
		}
		if v.Spec.SizeBytes < size {
			err = e.grow(ctx, v, size)
			if errors.Is(err, store.ErrConflict) {
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		v, err = follow(ctx, store.Of[resource.Volume](e.cfg.Store), "volume", v, func(now *resource.Volume) (bool, string) {
			if now.Status.SizeBytes < size {
				return false, messageOf(now)
			}
			return true, ""
		})
		if err != nil {
			return nil, err
		}
		// The host has grown the file system too.
		return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.Status.SizeBytes}, nil
	}
}

func (e *endpoint) grow(ctx context.Context, v *resource.Volume, size int64) error {
	if v.Deleting() {
		return refuse(codes.NotFound, "volume %s is being deleted", v.Name)
	}
	bigger := *v
	bigger.Spec.SizeBytes = size
	if _, err := e.quota.GrantMore(ctx, &bigger, v); err != nil { // before the wait and after it, as in make
		return tooMuch(err)
	}
	done, err := e.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	granted, err := e.quota.GrantMore(ctx, &bigger, v)
	if err != nil {
		return tooMuch(err)
	}
	if err := e.roomToGrow(ctx, v, size-v.Spec.SizeBytes); err != nil {
		return err
	}
	err = e.cfg.Store.Commit(ctx, granted, store.Of[resource.Volume](e.cfg.Store).UpdateOp(&bigger))
	if errors.Is(err, store.ErrConflict) {
		return err
	}
	return refusal(err)
}

// ListVolumes lists the workspace's volumes by their names.
func (e *endpoint) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, refuse(codes.InvalidArgument, "max_entries is below 0")
	}
	if t := req.GetStartingToken(); t != "" && !strings.HasPrefix(t, e.workspace+"/") {
		return nil, refuse(codes.Aborted, "%q is no token of a page", t)
	}
	all, next, err := store.Of[resource.Volume](e.cfg.Store).List(ctx, e.workspace, req.GetStartingToken(), int(req.GetMaxEntries()))
	if errors.Is(err, store.ErrInvalidPage) {
		return nil, refuse(codes.Aborted, "%v", err)
	}
	if err != nil {
		return nil, internal(err)
	}
	res := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range all {
		res.Entries = append(res.Entries, &csi.ListVolumesResponse_Entry{Volume: e.volume(v)})
	}
	return res, nil
}

// ValidateVolumeCapabilities says whether a volume can be had in some ways.
func (e *endpoint) ValidateVolumeCapabilities(
	ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest,
) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, refuse(codes.InvalidArgument, "how the volume shall be used is missing")
	}
	v, err := e.find(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := checkCapabilities(v.Spec, req.GetVolumeCapabilities()); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: req.GetVolumeCapabilities()}}, nil
}

// internal is an error of the platform's own: planes and so tenants are told no more.
func internal(err error) error {
	return refusedError{refuse(codes.Unavailable, "the platform can't do it now; it is tried again"), err}
}

// refusal is the error of a grant or a write as CSI tells it.
func refusal(err error) error {
	var over *quota.Exceeded
	var going *quota.Going
	switch _, told := status.FromError(err); {
	case err == nil, told:
		return err
	case errors.As(err, &over):
		return refuse(codes.ResourceExhausted, "%s; delete what is not needed any more, or ask a sysadmin to raise the limit",
			over.Error())
	case errors.As(err, &going):
		return refuse(codes.FailedPrecondition, "%s", going.Error())
	case errors.Is(err, store.ErrNotFound):
		return refuse(codes.NotFound, "it is not there any more")
	}
	return internal(err)
}

// tooMuch is refusal for what grows: a claim that asks for less after an OutOfRange gets that. After a ResourceExhausted
// the resizer asks for the first size for ever.
func tooMuch(err error) error {
	err = refusal(err)
	if status.Code(err) == codes.ResourceExhausted {
		return refuse(codes.OutOfRange, "%s", status.Convert(err).Message())
	}
	return err
}

// refusedError is what is told of an error, with that for the log.
type refusedError struct{ told, err error }

func (r refusedError) Error() string              { return r.err.Error() }
func (r refusedError) Unwrap() error              { return r.err }
func (r refusedError) GRPCStatus() *status.Status { return status.Convert(r.told) }
