package resource

import (
	"net/netip"
	"time"
)

// AddressPlan is the address plan inside every workspace. Workspaces can't see
// one another, so all have the same.
type AddressPlan struct {
	Nodes    netip.Prefix `json:"nodes"`    // 172.30.0.0/20
	Pods     netip.Prefix `json:"pods"`     // 10.42.0.0/16
	Services netip.Prefix `json:"services"` // 10.43.0.0/16
	Plane    netip.Addr   `json:"plane"`    // 172.30.0.1
	DNS      netip.Addr   `json:"dns"`      // 10.43.0.10
}

// LinkLocal is the address, inside each machine, of the platform's endpoints
// that tenants need: the registry on port 5000 (HTTP) and DNS on 53. The node's
// agent listens there, so it knows which machine is asking.
var LinkLocal = netip.MustParseAddr("169.254.20.10")

// WorkspaceHeader is in what a node asks of the registry for a machine: the key
// of the machine's workspace.
const WorkspaceHeader = "X-Multipaas-Workspace"

// AgentState is everything a node shall do, whole: sent anew on every change,
// so that a message lost or an agent restarted costs nothing.
type AgentState struct {
	Node     string         `json:"node"`
	Networks []AgentNetwork `json:"networks"`
	Machines []AgentMachine `json:"machines"`
	// Registry is host:port of the platform's registry, where nodes pull for
	// their machines.
	Registry string `json:"registry"`
	// UpstreamDNS are resolvers that tenants' names are forwarded to. Empty:
	// names outside the cluster don't resolve.
	UpstreamDNS []netip.AddrPort `json:"upstreamDNS,omitempty"`
}

// AgentNetwork is one workspace's network as one host sees it.
type AgentNetwork struct {
	ID        string      `json:"id"` // six hex digits; the namespace is mp-ID
	Workspace string      `json:"workspace"`
	VNI       uint32      `json:"vni"`
	Plan      AddressPlan `json:"plan"`
	// Gateway is this host's own address in the workspace's L2 network, with
	// the length of Plan.Nodes; on the server it is Plan.Plane.
	Gateway netip.Prefix `json:"gateway"`
	// MAC is the hardware address of this host's bridge.
	MAC string `json:"mac"`
	// Members are all the others that own an address in this network, on this
	// host and on others: machines, bridges, the plane.
	Members []NetworkMember `json:"members"`
	// Hosts are the underlay addresses of the platform's hosts, sorted: a tenant
	// reaches none of them, also those behind a router.
	Hosts []netip.Addr `json:"hosts,omitempty"`
}

// NetworkMember owns one address in a workspace's network.
type NetworkMember struct {
	Name    string       `json:"name"`
	Address netip.Addr   `json:"address"`
	MAC     string       `json:"mac"`
	PodCIDR netip.Prefix `json:"podCIDR,omitzero"` // machines only
	Host    netip.Addr   `json:"host"`             // underlay address of the host it is on
}

// AgentMachine is one machine that a node shall run, or take away.
type AgentMachine struct {
	Key               string      `json:"key"`
	UID               string      `json:"uid"`
	Name              string      `json:"name"` // also the name of the Kubernetes node
	NetworkID         string      `json:"networkId"`
	KubernetesVersion string      `json:"kubernetesVersion"`
	Spec              MachineSpec `json:"spec"`
	Plan              AddressPlan `json:"plan"`
	ClusterCA         []byte      `json:"clusterCA"` // PEM
	// Remove says: stop it, take everything of it away, report Removed.
	Remove bool `json:"remove,omitempty"`
}

// AgentReport is what a node tells the server, every few seconds and on change.
type AgentReport struct {
	Address  string          `json:"address"`
	Version  string          `json:"version"`
	Kernel   string          `json:"kernel"`
	OS       string          `json:"os"`
	Drivers  []string        `json:"drivers"`
	Capacity Size            `json:"capacity"`
	Problems []Condition     `json:"problems,omitempty"`
	Machines []MachineReport `json:"machines"`
	Networks []NetworkReport `json:"networks"`
}

// MachineReport is what a node knows about one machine. A machine that was to
// be removed and is gone is reported once more with Removed set, until it is no
// longer in the state.
type MachineReport struct {
	Key       string    `json:"key"`
	UID       string    `json:"uid"`
	Running   bool      `json:"running"`
	Removed   bool      `json:"removed,omitempty"`
	Message   string    `json:"message,omitempty"`
	StartedAt time.Time `json:"startedAt,omitzero"`
	Restarts  int       `json:"restarts,omitempty"`
}

// NetworkReport is what a node knows about one network.
type NetworkReport struct {
	ID      string `json:"id"`
	Ready   bool   `json:"ready"`
	Message string `json:"message,omitempty"`
}

// JoinRequest is what a machine sends to become a node, authenticated by its
// join token.
type JoinRequest struct {
	Name  string `json:"name"`
	Token string `json:"token"`
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
