package appliance

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	quantity "k8s.io/apimachinery/pkg/api/resource"

	"github.com/multipaas/multipaas/appliance/paths"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// File is the configuration as an operator writes it: a YAML file, all of it
// optional. Load makes one, Complete makes a Config of it.
type File struct {
	DataDir string `yaml:"data_dir"`
	RunDir  string `yaml:"run_dir"`
	// Name of this machine on the platform. Empty: the host name.
	Name string `yaml:"name"`
	// Address of this machine on the platform's network. Empty: its only global
	// address, if it has only one.
	Address string `yaml:"address"`
	// Domain below which apps are reached.
	Domain string `yaml:"domain"`
	// ServerNames are names and addresses, other than Address, by which clients
	// reach this server.
	ServerNames  []string   `yaml:"server_names"`
	Listen       ListenFile `yaml:"listen"`
	Registration string     `yaml:"registration"` // sysadmin or open
	AdminEmail   string     `yaml:"admin_email"`  // of the first sysadmin

	Workspaces WorkspacesFile `yaml:"workspaces"`
	Limits     LimitsFile     `yaml:"limits"`
	// BlockedNetworks are networks, other than the platform's own, that tenants
	// never reach.
	BlockedNetworks    []string       `yaml:"blocked_networks"`
	RegistryUpstreams  []UpstreamFile `yaml:"registry_upstreams"`
	UpstreamDNS        []string       `yaml:"upstream_dns"`
	KubernetesVersions []string       `yaml:"kubernetes_versions"` // to offer; empty: all of the payload
	PayloadKeys        []string       `yaml:"payload_keys"`        // public keys that may sign a payload
	Log                LogFile        `yaml:"log"`
}

// ListenFile says where a server listens, each ":PORT" or "ADDRESS:PORT".
type ListenFile struct {
	API        string `yaml:"api"`
	Kubernetes string `yaml:"kubernetes"`
	Registry   string `yaml:"registry"`
	HTTP       string `yaml:"http"`
	HTTPS      string `yaml:"https"`
}

// WorkspacesFile is what all workspaces get.
type WorkspacesFile struct {
	Nodes     string `yaml:"nodes"`    // address range of machines
	Pods      string `yaml:"pods"`     // address range of pods
	Services  string `yaml:"services"` // address range of services
	Datastore string `yaml:"datastore"`
	// DatastoreLimit is how many MiB a workspace's may take: 2048 for kine and
	// 256 for etcd if it is 0.
	DatastoreLimit int64 `yaml:"datastore_limit"`
}

// LimitsFile is the most one account may have, unless a sysadmin sets otherwise
// for it with `mp accounts set`.
type LimitsFile struct {
	Users         int64  `yaml:"users"` // that were made for it
	Organizations int64  `yaml:"organizations"`
	Workspaces    int64  `yaml:"workspaces"`
	Machines      int64  `yaml:"machines"` // of all workspaces, as are CPUs, memory and disk
	Apps          int64  `yaml:"apps"`
	CPU           string `yaml:"cpu"`
	Memory        string `yaml:"memory"`
	Disk          string `yaml:"disk"`
	Images        string `yaml:"images"` // bytes in the registry
}

// UpstreamFile is another registry that ours fetches images from.
type UpstreamFile struct {
	Name         string `yaml:"name"` // as it stands in image references
	URL          string `yaml:"url"`
	CAFile       string `yaml:"ca_file"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
}

// LogFile says how to log.
type LogFile struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// Defaults is the configuration of an empty file.
func Defaults() File {
	return File{
		DataDir: paths.DefaultData,
		RunDir:  paths.DefaultRun,
		// .internal is reserved for private use: no such name is ever on the
		// internet.
		Domain: "paas.internal",
		Listen: ListenFile{
			API: ":7443", Kubernetes: ":6443", Registry: ":5000", HTTP: ":80", HTTPS: ":443",
		},
		Registration: "sysadmin",
		Workspaces: WorkspacesFile{
			Nodes: "172.30.0.0/20", Pods: "10.42.0.0/16", Services: "10.43.0.0/16", Datastore: "kine",
		},
		// A workspace's plane takes 250 MB of the server.
		Limits: LimitsFile{Users: 1000, Organizations: 50, Workspaces: 25, Machines: 100, Apps: 500,
			CPU: "400", Memory: "1600Gi", Disk: "10Ti", Images: "200Gi"},
		Log: LogFile{Level: "info", Format: "text"},
	}
}

// Config is the configuration of a machine, complete. Only Complete makes one;
// what it holds can be used as it stands once Validate has returned nil.
type Config struct {
	Paths              paths.Paths
	Name               string
	Address            netip.Addr
	Domain             string
	ServerNames        []string
	Listen             ListenFile
	Registration       string
	AdminEmail         string
	Plan               wire.Plan
	Datastore          resource.Datastore
	DatastoreLimit     int64           // bytes; 0: embed/plane's default
	Limits             resource.Limits // of one account
	BlockedNetworks    []netip.Prefix
	RegistryUpstreams  []UpstreamFile
	UpstreamDNS        []netip.AddrPort
	KubernetesVersions []string
	PayloadKeys        []PublicKey
	Log                LogFile

	errs []error // what Complete could not read
}

// Machine is what Complete needs to know about the machine it runs on.
type Machine struct {
	Hostname  string
	Addresses []LinkAddr
}

// LinkAddr is an address and the network device that has it.
type LinkAddr struct {
	Link    string
	Address netip.Addr
}

// ThisMachine looks at the machine we run on.
func ThisMachine() (Machine, error) {
	var m Machine
	host, err := os.Hostname()
	if err != nil {
		return m, fmt.Errorf("read host name: %w", err)
	}
	m.Hostname = host
	links, err := net.Interfaces()
	if err != nil {
		return m, fmt.Errorf("list network devices: %w", err)
	}
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 || l.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := l.Addrs()
		if err != nil {
			return m, fmt.Errorf("list addresses of %s: %w", l.Name, err)
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			m.Addresses = append(m.Addresses, LinkAddr{l.Name, p.Addr().Unmap()})
		}
	}
	return m, nil
}

// candidates are the addresses that could be the machine's own on the
// platform's network.
func (m Machine) candidates() []LinkAddr {
	var out []LinkAddr
	for _, a := range m.Addresses {
		// Links called mp… are ours: the host's ends of workspaces' networks.
		if a.Address.Is4() && a.Address.IsGlobalUnicast() && !strings.HasPrefix(a.Link, "mp") {
			out = append(out, a)
		}
	}
	return out
}

// Complete fills in what f leaves open and reads what it says. What it can't
// read it leaves for Validate to report, so that all mistakes show at once.
func (f File) Complete(m Machine) Config {
	c := Config{
		Paths:              paths.Paths{Data: f.DataDir, Run: f.RunDir},
		Name:               f.Name,
		Domain:             strings.ToLower(strings.TrimSuffix(f.Domain, ".")),
		ServerNames:        slices.Clone(f.ServerNames),
		Listen:             f.Listen,
		Registration:       f.Registration,
		AdminEmail:         f.AdminEmail,
		Datastore:          resource.Datastore(f.Workspaces.Datastore),
		DatastoreLimit:     f.Workspaces.DatastoreLimit << 20,
		RegistryUpstreams:  slices.Clone(f.RegistryUpstreams),
		KubernetesVersions: slices.Clone(f.KubernetesVersions),
		Log:                f.Log,
	}
	if c.Name == "" {
		// Only the first label: node names are labels, host names may be longer.
		c.Name, _, _ = strings.Cut(strings.ToLower(m.Hostname), ".")
	}
	if c.AdminEmail == "" {
		c.AdminEmail = "admin@" + c.Domain
	}
	c.Address = c.completeAddress(f.Address, m)
	c.completePlan(f.Workspaces)
	c.completeLimits(f.Limits)
	for i, s := range f.BlockedNetworks {
		if p, ok := c.prefix(fmt.Sprintf("blocked_networks[%d]", i), s); ok {
			c.BlockedNetworks = append(c.BlockedNetworks, p)
		}
	}
	for i, s := range f.UpstreamDNS {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			addr, aerr := netip.ParseAddr(s)
			if aerr != nil {
				c.fail(fmt.Sprintf("upstream_dns[%d]", i), s, "not an IP address", "write 10.0.0.53 or 10.0.0.53:53")
				continue
			}
			ap = netip.AddrPortFrom(addr, 53)
		}
		c.UpstreamDNS = append(c.UpstreamDNS, ap)
	}
	for i, s := range f.PayloadKeys {
		key, err := ParsePublicKey(s)
		if err != nil {
			c.fail(fmt.Sprintf("payload_keys[%d]", i), s, err.Error(), "`multipaas payload ls` shows the key of a payload")
			continue
		}
		c.PayloadKeys = append(c.PayloadKeys, key)
	}
	return c
}

func (c *Config) completeAddress(s string, m Machine) netip.Addr {
	if s != "" {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			c.fail("address", s, "not an IP address", "write the address of this machine on the platform's network, without a port or a length")
		}
		return addr
	}
	// Never by the default route: it may lead to a network that has nothing to
	// do with the platform, and platforms without one are what we are made for.
	all := m.candidates()
	switch len(all) {
	case 1:
		return all[0].Address
	case 0:
		c.fail("address", s, "this machine has no global IPv4 address", "give it one, or set address")
		return netip.Addr{}
	}
	var names []string
	for _, a := range all {
		names = append(names, fmt.Sprintf("%s (%s)", a.Address, a.Link))
	}
	c.fail("address", s, "this machine has more than one: "+strings.Join(names, ", "), "set address to the one on the platform's network")
	return netip.Addr{}
}

func (c *Config) completePlan(f WorkspacesFile) {
	nodes, nodesOK := c.prefix("workspaces.nodes", f.Nodes)
	pods, podsOK := c.prefix("workspaces.pods", f.Pods)
	services, servicesOK := c.prefix("workspaces.services", f.Services)
	if !nodesOK || !podsOK || !servicesOK {
		return
	}
	c.Plan = wire.NewPlan(nodes, pods, services)
}

func (c *Config) prefix(field, s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || !p.Addr().Is4():
		c.fail(field, s, "not an IPv4 network", "write it as 10.0.0.0/16")
	case p.Masked() != p:
		c.fail(field, s, "has bits set behind its length", "write "+p.Masked().String())
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

func (c *Config) completeLimits(f LimitsFile) {
	c.Limits = resource.Limits{Users: f.Users, Organizations: f.Organizations, Workspaces: f.Workspaces, Machines: f.Machines, Apps: f.Apps}
	for _, x := range []struct {
		field, text string
		to          *int64
		value       func(quantity.Quantity) int64
	}{
		{"limits.cpu", f.CPU, &c.Limits.MilliCPU, func(q quantity.Quantity) int64 { return q.MilliValue() }},
		{"limits.memory", f.Memory, &c.Limits.MemoryBytes, func(q quantity.Quantity) int64 { return q.Value() }},
		{"limits.disk", f.Disk, &c.Limits.DiskBytes, func(q quantity.Quantity) int64 { return q.Value() }},
		{"limits.images", f.Images, &c.Limits.ImageBytes, func(q quantity.Quantity) int64 { return q.Value() }},
	} {
		q, err := quantity.ParseQuantity(x.text)
		if err != nil || q.Sign() <= 0 {
			c.fail(x.field, x.text, "not an amount", "write it like 400 (CPUs), 64Gi or 2Ti")
			continue
		}
		*x.to = x.value(q)
	}
	for _, x := range []struct {
		field string
		value int64
	}{{"limits.users", f.Users}, {"limits.organizations", f.Organizations}, {"limits.workspaces", f.Workspaces}, {"limits.machines", f.Machines}, {"limits.apps", f.Apps}} {
		if x.value < 1 {
			c.fail(x.field, strconv.FormatInt(x.value, 10), "not a limit", "use a number from 1 on")
		}
	}
}
