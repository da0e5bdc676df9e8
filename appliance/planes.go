package appliance

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/appliance/problem"
	"github.com/multipaas/multipaas/embed/plane"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/storage"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/modules/workspace"
)

// issuerPort is where a plane reaches the platform's OIDC documents: on the
// loopback of its own namespace, which only the plane can reach.
const issuerPort = "6444"

// planes makes the planes of this server for the workspace controller.
type planes struct {
	*base
	networks *network.Network
	database *database
	issuer   string       // iss of the tokens that planes trust
	oidc     http.Handler // discovery and keys
	tls      *pki.Renewer // of the listener for them
	caPEM    []byte
	storage  *storage.Controller

	mu      sync.Mutex
	running map[string]*runningPlane // by workspace id
}

var _ workspace.Planes = (*planes)(nil)

// planes makes who makes the planes.
func (s *server) planes(
	d *database,
	payload part[lifecycle.Task],
	certificate part[*pki.Renewer],
	id part[*identity.Identity],
	volumes part[*storage.Controller],
	networks *network.Network,
) part[*planes] {
	n := &needs{}
	payload.of(n)
	issuer, documents := id.of(n), http.NewServeMux() // all that a plane's own listener serves
	documents.HandleFunc("GET "+identity.DiscoveryPath, issuer.ServeDiscovery)
	documents.HandleFunc("GET "+identity.KeysPath, issuer.ServeKeys)
	return made(n, &planes{
		base:     s.base,
		networks: networks,
		database: d,
		issuer:   s.url(),
		oidc:     documents,
		tls:      certificate.of(n),
		caPEM:    s.ca.CertPEM(),
		storage:  volumes.of(n),
		running:  map[string]*runningPlane{},
	})
}

// New makes the plane of a workspace.
func (p *planes) New(
	ctx context.Context, w *resource.Workspace, keys *resource.WorkspaceKeys, plan wire.Plan,
) (workspace.Plane, error) {
	id := w.Status.ID
	dir := p.cfg.Paths.Plane(id)
	all := p.cfg.Paths.Planes() // planes pass through
	if err := cmp.Or(os.MkdirAll(all, 0o711), os.Chmod(all, 0o711)); err != nil {
		return nil, err
	}
	binary := filepath.Join(p.tree, "kube", w.Spec.KubernetesVersion, "kube")
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("kubernetes %s is not in the payload of this server: %w", w.Spec.KubernetesVersion, err)
	}
	store := plane.Datastore{Kind: string(w.Spec.Datastore), MaxBytes: p.cfg.DatastoreLimit}
	var certificate *pki.Renewer
	if w.Spec.Datastore == resource.Etcd {
		var err error
		if store.Etcd, certificate, err = p.etcdDatastore(ctx, id, dir, planeUser(w)); err != nil {
			return nil, fmt.Errorf("datastore: %w", err)
		}
	}
	return &runningPlane{planes: p, id: id, workspace: w.Key(), uid: w.UID, user: planeUser(w),
		certificate: certificate, Plane: plane.New(plane.Config{
			ID: id, Binary: binary, Dir: dir, UID: planeUser(w), Netns: network.NamespacePath(id), Cgroup: planeGroup(id),
			Plan:        plane.Plan{Services: plan.Services, Machines: plan.Nodes, Plane: plan.Plane},
			ServerNames: []string{w.Status.APIHost},
			Keys: plane.Keys{CACert: keys.CACert, CAKey: keys.CAKey, FrontProxyCACert: keys.FrontProxyCACert,
				FrontProxyCAKey: keys.FrontProxyCAKey, SigningCACert: keys.SigningCACert, SigningCAKey: keys.SigningCAKey,
				ServiceAccountKey: keys.ServiceAccountKey, EncryptionKey: keys.EncryptionKey},
			Datastore: store,
			OIDC: plane.OIDC{Issuer: p.issuer, Audience: w.UID, CAPEM: p.caPEM,
				DiscoveryURL: "https://127.0.0.1:" + issuerPort + "/.well-known/openid-configuration"},
			StorageSocket: storageSocket(dir),
			PodSecurity:   w.Spec.PodSecurity,
			Log:           p.part("plane").With("workspace", w.Key()),
			Dial: func(ctx context.Context, nw, address string) (net.Conn, error) {
				return p.networks.Dial(ctx, id, nw, address)
			},
		})}, nil
}

// planeUser is the host's user that a workspace's plane runs as, and nothing else
// does: below those of the workspaces' machines, above those of people and packages.
func planeUser(w *resource.Workspace) int { return 0x0800_0000 + int(w.Status.VNI) }

// planeGroups is the control group that those of all planes are in.
const planeGroups = "planes"

func planeGroup(id string) string { return planeGroups + "/" + id }

// planeTraces are what planes make on a host, with their folders in dir.
func planeTraces(dir string) inventory.Traces {
	return inventory.Traces{
		Folders: []inventory.OwnedFolder{{Dir: dir, Owner: inventory.Workspace}},
		Groups:  map[string]func(string) inventory.Owner{planeGroups: inventory.Workspace},
	}
}

// etcdUser is the name of a workspace's user in the platform's etcd.
func etcdUser(id string) string { return "plane-" + id }

func etcdPrefix(id string) string { return "/planes/" + id }

func (p *planes) etcdDatastore(ctx context.Context, id, dir string, user int) (plane.EtcdDatastore, *pki.Renewer, error) {
	d := plane.EtcdDatastore{Endpoints: []string{p.database.etcd.Endpoint()}, Prefix: etcdPrefix(id),
		CAFile: filepath.Join(dir, "etcd-ca.crt"), CertFile: filepath.Join(dir, "etcd.crt"), KeyFile: filepath.Join(dir, "etcd.key")}
	if err := p.database.etcd.EnsureUser(ctx, etcdUser(id), etcdPrefix(id)+"/"); err != nil {
		return d, nil, err
	}
	failpoint.Reach("workspace/create/etcd-user-made")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return d, nil, err
	}
	if err := atomicfile.WriteGroup(d.CAFile, user, p.database.ca.CertPEM()); err != nil {
		return d, nil, err
	}
	r := pki.Request{CommonName: etcdUser(id), Client: true}
	certificate := pki.NewRenewer(pki.RenewerConfig{Name: "etcd client of " + id, Issue: pki.IssueFrom(p.database.ca, r),
		Accept: pki.SameRequest(p.database.ca, r), CertFile: d.CertFile, KeyFile: d.KeyFile, GID: user, Log: p.part("plane")})
	return d, certificate, certificate.Ensure(ctx)
}

// Remove deletes what a plane left: its control group, its folder and its keys
// in etcd.
func (p *planes) Remove(ctx context.Context, id string) error {
	if err := p.database.etcd.RemoveUser(ctx, etcdUser(id), etcdPrefix(id)+"/"); err != nil {
		return err
	}
	failpoint.Reach("workspace/delete/etcd-user-removed")
	if err := cgroup.Remove(planeGroup(id)); err != nil {
		return err
	}
	return os.RemoveAll(p.cfg.Paths.Plane(id))
}

// List returns the ids of planes that have a folder here.
func (p *planes) List() ([]string, error) {
	entries, err := os.ReadDir(p.cfg.Paths.Planes())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, err
}

// runningPlane is a plane with the listener for the OIDC documents beside it.
type runningPlane struct {
	*plane.Plane
	planes      *planes
	id          string
	workspace   string       // key
	uid         string       // of the workspace
	user        int          // that the plane runs as
	certificate *pki.Renewer // for its etcd; nil with kine
}

// Run opens the listener, then runs the plane.
func (r *runningPlane) Run(ctx context.Context, ready func(), died func(error)) error {
	r.planes.mu.Lock()
	r.planes.running[r.id] = r
	r.planes.mu.Unlock()
	defer func() {
		r.planes.mu.Lock()
		delete(r.planes.running, r.id)
		r.planes.mu.Unlock()
	}()
	ns, err := netns.Open(filepath.Base(network.NamespacePath(r.id)))
	if err != nil {
		return err
	}
	defer ns.Close()
	ln, err := ns.Listen("tcp", "127.0.0.1:"+issuerPort)
	if err != nil {
		return fmt.Errorf("OIDC documents: %w", err)
	}
	srv := &http.Server{
		Handler:           r.planes.oidc,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: r.planes.tls.GetCertificate},
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(ln, "", "") }()
	defer func() { _ = srv.Close(); <-served }()
	volumes, err := r.listen()
	if err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	sctx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	stopped := make(chan struct{})
	go func() { r.serveVolumes(sctx, volumes); close(stopped) }()
	defer func() { stopServing(); <-stopped }()
	if r.certificate != nil {
		ctx, stop := context.WithCancel(ctx)
		renewed := make(chan error, 1)
		go func() { renewed <- r.certificate.Run(ctx, func() {}) }()
		defer func() { stop(); <-renewed }()
	}
	return r.Plane.Run(ctx, ready, died)
}

// serveVolumes answers what the plane asks about volumes until ctx is done. The plane goes on
// when that fails, and finds the next socket by itself.
func (r *runningPlane) serveVolumes(ctx context.Context, ln net.Listener) {
	const most = time.Minute
	err := r.planes.storage.Serve(ctx, r.workspace, r.uid, ln)
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, most) {
		r.planes.part("plane").Warn("the plane can't ask about volumes; opening its socket anew",
			"workspace", r.workspace, "after", wait, "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if ln, err = r.listen(); err == nil {
			err = r.planes.storage.Serve(ctx, r.workspace, r.uid, ln)
		}
	}
}

// listen opens the socket by which the plane asks about volumes. It is in a folder that
// the plane can't write to, so nobody puts another there; who asks is known by the socket.
func (r *runningPlane) listen() (net.Listener, error) {
	file := storageSocket(r.planes.cfg.Paths.Plane(r.id))
	if err := cmp.Or(os.MkdirAll(filepath.Dir(file), 0o700), os.RemoveAll(file)); err != nil {
		return nil, err
	}
	ln, err := net.Listen("unix", file)
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(os.Chown(file, 0, r.user), os.Chmod(file, 0o660)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

func storageSocket(dir string) string { return filepath.Join(dir, "storage.sock") }

var _ workspace.Plane = (*runningPlane)(nil)

// check looks whether the planes of this server are well.
func (p *planes) check(context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	running := map[string]bool{}
	for _, r := range p.running {
		object := "workspace " + r.workspace
		running[object] = true
		used, limit, err := r.Room()
		if err == nil && used > limit/10*9 {
			err = fmt.Errorf("%d of %d MiB", used>>20, limit>>20)
		}
		p.problems.Update(plane.Full, object, err)

		at, err := r.Died()
		if r.Restarts() < 2 || time.Since(at) > 4*healthEvery {
			err = nil // once is no pattern, and this one runs again
		}
		dies, damaged := err, error(nil)
		if errors.Is(err, plane.ErrDamaged) {
			dies, damaged = nil, err
		}
		p.problems.Update(plane.Dies, object, dies)
		p.problems.Update(plane.Damaged, object, damaged)
	}
	for _, of := range []problem.Problem{plane.Full, plane.Dies, plane.Damaged} {
		p.problems.ClearOthers(of, running)
	}
}
