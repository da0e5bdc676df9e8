// Package volumes gives the pods of a machine the volumes that it sees: CSI's
// services Identity and Node, in the kubelet's own process, and the kubelet's service by which such a
// driver makes itself known.
//
// The host's agent does all work on disks. What a machine has is a folder (Config.Folder)
// in which the file system of each volume that it sees is mounted, by the volume's UID. Here it is bound into a pod's
// folder, and nothing else is ever mounted: an id is a UID and no path, what is bound must be a
// mount of its own, and no link is followed on the way, neither there nor in
// the folders of pods. There is no staging, and nothing to expand.
//
// All machines of a workspace on one host see the same volumes. One that a single machine may have
// at a time (ReadWriteOnce) is locked while a pod has it: the second machine is refused.
//
// Whatever is asked twice has the same answer. A disk that hangs may hold a thread of the process, one for each pod's
// folder, but no answer: that has a bound.
//
// Parties: package kubelet serves it; command kube does, alone, for CSI's sanity
// suite; the packages guard and storage know the driver's name by it.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	// Driver is the CSI driver's name, and the provisioner in StorageClasses.
	Driver = "storage.multipaas.internal"
	// HostLabel is the key by which nodes and volumes say on which host they are.
	HostLabel = Driver + "/host"
)

// appears is Config.Appears of machines. A volume can be had once one machine sees it, and others see a shared one some seconds
// later; the kubelet tries again by itself, after longer and longer pauses.
const appears = 5 * time.Second

// patience bounds what mounts and looks at mounts. The kubelet gives up after two minutes.
const patience = time.Minute

// Config is what a machine knows of its volumes.
type Config struct {
	Folder  string // in which each volume that it sees is mounted
	Machine string // the machine's UID
	Place   string // what its workspace calls the host
	Pods    string // the folder below which the kubelet has its pods
	// Appears is how long it is waited for a volume that the host has not shown yet.
	Appears time.Duration
}

// Environment is the Config that the environment says: MULTIPAAS_VOLUMES,
// MULTIPAAS_MACHINE_UID and MULTIPAAS_PLACE. Without the first there are no volumes.
func Environment(getenv func(string) string, pods string) (cfg Config, there bool) {
	cfg = Config{Folder: getenv("MULTIPAAS_VOLUMES"), Machine: getenv("MULTIPAAS_MACHINE_UID"), Place: getenv("MULTIPAAS_PLACE")}
	cfg.Pods, cfg.Appears = pods, appears
	return cfg, cfg.Folder != ""
}

// blocks is the folder below which the kubelet has raw blocks for pods.
func (cfg Config) blocks() string { return filepath.Join(filepath.Dir(cfg.Pods), blocksBelow) }

// Node serves the volumes of one machine. It is safe for concurrent use.
type Node struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer
	cfg    Config
	socket string

	mu   sync.Mutex
	busy map[string]bool // what is under way, by what it works on

	locks locks
}

// New returns the services of a machine. What is wrong with cfg is said at once.
func New(cfg Config) (*Node, error) {
	if !filepath.IsAbs(cfg.Folder) || !filepath.IsAbs(cfg.Pods) {
		return nil, fmt.Errorf("volumes in %q for pods in %q: want whole paths", cfg.Folder, cfg.Pods)
	}
	if !uid.MatchString(cfg.Machine) || cfg.Place == "" {
		return nil, fmt.Errorf("volumes of machine %q at %q: want its UID, and the name of a place", cfg.Machine, cfg.Place)
	}
	cfg.Folder, cfg.Pods = filepath.Clean(cfg.Folder), filepath.Clean(cfg.Pods)
	return &Node{cfg: cfg, busy: map[string]bool{}, locks: locks{held: map[uint64]int{}}}, nil
}

// Serve serves at unix sockets, which only root may open, until ctx is done. The kubelet looks for
// one in its folder plugins_registry, and is told there of the first. What pods have from before
// is locked before anything is answered.
func (n *Node) Serve(ctx context.Context, sockets ...string) error {
	if err := n.retake(); err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ConnectionTimeout(5 * time.Second)) // its end waits for who says nothing
	csi.RegisterIdentityServer(server, n)
	csi.RegisterNodeServer(server, n)
	registration.RegisterRegistrationServer(server, n)
	n.socket = sockets[0]
	defer context.AfterFunc(ctx, server.Stop)()
	defer server.Stop()
	ended := make(chan error, len(sockets))
	for _, socket := range sockets {
		ln, err := listen(socket)
		if err != nil {
			return err
		}
		go func() { ended <- server.Serve(ln) }()
	}
	if err := <-ended; ctx.Err() == nil {
		return err
	}
	return nil
}

func listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of a process that was killed
		return nil, err
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// GetInfo tells the kubelet what it has found.
func (n *Node) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: Driver, Endpoint: n.socket,
		SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus is called when the kubelet has taken it, or not.
func (n *Node) NotifyRegistrationStatus(
	_ context.Context, s *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	if !s.PluginRegistered {
		klog.ErrorS(errors.New(s.Error), "The kubelet doesn't take the volumes' driver")
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// GetPluginInfo says which driver this is.
func (n *Node) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Driver, VendorVersion: "1"}, nil
}

// GetPluginCapabilities says what the driver as a whole has: a controller, which the plane
// speaks to, and volumes in places.
func (n *Node) GetPluginCapabilities(
	context.Context, *csi.GetPluginCapabilitiesRequest,
) (*csi.GetPluginCapabilitiesResponse, error) {
	resp := &csi.GetPluginCapabilitiesResponse{}
	for _, c := range []csi.PluginCapability_Service_Type{
		csi.PluginCapability_Service_CONTROLLER_SERVICE, csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.PluginCapability{
			Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: c}}})
	}
	return resp, nil
}

// Probe says that it serves.
func (n *Node) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// NodeGetCapabilities says what it does beyond binding.
func (n *Node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, c := range []csi.NodeServiceCapability_RPC_Type{csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_VOLUME_CONDITION, csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: c}}})
	}
	return resp, nil
}

// NodeGetInfo says which machine this is and where.
func (n *Node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.cfg.Machine,
		AccessibleTopology: &csi.Topology{Segments: map[string]string{HostLabel: n.cfg.Place}}}, nil
}

// NodePublishVolume shows a pod a volume.
func (n *Node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	readOnly, err := wanted(req)
	if err != nil {
		return nil, err
	}
	if err := known(req.VolumeId); err != nil {
		return nil, err
	}
	target, err := n.inPods(req.TargetPath)
	if err != nil {
		return nil, err
	}
	const lookEvery = 100 * time.Millisecond
	for began := time.Now(); ; {
		err = n.within(ctx, "mount", req.VolumeId, target, func() error {
			err := n.publish(req.VolumeId, target, readOnly, req.VolumeCapability)
			if err == nil && req.VolumeCapability.GetBlock() != nil {
				err = n.taken(target.String(), true)
			}
			return err
		})
		if err == nil {
			return &csi.NodePublishVolumeResponse{}, nil
		}
		if status.Code(err) != codes.NotFound || time.Since(began) >= n.cfg.Appears {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(lookEvery):
		}
	}
}

// wanted says whether the volume is to be read only, and refuses what can't be had.
func wanted(req *csi.NodePublishVolumeRequest) (readOnly bool, err error) {
	bad := func(format string, args ...any) (bool, error) {
		return false, status.Errorf(codes.InvalidArgument, format, args...)
	}
	c := req.VolumeCapability
	switch {
	case req.VolumeId == "" || req.TargetPath == "" || c == nil:
		return bad("the request names no volume, no target or no capability")
	case c.GetBlock() != nil && (req.Readonly || strings.Contains(c.GetAccessMode().GetMode().String(), "READER_ONLY")):
		// A node in a mount that is read-only can be written to all the same.
		return bad("raw blocks can't be had read-only: take readOnly out of the pod")
	case c.GetBlock() != nil && c.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_UNKNOWN:
		return bad("the request names no access mode")
	case c.GetBlock() != nil:
		return false, nil
	case c.GetMount() == nil:
		return bad("the request says not how to mount the volume")
	case req.VolumeContext["csi.storage.k8s.io/ephemeral"] == "true":
		return bad("volumes of %s come by a PersistentVolumeClaim: a pod can't name one itself, use its volume type ephemeral", Driver)
	case c.GetMount().VolumeMountGroup != "":
		return bad("files get their group from the kubelet, not from a mount: set no mount group")
	}
	if fs := c.GetMount().FsType; fs != "" && fs != "xfs" {
		return bad("file system %q: volumes of %s have the one that the platform chose; leave fsType out", fs, Driver)
	}
	readOnly = req.Readonly
	for _, option := range c.GetMount().MountFlags {
		if option != "ro" {
			return bad("mount option %q: volumes of %s take none but ro; take it out of the PersistentVolume", option, Driver)
		}
		readOnly = true
	}
	switch c.GetAccessMode().GetMode() {
	case csi.VolumeCapability_AccessMode_UNKNOWN:
		return bad("the request names no access mode")
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY, csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		readOnly = true
	}
	return readOnly, nil
}

// NodeUnpublishVolume takes a volume from a pod. That it isn't there is success.
func (n *Node) NodeUnpublishVolume(
	ctx context.Context, req *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	if req.VolumeId == "" || req.TargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no volume or no target")
	}
	if err := known(req.VolumeId); err != nil {
		return nil, err
	}
	target, err := n.inPods(req.TargetPath)
	if err != nil {
		return nil, err
	}
	err = n.within(ctx, "unmount", req.VolumeId, target, func() error { return n.unpublish(target) })
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats says what a volume has and uses, and whether its file system works.
func (n *Node) NodeGetVolumeStats(
	ctx context.Context, req *csi.NodeGetVolumeStatsRequest,
) (*csi.NodeGetVolumeStatsResponse, error) {
	if req.VolumeId == "" || req.VolumePath == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no volume or no path")
	}
	if err := known(req.VolumeId); err != nil {
		return nil, err
	}
	target, err := n.inPods(req.VolumePath)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "no volume is mounted at %s", req.VolumePath)
	}
	var resp *csi.NodeGetVolumeStatsResponse
	err = n.within(ctx, "look at", req.VolumeId, target, func() error {
		got, err := n.stats(target)
		resp = got
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// uid is how the platform writes the UIDs of what it has.
var uid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// known refuses ids that can't be a volume's, before they come near a path.
func known(id string) error {
	if !uid.MatchString(id) {
		return status.Errorf(codes.NotFound, "there is no volume %.100q: a volume's id is its UID", id)
	}
	return nil
}

// place is where something is bound for a pod: below a folder of the kubelet's.
type place struct{ root, rel string }

func (p place) String() string { return filepath.Join(p.root, p.rel) }

// inPods is a path below the folder of pods, or that of their raw blocks.
func (n *Node) inPods(path string) (place, error) {
	for _, root := range []string{n.cfg.Pods, n.cfg.blocks()} {
		rel, err := filepath.Rel(root, path)
		if err == nil && filepath.IsLocal(rel) && rel != "." && filepath.Clean(path) == path {
			return place{root, rel}, nil
		}
	}
	return place{}, status.Errorf(codes.InvalidArgument, "%.300q is not below the folder of pods, %s", path, n.cfg.Pods)
}

// within does what may hang with the disk beneath, for as long as the caller and patience
// allow; then it goes on alone. One at a time for each target: the next comes once it has ended.
func (n *Node) within(ctx context.Context, verb, id string, target place, do func() error) error {
	work := verb + " " + target.String()
	if verb != "look at" {
		work = target.String()
	}
	n.mu.Lock()
	if n.busy[work] {
		n.mu.Unlock()
		return status.Errorf(codes.Aborted, "%s volume %s: what was asked before is still under way; the disk of its host may hang",
			verb, id)
	}
	n.busy[work] = true
	n.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		err := do()
		n.mu.Lock()
		delete(n.busy, work)
		n.mu.Unlock()
		done <- err
	}()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case err := <-done:
		if _, ok := status.FromError(err); !ok {
			err = status.Errorf(codes.Internal, "%s volume %s: %v", verb, id, err)
		}
		return err
	case <-ctx.Done():
		return status.Errorf(codes.DeadlineExceeded, "%s volume %s: no answer in time; the disk of its host may hang", verb, id)
	}
}

// brokenBy are the errors of a file system that has given up.
var brokenBy = []error{unix.EIO, unix.ENOTCONN, unix.ESHUTDOWN, unix.ENXIO, unix.ESTALE}

func broken(err error) bool {
	return slices.ContainsFunc(brokenBy, func(e error) bool { return errors.Is(err, e) })
}
