package resource

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Node is a host machine that joined with `multipaas node join`.
type Node struct {
	Meta
	Spec   NodeSpec   `json:"spec"`
	Status NodeStatus `json:"status"`
}

// NodeSpec is what an operator sets about a node.
//
// What a host says of itself is not taken at its word: its address is where its
// first report came from, and what it had then is all that it may promise to machines.
type NodeSpec struct {
	// Unschedulable keeps new machines away; running ones stay.
	Unschedulable bool `json:"unschedulable,omitempty"`
	// Zone is what fails together with this host: a rack, a room. Machines on it have
	// that as their nodes' topology.kubernetes.io/zone. Empty: the host is a zone.
	Zone string `json:"zone,omitempty" doc:"What fails together: a rack, a room" example:"room-2"`
	// Lost says that the host will not come back: when the node is removed its
	// machines are given up without waiting for its agent.
	Lost bool `json:"lost,omitempty" doc:"The host will not come back; give its machines up"`
	// Address is the host's on the platform's network; none: where its first report
	// came from.
	Address netip.Addr `json:"address,omitzero" doc:"Where the host is, if not where its first report came from"`
	// Addresses are others of the host's, which it need not show.
	Addresses []netip.Addr `json:"addresses,omitempty" doc:"Other addresses of the host, which it need not show"`
	// NotAddresses are not the host's, even if it shows them: somebody else's, which it
	// has taken for a moment.
	NotAddresses []netip.Addr `json:"notAddresses,omitempty" doc:"Addresses that are not the host's, even if it shows them"`
	// Capacity is what the host may promise to machines if it has that; of what is 0,
	// what it had at first.
	Capacity Size `json:"capacity,omitzero" doc:"What of the host machines may have; of what is 0, what the host had when it joined"`
	// Pools are where the host shall have volumes besides its own folder. Its agent makes them.
	Pools []NodePool `json:"pools,omitempty" doc:"Where the host shall have volumes, besides its own folder"`
}

// Silent says whether nothing is heard from it, be it removed or not.
func (n *Node) Silent() bool {
	c := n.Status.Conditions.Get(NodeReporting)
	return n.Status.Phase == Degraded || c != nil && c.Status == False
}

// Gone says that the host was given up: nothing that it has or says counts any more,
// though its machines are still being taken out of the books.
func (n *Node) Gone() bool { return n.Deleting() && n.Spec.Lost }

// NodeStatus is what the node reports.
type NodeStatus struct {
	State              // Ready, Degraded (no heartbeat), Deleting
	Address netip.Addr `json:"address,omitzero" doc:"Address of the host on the platform's network"`
	// Addresses are others that it has: it was heard from there, or a sysadmin says so.
	Addresses []netip.Addr `json:"addresses,omitempty" doc:"Other addresses of the host: no tenant reaches them"`
	// Shown says when the host has last shown those that it has shown: that counts for a while.
	Shown    []ShownAddress `json:"shown,omitempty" doc:"When the host has last shown those that no sysadmin has set"`
	Version  string         `json:"version,omitempty" doc:"Version of multipaas"`
	Kernel   string         `json:"kernel,omitempty"`
	OS       string         `json:"os,omitempty"`
	Drivers  []string       `json:"drivers,omitempty" doc:"Machine drivers this host can run"`
	Capacity Size           `json:"capacity,omitzero"`
	Pools    []Pool         `json:"pools,omitempty" doc:"Where the host has volumes"`
	// StorageMember: GlusterFS's cluster knows it for one of its hosts, also when it has no brick.
	StorageMember bool `json:"storageMember,omitempty" doc:"It is one of the hosts that keep shared volumes"`
	// StorageOld: what serves bricks on it runs by a former version. StorageRenew is since when it is told to start that
	// anew, zero if it is not; StorageRenewed is when that was last over, done or not.
	StorageOld     bool      `json:"storageOld,omitempty" hidden:"true"`
	StorageRenew   time.Time `json:"storageRenew,omitzero" hidden:"true"`
	StorageRenewed time.Time `json:"storageRenewed,omitzero" hidden:"true"`
	// Placings counts the volumes that were placed on it: who removes a node has looked for some,
	// and one that came since makes his write fail.
	Placings int64 `json:"placings,omitempty" doc:"How many volumes were placed on it so far"`
	// Confirmed is what the host had when it was first heard of.
	Confirmed Size `json:"confirmed,omitzero" doc:"What the host had when it joined"`
	// Allocated is what machines and volumes have been promised. The API computes it for those
	// who ask; it is not stored.
	Allocated   Size      `json:"allocated,omitzero" doc:"Promised to machines and volumes"`
	HeartbeatAt time.Time `json:"heartbeatAt,omitzero"`
}

// ShownAddress is an address from which a host was heard, at a time by the server's clock.
type ShownAddress struct {
	Address netip.Addr `json:"address"`
	At      time.Time  `json:"at"`
}

// The conditions of a node that are False or not there. If what it claims differs from
// what was confirmed, nothing is done: a sysadmin sets the address or the capacity if
// the host is right.
const (
	NodeReporting         = "Reporting"
	NodeAddressConfirmed  = "AddressConfirmed"
	NodeAddressesShown    = "AddressesShown"
	NodeCapacityConfirmed = "CapacityConfirmed"
	NodeCopiesMoved       = "CopiesMoved"    // of shared volumes, from a node that is removed
	NodeStorageCurrent    = "StorageCurrent" // what serves shared volumes on it is of its own version
)

// DiskGrown is the reason of a capacity that is not confirmed for its disk alone:
// somebody has made room, which is no reason to worry.
const DiskGrown = "DiskGrown"

// Kind is "nodes".
func (*Node) Kind() string { return "nodes" }

// State is what the node reports. What an operator sets about a node needs no
// work, so it is always observed.
func (n *Node) State() State {
	s := n.Status.State
	s.ObservedGeneration = n.Generation
	return s
}

// Size is an amount of compute: what a machine gets or a node has.
type Size struct {
	MilliCPU    int64 `json:"milliCPU" minimum:"0" doc:"Thousandths of a CPU" example:"2000"`
	MemoryBytes int64 `json:"memoryBytes" minimum:"0" example:"2147483648"`
	DiskBytes   int64 `json:"diskBytes" minimum:"0" example:"10737418240"`
}

// Add returns s + o.
func (s Size) Add(o Size) Size {
	return Size{s.MilliCPU + o.MilliCPU, s.MemoryBytes + o.MemoryBytes, s.DiskBytes + o.DiskBytes}
}

// Sub returns s - o, which may be negative.
func (s Size) Sub(o Size) Size {
	return Size{s.MilliCPU - o.MilliCPU, s.MemoryBytes - o.MemoryBytes, s.DiskBytes - o.DiskBytes}
}

// Promised sums up by node what machines have been promised, running or not.
func Promised(machines []*Machine) map[string]Size {
	promised := map[string]Size{}
	for _, m := range machines {
		promised[m.Spec.Node] = promised[m.Spec.Node].Add(m.Spec.Size)
	}
	return promised
}

// Fits says whether s fits into free, in every dimension.
func (s Size) Fits(free Size) bool {
	return s.MilliCPU <= free.MilliCPU && s.MemoryBytes <= free.MemoryBytes && s.DiskBytes <= free.DiskBytes
}

// CPU is "2" or "500m", as people write it.
func (s Size) CPU() string {
	if s.MilliCPU%1000 == 0 {
		return strconv.FormatInt(s.MilliCPU/1000, 10)
	}
	return strconv.FormatInt(s.MilliCPU, 10) + "m"
}

// Memory is "2Gi" or "512Mi".
func (s Size) Memory() string { return bytesText(s.MemoryBytes) }

// Disk is "1.5Ti" or "10Gi".
func (s Size) Disk() string { return bytesText(s.DiskBytes) }

// String is "2 CPU, 2Gi memory, 10Gi disk".
func (s Size) String() string {
	return s.CPU() + " CPU, " + s.Memory() + " memory, " + s.Disk() + " disk"
}

func bytesText(n int64) string {
	for _, u := range []struct {
		suffix string
		shift  int
	}{{"Ti", 40}, {"Gi", 30}, {"Mi", 20}, {"Ki", 10}} {
		if n >= 1<<u.shift || n <= -1<<u.shift {
			text := strconv.FormatFloat(float64(n)/float64(int64(1)<<u.shift), 'f', 1, 64)
			return strings.TrimSuffix(text, ".0") + u.suffix
		}
	}
	return strconv.FormatInt(n, 10)
}

// Workspace is one dedicated Kubernetes cluster.
type Workspace struct {
	InOrganization
	Spec   WorkspaceSpec   `json:"spec"`
	Status WorkspaceStatus `json:"status" readOnly:"true"`
}

// KubeDomain is below which clusters' APIs have their names.
func KubeDomain(domain string) string { return "k8s." + domain }

// MaxMachines is the most machines one workspace can have: each owns one /24 of
// a /16 of pod addresses, and the first /24 is left out.
const MaxMachines = 250

// WorkspaceSpec is what the tenant wants.
type WorkspaceSpec struct {
	// KubernetesVersion is a minor version the payload holds, "1.36".
	KubernetesVersion string    `json:"kubernetesVersion,omitempty" example:"1.36"`
	Datastore         Datastore `json:"datastore,omitempty" enum:"kine,etcd"`
	Machines          int       `json:"machines" minimum:"0" doc:"Number of machines"`
	MachineSize       Size      `json:"machineSize"`
	// PodSecurity is the level that is enforced on every pod whatever the
	// labels of its namespace say: "baseline", or "privileged" once a sysadmin
	// has lifted it.
	PodSecurity string `json:"podSecurity,omitempty" enum:"baseline,privileged"`
}

// Datastore is where a plane keeps its objects.
type Datastore string

// The datastores: an SQLite file behind kine, or the platform's etcd.
const (
	Kine Datastore = "kine"
	Etcd Datastore = "etcd"
)

// WorkspaceStatus is what the platform sees.
type WorkspaceStatus struct {
	State
	// ID is six hex digits, unique on the platform: the name of the network
	// namespace (mp-ID), of the data directory and of the SNI host.
	ID  string `json:"id,omitempty"`
	VNI uint32 `json:"vni,omitempty" doc:"VXLAN network identifier"`
	// UserRange is the number of the claim whose range of users its machines have, if
	// it isn't VNI, of a workspace that was made when there were no ranges.
	UserRange     uint32 `json:"userRange,omitempty" hidden:"true"`
	MachinesReady int    `json:"machinesReady"`
	// APIHost is the TLS server name that reaches this plane on port 6443.
	APIHost string `json:"apiHost,omitempty"`
	Server  string `json:"server,omitempty" doc:"The server that runs the plane"`
	// DatastoreBytes is what the objects of the cluster take on the server, as last seen.
	DatastoreBytes int64 `json:"datastoreBytes,omitempty" doc:"What the objects of its cluster take on the server"`
	// NodeSlots gives each host that takes part in this workspace's network a
	// small number, from which its gateway address is computed. Never reused
	// while the host is in the map.
	NodeSlots map[string]int `json:"nodeSlots,omitempty" hidden:"true"`
	// StaleNodes are machines that are gone and whose Kubernetes nodes the tenant's
	// cluster would not let go. No machine gets such a name: it would become the old
	// node, with its pods and their tokens.
	StaleNodes []string `json:"staleNodes,omitempty" hidden:"true"`
	// PurgeVolumes says that its volumes don't go into the trash with it.
	PurgeVolumes bool `json:"purgeVolumes,omitempty" hidden:"true"`
}

// The conditions of a workspace, in the order they come true.
const (
	WorkspaceNetworkReady = "NetworkReady"
	WorkspacePlaneReady   = "PlaneReady"
	WorkspaceAddonsReady  = "AddonsReady"
	WorkspaceScheduled    = "Scheduled"
	// WorkspaceHasRoom is False while its cluster takes hardly anything new. What runs
	// goes on, so the workspace may be ready all the same.
	WorkspaceHasRoom       = "DatastoreHasRoom"
	WorkspaceMachinesReady = "MachinesReady"
)

// NoCapacity is the reason of a condition that waits for room which only more
// nodes, or less on those there are, can give. It is not final: room may come.
const NoCapacity = "NoCapacity"

// Kind is "workspaces".
func (*Workspace) Kind() string { return "workspaces" }

// State is what its controller says.
func (w *Workspace) State() State { return w.Status.State }

// Asks counts it, and its machines at their full size.
func (w *Workspace) Asks() Limits {
	l := w.Spec.MachineLimits(w.Spec.Machines)
	l.Workspaces = 1
	return l
}

// MachineLimits is what n machines of the workspace take of an account's limits.
func (s WorkspaceSpec) MachineLimits(n int) Limits {
	x := int64(max(n, 0))
	return Limits{
		Machines:    x,
		MilliCPU:    x * s.MachineSize.MilliCPU,
		MemoryBytes: x * s.MachineSize.MemoryBytes,
		DiskBytes:   x * s.MachineSize.DiskBytes,
	}
}

// WorkspaceKeys is the secret key material of a workspace's plane. No API
// operation returns one.
type WorkspaceKeys struct {
	Meta
	Workspace string `json:"workspace"` // key of the workspace
	// All PEM. The service account key signs tokens; the two authorities sign
	// for the API server's clients and for the aggregation layer.
	CACert            []byte `json:"caCert"`
	CAKey             []byte `json:"caKey"`
	SigningCACert     []byte `json:"signingCACert"` // behind the cluster's CertificateSigningRequests
	SigningCAKey      []byte `json:"signingCAKey"`
	FrontProxyCACert  []byte `json:"frontProxyCACert"`
	FrontProxyCAKey   []byte `json:"frontProxyCAKey"`
	ServiceAccountKey []byte `json:"serviceAccountKey"`
	EncryptionKey     []byte `json:"encryptionKey"` // 32 bytes, for secrets at rest
}

// Key is the key of the workspace.
func (k *WorkspaceKeys) Key() string { return k.Workspace }

// Kind is "workspacekeys".
func (*WorkspaceKeys) Kind() string { return "workspacekeys" }

// Scope is an organization's: the key is the workspace's own.
func (*WorkspaceKeys) Scope() Scope { return OfOrganization }

// Machine is one Kubernetes node of one workspace, running on a node.
type Machine struct {
	InWorkspace
	Spec   MachineSpec   `json:"spec"`
	Status MachineStatus `json:"status"`
}

// MachineSpec is decided once, when the machine is placed.
type MachineSpec struct {
	Node    string       `json:"node"`
	Driver  string       `json:"driver" enum:"sandbox,vm,host"`
	Size    Size         `json:"size"`
	Index   int          `json:"index" doc:"1 and up; address, MAC and pod range are computed from it"`
	Address netip.Addr   `json:"address" example:"172.30.0.11"`
	MAC     string       `json:"mac"`
	PodCIDR netip.Prefix `json:"podCIDR" example:"10.42.1.0/24"`
	// FirstUID is the host's user and group that is 0 in the machine, of MachineUIDs
	// that are its own. 0: the machine was placed before its workspace had a range, and
	// root in it is root on the host.
	FirstUID uint32 `json:"firstUID,omitempty"`
}

// MachineUIDs is how many users and groups of the host belong to a workspace. All
// its machines have the same.
const MachineUIDs = 1 << 16

// MachineStatus is what the node's agent and the plane report.
type MachineStatus struct {
	State
	StartedAt time.Time `json:"startedAt,omitzero"`
	Restarts  int       `json:"restarts,omitempty"`
	NoVolumes bool      `json:"noVolumes,omitempty" doc:"It is from before machines could have volumes: replace it"`
}

// The conditions of a machine, in the order they come true. Running is said by
// the node's agent, NodeReady by the plane's view of the Kubernetes node.
const (
	MachineRunning   = "Running"
	MachineNodeReady = "NodeReady"
	MachineDrained   = "Drained"
	MachineRemoved   = "Removed" // the agent has taken everything away
)

// Lives says whether the machine still speaks to its plane. Once it is drained
// there is nothing left for it to say, and who has its keys must not.
func (m *Machine) Lives() bool {
	return !m.Status.Conditions.Is(MachineDrained) && !m.Status.Conditions.Is(MachineRemoved)
}

// Kind is "machines".
func (*Machine) Kind() string { return "machines" }

// Claims are the names of the claims of a workspace, none before it has one.
func (s *WorkspaceStatus) Claims() []string {
	var names []string
	for _, n := range []uint32{s.VNI, s.UserRange} {
		if n != 0 {
			names = append(names, strconv.FormatUint(uint64(n), 10))
		}
	}
	return names
}

// VNI is a claim on a VXLAN network identifier and on the range of the host's users
// that goes with it; its key makes it unique. It outlives its workspace until nobody
// holds anything of it any more: who came next would find a network, a folder or a
// disk that is another's.
type VNI struct {
	Meta             // name: the number in decimal
	Workspace string `json:"workspace"` // key of the workspace
	UID       string `json:"workspaceUID"`
	Network   string `json:"network,omitempty"` // ID of the workspace's network
	Retired   bool   `json:"retired,omitempty"` // the workspace is gone

	RetiredAt time.Time `json:"retiredAt,omitzero"` // zero: an older version wrote Retired

	// Nodes were given a machine of the workspace, and Lost were given up with one:
	// nobody but they themselves knows what is on their disks. By UID, with names.
	Nodes map[string]string `json:"nodes,omitempty"`
	Lost  map[string]string `json:"lost,omitempty"`
	// Servers may have folders of its plane.
	Servers []string `json:"servers,omitempty"`
	// Owns: what is in volumes of other workspaces belongs to users of this number, for they were this
	// workspace's before. Nobody gets it any more.
	Owns bool `json:"owns,omitempty"`
}

// Free says whether the claim has no purpose any more.
func (v *VNI) Free() bool {
	return v.Retired && !v.Owns && len(v.Nodes) == 0 && len(v.Lost) == 0 && len(v.Servers) == 0
}

// Kind is "vnis".
func (*VNI) Kind() string { return "vnis" }
