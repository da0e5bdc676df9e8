package appliance

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"path/filepath"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/embed/etcd"
	"github.com/multipaas/multipaas/embed/manifests"
	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/apps"
	"github.com/multipaas/multipaas/modules/balancer"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/task"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/modules/workspace"
)

// server is a control machine.
type server struct {
	*base
	ca       *pki.CA // the platform's: servers, nodes, tenants' hosts
	etcdCA   *pki.CA // of the datastore alone
	cert     *pki.Renewer
	etcd     *etcd.Server
	client   *clientv3.Client
	store    *store.Store
	versions []string

	nodes         *store.Cache[*resource.Node]
	accounts      *store.Cache[*resource.Account]
	organizations *store.Cache[*resource.Organization]
	workspaces    *store.Cache[*resource.Workspace]
	machines      *store.Cache[*resource.Machine]
	keys          *store.Cache[*resource.WorkspaceKeys]
	apps          *store.Cache[*resource.App]

	networks   *network.Network
	identity   *identity.Identity
	planes     *planes
	controller *workspace.Controller
	hub        *node.Hub
	registry   *registry.Registry
	balancer   *balancer.Balancer
	router     *balancer.PlaneRouter
	tasks      *task.Tasks
	deployer   *apps.Controller
	api        *api.API
}

// RunServer runs a server until ctx is done. Starting again on the same data
// directory goes on where the last run was, however that one ended.
func RunServer(ctx context.Context, cfg Config, version string, log *slog.Logger) error {
	s := &server{}
	s.base = newBase("server", cfg, version, log, s.items, s)
	release, err := s.prepare(ctx, serverChecks(cfg))
	if err != nil {
		return err
	}
	defer release()
	if err := s.make(); err != nil {
		return err
	}
	defer s.client.Close()
	s.boot()
	return s.graph.Run(ctx)
}

// boot is the order in which a server starts; it stops in the reverse order.
func (s *server) boot() {
	g := s.graph
	g.Add("status", s.status)
	// The balancer has its table on disk: it serves before everything else has
	// come back, and until everything else has stopped.
	balancer := g.Add("balancer", s.balancer)
	payload := g.Add("payload", s.unpack("kube"))
	certificate := g.Add("certificate", s.cert)

	etcd := g.Add("etcd-client", lifecycle.Func(s.holdClient), g.Add("etcd", s.etcd, balancer))
	nodes := g.Add("nodes", s.nodes, etcd)
	accounts := g.Add("accounts", s.accounts, etcd)
	organizations := g.Add("organizations", s.organizations, etcd)
	workspaces := g.Add("workspaces", s.workspaces, etcd)
	machines := g.Add("machines", s.machines, etcd)
	keys := g.Add("keys", s.keys, etcd)
	apps := g.Add("apps", s.apps, etcd)

	identity := g.Add("identity", s.identity, etcd)
	admin := g.Add("first-admin", lifecycle.Task(s.firstAdmin), identity)
	tasks := g.Add("tasks", s.tasks, etcd)
	g.Add("node-monitor", s.monitor(), nodes, machines)

	planes := g.Add("planes", s.controller, payload, certificate, identity, nodes, workspaces, machines, apps)
	registry := g.Add("registry", s.registry, certificate, identity, accounts, organizations, machines)
	g.Add("deployer", s.deployer, planes, registry, apps)
	g.Add("plane-router", s.router, planes)

	g.Add("address", s.watchAddress())
	g.Add("paths", s.watchPaths(s.networks))
	g.Add("health", s.watchHealth(s.checkDisk, s.checkDatastore, s.checkNodes, s.checkPlanes), nodes)
	g.Add("api", lifecycle.Func(s.serveAPI), certificate, admin, tasks, keys, planes, registry)
}

// holdClient closes the client of etcd before etcd stops, which otherwise waits
// seven seconds for connections to end.
func (s *server) holdClient(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	return s.client.Close()
}

// make makes the parts; it starts none.
func (s *server) make() (err error) {
	if s.ca, err = pki.LoadOrCreateCA(s.cfg.Paths.PKI(), "MultiPaaS "+s.cfg.Domain); err != nil {
		return err
	}
	faultpoint.Reach("bootstrap/platform-authority-made")
	if s.etcdCA, err = pki.LoadOrCreateCA(filepath.Join(s.cfg.Paths.PKI(), "etcd"), "MultiPaaS etcd"); err != nil {
		return err
	}
	if s.versions, err = s.base.versions(); err != nil {
		return err
	}
	s.cert = s.certificate()
	s.etcd = etcd.New(etcd.Config{Dir: s.cfg.Paths.Etcd(), Name: s.cfg.Name, Socket: s.cfg.Paths.EtcdSocket(), CA: s.etcdCA, Log: s.part("etcd")})
	if s.client, err = s.etcd.Client(); err != nil {
		return err
	}
	s.store = store.New(s.client)
	s.nodes = store.Of[resource.Node](s.store).Cache(s.part("nodes"))
	s.accounts = store.Of[resource.Account](s.store).Cache(s.part("accounts"))
	s.organizations = store.Of[resource.Organization](s.store).Cache(s.part("organizations"))
	s.workspaces = store.Of[resource.Workspace](s.store).Cache(s.part("workspaces"))
	s.machines = store.Of[resource.Machine](s.store).Cache(s.part("machines"))
	s.keys = store.Of[resource.WorkspaceKeys](s.store).Cache(s.part("keys"))
	s.apps = store.Of[resource.App](s.store).Cache(s.part("apps"))

	s.identity = identity.New(identity.Config{Store: s.store, Issuer: s.url(), RegistryService: s.registryName(),
		CAKeyHash: s.ca.KeyHash(), Log: s.part("identity")})
	s.networks = network.New(network.Config{Underlay: s.cfg.Address, Blocked: s.cfg.BlockedNetworks, Log: s.part("network")})
	s.planes = &planes{base: s.base, running: map[string]*runningPlane{}, networks: s.networks, etcd: s.etcd, etcdCA: s.etcdCA, issuer: s.url(), tls: s.cert,
		caPEM: s.ca.CertPEM(), oidc: s.issuerDocuments()}
	s.controller = workspace.New(workspace.Config{Log: s.part("planes"), Store: s.store, Networks: &serverNetworks{s.networks, s.planes},
		Planes: s.planes, Manifests: clusterManifests, Server: s.cfg.Name, Address: s.cfg.Address, Domain: s.cfg.Domain, Plan: s.cfg.Plan,
		KubeAPI:    s.reach(s.cfg.Listen.Kubernetes),
		Workspaces: s.workspaces, Machines: s.machines, Nodes: s.nodes, Apps: s.apps})
	s.hub = node.NewHub(node.HubConfig{Log: s.part("hub"), Store: s.store, CA: s.ca, Tokens: joinTokens{s.identity},
		Server: s.cfg.Name, Address: s.cfg.Address, Plan: s.cfg.Plan,
		Nodes: s.nodes, Workspaces: s.workspaces, Machines: s.machines, Keys: s.keys,
		Registry: s.registryName(), UpstreamDNS: s.cfg.UpstreamDNS})
	if s.registry, err = s.makeRegistry(); err != nil {
		return err
	}
	s.tasks = task.New(task.Config{Store: s.store, Log: s.part("tasks")})
	s.deployer = apps.New(apps.Config{Log: s.part("deployer"), Store: s.store, Apps: s.apps, Workspaces: s.workspaces,
		Clusters: s.controller, Images: s.images(), Domain: s.cfg.Domain, Registry: s.registryName(), RegistryNames: s.registryNames()})
	s.router = balancer.NewPlaneRouter(balancer.PlaneRouterConfig{Addr: s.cfg.Listen.Kubernetes, Planes: planeDialer{s.controller}, Log: s.part("plane-router")})
	s.balancer = balancer.New(balancer.Config{HTTPAddr: s.cfg.Listen.HTTP, HTTPSAddr: s.cfg.Listen.HTTPS, Dir: filepath.Join(s.cfg.Paths.Data, "balancer"),
		Domain: s.cfg.Domain, Store: s.store, Etcd: s.client, Signer: signer{s.ca}, Workspaces: backends{s.controller}, Pods: s.cfg.Plan.Pods, Log: s.part("balancer")})
	s.api = s.makeAPI()
	return nil
}

// certificate is what every listener of this server shows.
func (s *server) certificate() *pki.Renewer {
	r := pki.Request{CommonName: s.cfg.Name, Server: true, Hosts: s.hosts()}
	dir := s.cfg.Paths.PKI()
	issue := func(context.Context) (certPEM, keyPEM []byte, err error) {
		certPEM, keyPEM, err = s.ca.Issue(r)
		// The authority stands in the chain: a machine that joins knows only the
		// hash of its key.
		return append(certPEM, s.ca.CertPEM()...), keyPEM, err
	}
	return pki.NewRenewer(pki.RenewerConfig{Name: "server", Issue: issue, Accept: pki.SameRequest(s.ca, r),
		CertFile: filepath.Join(dir, "server.crt"), KeyFile: filepath.Join(dir, "server.key"), Log: s.part("certificate")})
}

// hosts are all names and addresses by which this server is reached. Loopback
// is for commands typed on the server itself and for the planes.
func (s *server) hosts() []string {
	hosts := append([]string{s.cfg.Address.String(), "127.0.0.1", "localhost", s.cfg.Name,
		"api." + s.cfg.Domain, "registry." + s.cfg.Domain}, s.cfg.ServerNames...)
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// reach is host:port by which others reach a listener of this server.
func (s *server) reach(listen string) string {
	_, port, _ := net.SplitHostPort(listen)
	host := s.cfg.Address.String()
	if len(s.cfg.ServerNames) > 0 {
		host = s.cfg.ServerNames[0]
	}
	return net.JoinHostPort(host, port)
}

func (s *server) url() string { return "https://" + s.reach(s.cfg.Listen.API) }

func (s *server) registryName() string { return s.reach(s.cfg.Listen.Registry) }

// registryNames are all names under which the registry stands in references.
func (s *server) registryNames() []string {
	_, port, _ := net.SplitHostPort(s.cfg.Listen.Registry)
	var names []string
	for _, h := range s.hosts() {
		names = append(names, net.JoinHostPort(h, port))
	}
	return names
}

// firstAdmin makes the first sysadmin and writes how he logs in.
func (s *server) firstAdmin(ctx context.Context) error {
	return s.identity.Bootstrap(ctx, s.cfg.Paths.BootstrapAdmin(), s.cfg.AdminEmail)
}

func (s *server) monitor() *node.Monitor {
	return &node.Monitor{Log: s.part("node-monitor"), Store: s.store, Nodes: s.nodes, Machines: s.machines}
}

func (s *server) tls() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.cert.GetCertificate,
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: s.ca.Pool()}
}

// items are the workspaces, for the status.
func (s *server) items() []status.Item {
	if s.workspaces == nil {
		return nil
	}
	var out []status.Item
	for _, w := range s.workspaces.List("") {
		i := status.Item{Kind: "workspace", Name: w.Key(), State: string(w.Status.Phase)}
		for _, c := range w.Status.Conditions {
			if c.Status != resource.True && c.Message != "" {
				i.Detail = c.Message
				break
			}
		}
		out = append(out, i)
	}
	return out
}

// clusterManifests renders what a workspace's cluster gets at birth. Two DNS
// servers once there are two machines to put them on.
func clusterManifests(w *resource.Workspace, plan wire.Plan) ([]byte, error) {
	return manifests.Cluster(manifests.Values{DNSAddress: plan.DNS.String(), DNSReplicas: min(2, max(1, w.Spec.Machines)),
		DNSImage: wire.PayloadRegistry + "/coredns:1", Domain: "cluster.local"})
}
