// Package wire is what a server and the hosts of the platform say to each
// other, and the names and numbers both count on: the messages between the
// server's side (modules/node) and the host's (modules/agent), the address plan
// inside every workspace and what follows from it.
//
// What travels from the server is always the whole State, never a command: a
// message lost, an agent restarted, a server replaced costs nothing. Anybody may
// import this package; it acts on nothing and keeps nothing.
package wire

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// LinkLocal is the address, inside each machine, of the platform's endpoints
// that tenants need: the registry on RegistryPort (HTTP) and DNS on 53. The
// node's agent listens there, so it knows which machine is asking.
var LinkLocal = netip.MustParseAddr("169.254.20.10")

// RegistryPort is the port of the registry at the link-local address.
const RegistryPort = 5000

// PayloadRegistry is the host in the references of images that every machine
// has without asking anybody: those of the payload.
const PayloadRegistry = "multipaas.internal"

// WorkspaceHeader is in what a node asks of the registry for a machine: the key
// of the machine's workspace.
const WorkspaceHeader = "X-Multipaas-Workspace"

// A node's certificate has two organizations: NodesOrganization, and one that
// names the node's UID behind NodeUIDPrefix. So the certificate of a removed
// node is worthless, also when another one joins under its name.
const (
	NodesOrganization = "multipaas:nodes"
	NodeUIDPrefix     = "multipaas:node-uid:"
)

// A machine's certificates name its UID as an organization behind MachineUIDPrefix,
// and its plane hears only machines that live (resource.Machine.Lives): names may
// come again, UIDs never. They end by themselves after MachineCertificateLife, so
// that an old disk holds nothing. An agent renews them every MachineCertificateRenew
// by its own clock: a server may be away for the difference at least, and a machine
// that has been without it for longer gets new ones as soon as it answers.
const (
	MachineUIDPrefix        = "multipaas:machine:"
	MachineCertificateLife  = 24 * time.Hour
	MachineCertificateRenew = 6 * time.Hour
)

// What an agent asks of its server, over HTTPS. All but JoinPath need a node's
// certificate.
const (
	AgentPath               = "/v1/agent/"                       // all of them are below
	JoinPath                = AgentPath + "join"                 // JoinRequest: JoinResponse
	StatePath               = AgentPath + "state"                // a stream of State, one in a line, and of empty lines
	ReportPath              = AgentPath + "report"               // Report: ReportAnswer
	ItemsPath               = AgentPath + "items"                // Items: nothing
	AddressPath             = AgentPath + "address"              // AddressShown, from that address
	CertificatePath         = AgentPath + "certificate"          // JoinRequest with the CSR alone: JoinResponse
	MachineCertificatesPath = AgentPath + "machine-certificates" // MachineCertificatesRequest: MachineCertificates
	VolumeKeyPath           = AgentPath + "volume-key"           // VolumeKeyRequest: VolumeKey
	LeavePath               = AgentPath + "leave"
	WipedPath               = AgentPath + "wiped" // nothing: all that a removed node had is gone from its disk
)

const (
	// AliveEvery is how often a silent stream of states shows that it lives. An
	// agent gives one up that has been silent for DeadAfter.
	AliveEvery = 5 * time.Second
	DeadAfter  = 3 * AliveEvery
	// ReportEvery is the pace of reports without news. A node that has been silent
	// for SilentAfter counts as away; Kubernetes gives its nodes 40 s too.
	ReportEvery = 10 * time.Second
	SilentAfter = 4 * ReportEvery
	// ReportPace is how often a node may report in the long run, news included. A
	// server answers more than ReportBurst at once with 429; an agent sends half of it.
	ReportPace  = time.Second
	ReportBurst = 10
	// PagePace and PageBurst are the same for pages of Items, which are apart: of each step of a volume that is
	// made its host tells, and the next waits for that.
	PagePace  = 200 * time.Millisecond
	PageBurst = 20
	// A page of Items is of so many, and of so many bytes if it is of more than one: a
	// server writes each that is news, some milliseconds each, and others wait meanwhile. With PagePace it is 100
	// in a second.
	MaxPageItems = 20
	MaxPageBytes = 128 << 10
)

// State is everything a node shall do, sent anew on every change.
type State struct {
	Node     string    `json:"node"`
	Networks []Network `json:"networks"`
	Machines []Machine `json:"machines"`
	Volumes  []Volume  `json:"volumes,omitempty"`
	// Pools are where it shall have volumes, those that it shall let go of too, besides its own folder.
	Pools []Pool `json:"pools,omitempty"`
	// Storage is its part in shared volumes, nil for none.
	Storage *Storage `json:"storage,omitempty"`
	// Sends are what others wait for that this node has.
	Sends []Send `json:"sends,omitempty"`
	Files []File `json:"files,omitempty"`
	// Registry is host:port of the platform's registry, where nodes pull for
	// their machines.
	Registry string `json:"registry"`
	// UpstreamDNS are resolvers that tenants' names are forwarded to. Empty:
	// names outside the cluster don't resolve, but for those of the front door.
	UpstreamDNS []netip.AddrPort `json:"upstreamDNS,omitempty"`
	Door        Door             `json:"door,omitzero"`
}

// Door is the platform's front door as tenants find it by name.
type Door struct {
	// Names are in lower case, without a dot at the end. "*.NAME" is all that is below NAME,
	// "*.*.NAME" all that has two labels more at least, and so on.
	Names []string `json:"patterns,omitempty"`
	// Loose are names for agents that know "*.NAME" alone, so that their pods find apps
	// until their host is upgraded: more is the door's to them. The next release leaves
	// them out. Who has Names doesn't read them; a server from before sends nothing else.
	Loose     []string     `json:"names,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// Has says whether a name, however it is written, is one of the door's.
func (d Door) Has(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	names := d.Names
	if len(names) == 0 {
		names = d.Loose
	}
	return slices.ContainsFunc(names, func(n string) bool {
		end := strings.TrimLeft(n, "*.")
		labels := strings.Count(n, "*")
		if labels == 0 {
			return n == name
		}
		front, below := strings.CutSuffix(name, "."+end)
		return below && front != "" && strings.Count(front, ".")+1 >= labels
	})
}

// Wanted are the IDs of networks and the UIDs of machines, and of volumes and bricks, that shall be on
// the host, those that are being removed included.
func (s *State) Wanted() (networks, machines, volumes []string) {
	for _, n := range s.Networks {
		networks = append(networks, n.ID)
	}
	for _, m := range s.Machines {
		machines = append(machines, m.UID)
	}
	for _, v := range s.Volumes {
		volumes = append(volumes, v.UID)
	}
	if s.Storage != nil {
		for _, b := range s.Storage.Bricks {
			volumes = append(volumes, b.UID)
		}
	}
	return networks, machines, volumes
}

// Network is one workspace's network as one host sees it.
type Network struct {
	ID        string `json:"id"` // six hex digits; the namespace is mp-ID
	Workspace string `json:"workspace"`
	VNI       uint32 `json:"vni"`
	Plan      Plan   `json:"plan"`
	// Gateway is this host's own address in the workspace's L2 network, with
	// the length of Plan.Nodes; on the server it is Plan.Plane.
	Gateway netip.Prefix `json:"gateway"`
	// MAC is the hardware address of this host's bridge.
	MAC string `json:"mac"`
	// Members are all the others that own an address in this network, on this
	// host and on others: machines, bridges, the plane.
	Members []Member `json:"members"`
	// Hosts are all addresses of the platform's hosts, sorted: a tenant reaches none of
	// them, also those behind a router.
	Hosts []netip.Addr `json:"hosts,omitempty"`
}

// Member owns one address in a workspace's network.
type Member struct {
	Name    string       `json:"name"`
	Address netip.Addr   `json:"address"`
	MAC     string       `json:"mac"`
	PodCIDR netip.Prefix `json:"podCIDR,omitzero"` // machines only
	Host    netip.Addr   `json:"host"`             // underlay address of the host it is on
	// Door are service addresses of the platform that machines reach through this
	// member, a server: it knows then which workspace asks.
	Door []netip.Addr `json:"door,omitempty"`
}

// Machine is one machine that a node shall run, or take away.
type Machine struct {
	Key               string               `json:"key"`
	UID               string               `json:"uid"`
	Name              string               `json:"name"` // also the name of the Kubernetes node
	NetworkID         string               `json:"networkId"`
	KubernetesVersion string               `json:"kubernetesVersion"`
	Spec              resource.MachineSpec `json:"spec"`
	Plan              Plan                 `json:"plan"`
	ClusterCA         []byte               `json:"clusterCA"` // PEM
	// Place is what its workspace calls the host: volumes are where machines have the same.
	Place string `json:"place,omitempty"`
	// Remove says: stop it, take everything of it away, report Removed.
	Remove bool `json:"remove,omitempty"`
}

// Volume is one volume, or snapshot of one, that a node shall have, or take away. One of class shared is mounted
// where it is named, and its data is nothing of this host's: it is never Removed there.
type Volume struct {
	Key       string `json:"key"`
	UID       string `json:"uid"`
	NetworkID string `json:"networkId"` // of its workspace
	Class     string `json:"class"`
	Pool      string `json:"pool,omitempty"` // UID of the pool that it is in; empty: the host's own folder
	SizeBytes int64  `json:"sizeBytes"`
	// FirstUID is the host's user that owns its root: root in the workspace's machines. In a shared one
	// that is 0; another is of one from before, whose owners are the host's users as such.
	FirstUID uint32 `json:"firstUID"`
	// Made says that the host has had it: if it isn't there, its disk is away, and no empty
	// one takes its place.
	Made bool `json:"made,omitempty"`
	// Servers are hosts with its bricks, to mount it from; of class shared only.
	Servers []netip.Addr `json:"servers,omitempty"`
	// Source is the UID of the volume or snapshot on this host that it is made from. Empty: it is made
	// with nothing in it. Only a host whose pool says Copies is told.
	Source string `json:"source,omitempty"`
	// Snapshot says that it is a copy of Source that nobody mounts.
	Snapshot bool `json:"snapshot,omitempty"`
	// Encrypted says that its image is. The host asks for the key when it needs it (VolumeKeyPath), and
	// keeps it nowhere. Only a host whose Drivers name EncryptionDriver is told.
	Encrypted bool `json:"encrypted,omitempty"`
	// Block says that it has no file system: machines are shown its raw blocks, as their own user's. It is on hosts alone whose
	// Drivers named BlockDriver when it was placed: another agent would make a file system.
	Block bool `json:"block,omitempty"`
	// Attachments are the machines on this host that shall see it.
	Attachments []VolumeAttachment `json:"attachments,omitempty"`
	// Incoming says: it comes from another host, by wire.FetchPath, and nothing of it is mounted yet.
	Incoming bool `json:"incoming,omitempty"`
	// Importing says: what is in it comes as a file (State.Files), and no machine sees it before all of that is there.
	Importing bool `json:"importing,omitempty"`
	// Brick is of a shared volume that is Importing: the UID of one of its bricks, on this host and in Pool, beside which the
	// host keeps how far it is. It mounts the volume for that as if it were for the machine ImportMount.
	Brick string `json:"brick,omitempty"`
	// Move is which step of which move this is of, "" while it stays where it is: what a host has
	// said of an earlier step tells nothing of this one.
	Move string `json:"move,omitempty"`
	// Keep says: it is in the trash, or on its way to another host. No machine sees it, and what is in it stays.
	Keep bool `json:"keep,omitempty"`
	// Remove says: destroy what is in it, and report Removed.
	Remove bool `json:"remove,omitempty"`
}

// ImportMount is in the place of a machine's UID: see Volume.Brick.
const ImportMount = "import"

// EncryptionDriver is among the Drivers in the reports of hosts that can encrypt volumes.
const EncryptionDriver = resource.EncryptionDriver

// VolumeKeyRequest asks for the key of a volume that is on the asking host, or of which a brick is.
type VolumeKeyRequest struct {
	Key string `json:"key"`
	UID string `json:"uid"` // the volume's or the brick's
}

// VolumeKey is what the image is encrypted with.
type VolumeKey struct {
	Key []byte `json:"key"`
}

// VolumeAttachment is a machine that shall have a volume: in it, the volume is the
// folder VolumesInMachine/UID.
type VolumeAttachment struct {
	MachineUID string `json:"machineUID"`
}

// Place is what a workspace calls a host: tenants see no hosts' names, nor whether they
// share one with another workspace, so the host is called otherwise in each.
func Place(workspaceUID, nodeUID string) string {
	sum := sha256.Sum256([]byte(workspaceUID + "/" + nodeUID))
	return fmt.Sprintf("host-%x", sum[:4])
}

// VolumesInMachine is the folder in which a machine has the volumes attached to it. It shows what
// is mounted on its host in the folder VolumesOfMachine of the machine's own.
const (
	VolumesInMachine = "/run/volumes"
	VolumesOfMachine = "volumes"
)

// Report is what a node tells the server, every ReportEvery and on change: it is the node's
// sign of life. Of what a node may have very many, it tells by Items.
type Report struct {
	Address netip.Addr `json:"address"`
	// Addresses are those that the host has besides.
	Addresses []netip.Addr `json:"addresses,omitempty"`

	Version  string               `json:"version"`
	Kernel   string               `json:"kernel"`
	OS       string               `json:"os"`
	Drivers  []string             `json:"drivers"`
	Capacity resource.Size        `json:"capacity"`
	Problems []resource.Condition `json:"problems,omitempty"`
	Machines []MachineReport      `json:"machines"`
	Pools    []resource.Pool      `json:"pools,omitempty"` // where it can have volumes
	Networks []NetworkReport      `json:"networks"`
	// StorageOld says that what serves bricks runs by an older image or other settings than
	// it would be started with now: it waits for a moment at which nobody needs it.
	StorageOld bool `json:"storageOld,omitempty"`
	// StorageMembers are the addresses of all hosts that glusterd has in its cluster, this one too.
	// The host that leads tells them; none: it can't say.
	StorageMembers []netip.Addr `json:"storageMembers,omitempty"`
	// Holds are the IDs of the networks of which something is on the host, a disk of a
	// machine of theirs too, or shall be. HoldsUnknown is of one that can't be told. Null:
	// the agent does not know yet what shall be.
	Holds []string `json:"holds"`
	// Volumes are in the reports of agents from before Items. The next release leaves them out.
	Volumes []VolumeReport `json:"volumes,omitempty"`
}

// Items is a page of what a node says of things of which it may have very many, so that its
// sign of life is as large however many there are. It says what has changed since a server has
// taken it down, and all of it once it has connected, when it is asked to, and now and then.
type Items struct {
	Items []Item `json:"items"`
}

// Item is what a node says of one thing. A server skips kinds that it does not know: they are a
// newer agent's.
type Item struct {
	Kind   string          `json:"kind"`
	Report json.RawMessage `json:"report"`
}

// The kinds of items.
const (
	VolumeItem  = "volume"  // VolumeReport
	BrickItem   = "brick"   // BrickReport
	ClusterItem = "cluster" // ClusterReport, of the host that leads
)

// MaxAddresses is how many addresses a node may have besides its own on the platform's
// network.
const MaxAddresses = 64

// ReportAnswer is what a node is told when it has reported.
type ReportAnswer struct {
	// Show are addresses that it says to have and shall show: tenants are kept from
	// what is a host's, so its word is not enough.
	Show []netip.Addr `json:"show,omitempty"`
	// Anew asks for all items again: the node was silent, and what was said of them meanwhile
	// is no more.
	Anew bool `json:"anew,omitempty"`
}

// AddressShown is sent from an address that a host says to have: that it hears the
// answers there shows it.
type AddressShown struct {
	Address netip.Addr `json:"address"`
}

// HoldsUnknown is among what a host holds that can't tell all of it.
const HoldsUnknown = "?"

// MachineReport is what a node knows about one machine. A machine that was to
// be removed and is gone is reported once more with Removed set, until it is no
// longer in the state.
type MachineReport struct {
	Key       string    `json:"key"`
	UID       string    `json:"uid"`
	NetworkID string    `json:"-"` // "" if that could not be found out
	Running   bool      `json:"running"`
	Unseen    bool      `json:"-"` // whether it runs could not be found out
	Removed   bool      `json:"removed,omitempty"`
	Message   string    `json:"message,omitempty"`
	StartedAt time.Time `json:"startedAt,omitzero"`
	Restarts  int       `json:"restarts,omitempty"`
	// NoVolumes: it was started before machines could have volumes.
	NoVolumes bool `json:"noVolumes,omitempty"`
}

// VolumeReport is what a node knows about one volume or snapshot. See MachineReport for Removed.
type VolumeReport struct {
	Key       string `json:"key"`
	UID       string `json:"uid"`
	NetworkID string `json:"-"`              // "" if that could not be found out
	Ready     bool   `json:"ready"`          // it is there, with SizeBytes
	Move      string `json:"move,omitempty"` // the Volume\'s of which all this is said
	Fallen    bool   `json:"-"`              // it isn't mounted, or its file system has stopped
	Came      string `json:"-"`              // the ID of the move by which it came to this host, "" for none
	SizeBytes int64  `json:"sizeBytes,omitempty"`
	UsedBytes int64  `json:"usedBytes,omitempty"`
	// Attached are the UIDs of machines that have it; Failed says of others why not.
	Attached []string          `json:"attached,omitempty"`
	Failed   map[string]string `json:"failed,omitempty"`
	Removed  bool              `json:"removed,omitempty"`
	Message  string            `json:"message,omitempty"`
	// Import is how far one is that is made from a file; "" for another.
	Import string `json:"import,omitempty"`
}

// NetworkReport is what a node knows about one network.
type NetworkReport struct {
	ID      string `json:"id"`
	Ready   bool   `json:"ready"`
	Message string `json:"message,omitempty"` // why it isn't
}

// JoinRequest is what a machine sends to become a node, authenticated by its
// join token. A node that is one asks for a new certificate with the CSR alone.
type JoinRequest struct {
	Name  string `json:"name,omitempty"`
	Token string `json:"token,omitempty"`
	CSR   []byte `json:"csr"` // PEM; the key never leaves the node
}

// JoinResponse is the node's identity.
type JoinResponse struct {
	Certificate []byte `json:"certificate"` // PEM, leaf first
	CA          []byte `json:"ca"`          // PEM
}

// MachineCertificatesRequest asks for the certificates of one machine that the
// asking node runs. Each is a PEM CSR with only a public key that counts: the
// server decides on names and use.
type MachineCertificatesRequest struct {
	Machine        string `json:"machine"` // key
	UID            string `json:"uid"`     // of the machine that is meant, for another may have its key by now
	KubeletClient  []byte `json:"kubeletClient"`
	KubeletServing []byte `json:"kubeletServing"`
	KubeProxy      []byte `json:"kubeProxy"`
}

// MachineCertificates are the certificates, PEM, leaf first.
type MachineCertificates struct {
	KubeletClient  []byte `json:"kubeletClient"`
	KubeletServing []byte `json:"kubeletServing"`
	KubeProxy      []byte `json:"kubeProxy"`
}

// MachineKeyPairs are a machine's certificates with their keys, PEM. The keys are
// made on the host and never leave it: no message holds them.
type MachineKeyPairs struct {
	MachineCertificates
	KubeletClientKey  []byte
	KubeletServingKey []byte
	KubeProxyKey      []byte
}
