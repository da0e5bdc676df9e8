package appliance

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/appliance/preflight"
	"github.com/multipaas/multipaas/appliance/seal"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/resource"
)

// server is a control machine.
type server struct {
	*base
	ca *pki.CA // the platform's: servers, nodes, tenants' hosts
	// storageCA is of shared volumes alone: whom it has certified may ask any host for them.
	storageCA *pki.CA
	// seal seals secrets that lie in the datastore.
	seal     *seal.Key
	versions []string // of Kubernetes, newest last
}

// RunServer runs a server until ctx is done. Starting again on the same data
// directory goes on where the last run was, however that one ended.
func RunServer(ctx context.Context, cfg Config, version string, log *slog.Logger) error {
	s := &server{base: newBase("server", cfg, version, log)}
	release, err := s.prepare(ctx, preflight.ServerModules(), serverChecks(cfg))
	if err != nil {
		return err
	}
	defer release()
	s.limitMemory(serverMemory)
	if err := s.boot(); err != nil {
		return err
	}
	return s.graph.Run(ctx)
}

// boot makes the parts, in the order in which they start; they stop in the
// reverse order. What a part was made from is what it starts after.
func (s *server) boot() (err error) {
	if s.ca, err = pki.LoadOrCreateCA(s.cfg.Paths.PKI(), "MultiPaaS "+s.cfg.Domain); err != nil {
		return err
	}
	failpoint.Reach("bootstrap/platform-authority-made")
	if s.storageCA, err = pki.LoadOrCreateCA(filepath.Join(s.cfg.Paths.PKI(), "storage"), "MultiPaaS storage"); err != nil {
		return err
	}
	if s.seal, err = seal.LoadOrCreate(filepath.Join(s.cfg.Paths.PKI(), "volumes.key")); err != nil {
		return err
	}
	s.versions = s.cfg.KubernetesVersions
	if len(s.versions) == 0 {
		if s.versions, err = kubeVersions(s.payload); err != nil {
			return err
		}
	}
	add(s.graph, "status", &needs{}, s.status)
	payload := add(s.graph, "payload", &needs{}, lifecycle.Task(func(ctx context.Context) error {
		return s.unpack(ctx, "kube")
	}))
	certificate := s.addCertificate()
	networks := s.network(func() network.Door { return s.cfg.listeners(s.service()) })
	s.addWatches(networks)

	database, err := s.database()
	if err != nil {
		return err
	}
	// The balancer has its table on disk: it serves before everything else has
	// come back, and until everything else has stopped.
	clusters := &lateClusters{}
	balancer := s.addBalancer(database, clusters)
	store := s.addDatabase(database, balancer)

	nodes := addCache[resource.Node](s, store)
	accounts := addCache[resource.Account](s, store)
	organizations := addCache[resource.Organization](s, store)
	workspaces := addCache[resource.Workspace](s, store)
	machines := addCache[resource.Machine](s, store)
	keys := addCache[resource.WorkspaceKeys](s, store)
	claims := addCache[resource.VNI](s, store)
	apps := addCache[resource.App](s, store)
	volumes := addCache[resource.Volume](s, store)
	snapshots := addCache[resource.Snapshot](s, store)
	trash := addCache[resource.Trash](s, store)

	identity := s.addIdentity(store)
	tasks := s.addTasks(store)
	hub := s.addNodes(store, identity, nodes, workspaces, machines, keys, claims, volumes, snapshots, trash)
	storage := s.addStorage(store, volumes, snapshots, trash, nodes, machines, workspaces)
	planes := s.planes(database, payload, certificate, identity, storage, networks)
	controller := s.addWorkspaces(store, database, planes, networks, accounts, nodes, workspaces, machines)
	clusters.Workspaces = controller.value
	registry, err := s.addRegistry(certificate, identity, hub, accounts, organizations)
	if err != nil {
		return err
	}
	s.addApps(store, controller, registry, apps, workspaces)
	s.addPlaneRouter(controller)
	s.addHealth(database, identity, planes, nodes, claims, trash, volumes, storage)
	s.addFollower(store, volumes, controller)
	s.addAPI(certificate, store, identity, controller, storage, registry, tasks, hub)
	return nil
}

// addCertificate adds what keeps the certificate that every listener shows.
func (s *server) addCertificate() part[*pki.Renewer] {
	request := pki.Request{CommonName: s.cfg.Name, Server: true, Hosts: s.hosts()}
	dir := s.cfg.Paths.PKI()
	return add(s.graph, "certificate", &needs{}, pki.NewRenewer(pki.RenewerConfig{
		Name: "server",
		Issue: func(context.Context) (certPEM, keyPEM []byte, err error) {
			certPEM, keyPEM, err = s.ca.Issue(request)
			// The authority stands in the chain: a machine that joins knows only the
			// hash of its key.
			return append(certPEM, s.ca.CertPEM()...), keyPEM, err
		},
		Accept:   pki.SameRequest(s.ca, request),
		CertFile: filepath.Join(dir, "server.crt"),
		KeyFile:  filepath.Join(dir, "server.key"),
		Log:      s.part("certificate"),
	}))
}

// tls is for listeners that nodes reach too, by their certificates.
func (s *server) tls(certificate *pki.Renewer) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: certificate.GetCertificate,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      s.ca.Pool(),
	}
}

// hosts are all names and addresses by which this server is reached. Loopback
// is for commands typed on the server itself and for the planes.
func (s *server) hosts() []string {
	hosts := append([]string{
		s.cfg.Address.String(), "127.0.0.1", "localhost", s.cfg.Name, "api." + s.cfg.Domain, "registry." + s.cfg.Domain,
	}, s.cfg.ServerNames...)
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// service are this server's addresses by which clients reach it now.
func (s *server) service() []netip.Addr { return s.cfg.service(s.own.List()) }

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
