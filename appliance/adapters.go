package appliance

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/go-jose/go-jose/v4"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/appliance/crowd"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/apps"
	"github.com/multipaas/multipaas/modules/balancer"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/modules/workspace"
)

// The adapters between modules, which know each other only by the interfaces
// they declare.

// serverNetworks is the server's side of the networks for the controller.
type serverNetworks struct {
	*network.Network
	planes *planes
}

// Dial connects from inside a workspace's network.
func (n *serverNetworks) Dial(ctx context.Context, id, nw, address string) (net.Conn, error) {
	return n.planes.dial(ctx, id, nw, address)
}

// joinTokens redeems for the hub.
type joinTokens struct{ identity *identity.Identity }

func (t joinTokens) Redeem(ctx context.Context, token, name, source string) error {
	_, err := t.identity.RedeemJoinToken(ctx, token, name, source)
	return err
}

// planeDialer reaches planes for their router.
type planeDialer struct{ *workspace.Controller }

func (p planeDialer) DialPlane(ctx context.Context, serverName string) (net.Conn, error) {
	conn, err := p.Controller.DialPlane(ctx, serverName)
	if errors.Is(err, workspace.ErrUnknownPlane) {
		err = fmt.Errorf("%w: %w", balancer.ErrUnknownPlane, err)
	}
	return conn, err
}

// backends reaches pods for the balancer.
type backends struct{ controller *workspace.Controller }

func (b backends) Client(key string) (kubernetes.Interface, error) {
	return b.controller.Client(context.Background(), key)
}

func (b backends) Dial(key string) (balancer.DialFunc, error) {
	dial, err := b.controller.Dialer(key)
	return dial, err
}

// signer signs the balancer's certificates with the platform's authority.
type signer struct{ ca *pki.CA }

func (s signer) Sign(_ context.Context, csrPEM []byte, hosts []string) ([]byte, error) {
	return s.ca.Sign(csrPEM, pki.Request{CommonName: hosts[0], Hosts: hosts, Server: true})
}

// apiWorkspaces reaches clusters for the API.
type apiWorkspaces struct {
	*workspace.Controller
	keys *store.Cache[*resource.WorkspaceKeys]
}

func (w apiWorkspaces) Access(_ context.Context, ws *resource.Workspace) (resource.KubeAccess, error) {
	keys, ok := w.keys.Get(ws.Key())
	if !ok {
		return resource.KubeAccess{}, api.ErrNotReady
	}
	return w.Controller.Access(ws, keys.CACert), nil
}

func (w apiWorkspaces) Namespaces(ctx context.Context, key string) ([]resource.Namespace, error) {
	list, err := w.Controller.Namespaces(ctx, key)
	return list, apiError(err)
}

func (w apiWorkspaces) CreateNamespace(ctx context.Context, key, name string) error {
	return apiError(w.Controller.CreateNamespace(ctx, key, name))
}

func (w apiWorkspaces) DeleteNamespace(ctx context.Context, key, name string) error {
	return apiError(w.Controller.DeleteNamespace(ctx, key, name))
}

func (w apiWorkspaces) ClusterNodes(ctx context.Context, key string) ([]resource.ClusterNode, error) {
	list, err := w.Controller.ClusterNodes(ctx, key)
	return list, apiError(err)
}

// apiError says the same in the API's words.
func apiError(err error) error {
	switch {
	case errors.Is(err, workspace.ErrNotReady):
		return fmt.Errorf("%w: %w", api.ErrNotReady, err)
	case errors.Is(err, workspace.ErrNoNamespace):
		return fmt.Errorf("%w: %w", store.ErrNotFound, err)
	}
	return err
}

// images answers for the registry and for the images of the payload.
type images struct {
	registry  *registry.Registry
	names     map[string]bool // of the registry, host:port
	upstreams map[string]bool // that the operator has opened
	payload   *base
}

// List returns the repositories of an organization.
func (i *images) List(ctx context.Context, account, organization string) ([]resource.Image, error) {
	return i.registry.List(ctx, account, organization)
}

// Delete removes an image; without a tag or digest, all of it.
func (i *images) Delete(ctx context.Context, name, reference string) error {
	var err error
	if reference == "" {
		err = i.registry.RemoveRepository(ctx, name)
	} else {
		err = i.registry.Delete(ctx, name, reference)
	}
	if errors.Is(err, registry.ErrNotFound) {
		return fmt.Errorf("%w: %w", store.ErrNotFound, err)
	}
	return err
}

// RemoveAll removes what an organization has left in the registry.
func (i *images) RemoveAll(ctx context.Context, account, organization string) error {
	return i.registry.RemoveOrganization(ctx, account, organization)
}

// Resolve returns the digest of an image that an app is made of.
func (i *images) Resolve(ctx context.Context, key, ref string) (string, error) {
	host, rest, _ := strings.Cut(ref, "/")
	repository, tag := rest, ""
	if r, d, ok := strings.Cut(rest, "@"); ok {
		repository, tag = r, d
	} else if j := strings.LastIndex(rest, ":"); j >= 0 {
		repository, tag = rest[:j], rest[j+1:]
	}
	var digest string
	var err error
	none := &apps.NoImageError{Ref: ref}
	switch {
	case host == wire.PayloadRegistry:
		digest, err = i.payload.payloadImage(repository, tag)
	case i.names[host]:
		digest, err = i.registry.Resolve(ctx, repository, tag)
		if errors.Is(err, registry.ErrNotFound) {
			none.Have, err = i.tags(ctx, key)
			return "", cmp.Or(err, error(none))
		}
	case i.upstreams[host]:
		return "", nil // known when a machine pulls it
	default:
		return "", none
	}
	if errors.Is(err, registry.ErrNotFound) {
		return "", none
	}
	return digest, err
}

// tags lists what the organization of a workspace has pushed.
func (i *images) tags(ctx context.Context, workspace string) ([]string, error) {
	parts := strings.Split(workspace, "/")
	list, err := i.registry.List(ctx, parts[0], parts[1])
	var out []string
	for _, image := range list {
		for _, tag := range image.Tags {
			out = append(out, strings.TrimPrefix(image.Name, parts[0]+"/"+parts[1]+"/")+":"+tag)
		}
	}
	return out, err
}

// payloadImage returns the digest of an image of the payload.
func (b *base) payloadImage(name, tag string) (string, error) {
	if tag != "1" || strings.Contains(name, "/") || name == "machine" {
		return "", registry.ErrNotFound
	}
	f, err := b.payload.OpenFile("images/" + name + "/index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return "", registry.ErrNotFound
	} else if err != nil {
		return "", err
	}
	defer f.Close()
	index, err := v1.ParseIndexManifest(io.LimitReader(f, 1<<20))
	if err != nil {
		return "", fmt.Errorf("payload image %s: %w", name, err)
	}
	if len(index.Manifests) == 0 {
		return "", registry.ErrNotFound
	}
	return index.Manifests[0].Digest.String(), nil
}

// makeRegistry makes the registry with those who decide about it.
func (s *server) makeRegistry() (*registry.Registry, error) {
	var upstreams []registry.Upstream
	for _, u := range s.cfg.RegistryUpstreams {
		up, err := u.Open()
		if err != nil {
			return nil, err
		}
		upstreams = append(upstreams, up)
	}
	return registry.New(registry.Config{Addr: s.cfg.Listen.Registry, Dir: s.cfg.Paths.Registry(), TLS: s.tls(),
		Names: s.registryNames(), Upstreams: upstreams, Log: s.part("registry"),
		Nodes: s.hub, Organizations: organizations{s.organizations}, Limit: s.imageLimit,
		Tokens: registry.Tokens{Issue: http.HandlerFunc(s.identity.ServeRegistryToken), Service: s.registryName(), Issuer: s.identity.RegistryIssuer(),
			Keys: func(ctx context.Context) (*jose.JSONWebKeySet, error) {
				set, err := s.identity.PublicKeys(ctx)
				return &set, err
			}}})
}

// organizations answers for the registry.
type organizations struct {
	cache *store.Cache[*resource.Organization]
}

func (o organizations) Exists(account, organization string) bool {
	org, ok := o.cache.Get(account + "/" + organization)
	return ok && !org.Deleting()
}

// imageLimit is how many bytes of images an account may have.
func (s *server) imageLimit(account string) int64 {
	if a, ok := s.accounts.Get(account); ok {
		return a.Spec.Limits.Or(s.cfg.Limits).ImageBytes
	}
	return s.cfg.Limits.ImageBytes
}

// makeAPI makes the API.
func (s *server) makeAPI() *api.API {
	return api.New(api.Config{Store: s.store, Identity: s.identity, Workspaces: apiWorkspaces{s.controller, s.keys},
		Images: s.images(), Tasks: s.tasks, Datastore: s.cfg.Datastore, Limits: s.cfg.Limits,
		Info: resource.Info{Version: s.version, Domain: s.cfg.Domain, Registry: s.registryName(), KubernetesAPI: s.reach(s.cfg.Listen.Kubernetes),
			KubernetesVersions: s.versions, Registration: s.cfg.Registration, CA: string(s.ca.CertPEM())},
		JoinCommand: func(token string) string {
			return "MULTIPAAS_JOIN_TOKEN=" + token + " multipaas node join " + s.url()
		},
		Agent: s.hub, Livez: s.status.Live(), Readyz: s.status.ReadyHandler(), Metrics: s.status.Handler(), Registerer: s.metrics,
		Log: s.part("api")})
}

func (s *server) images() *images {
	names := map[string]bool{}
	for _, n := range s.registryNames() {
		names[n] = true
	}
	upstreams := map[string]bool{}
	for _, u := range s.cfg.RegistryUpstreams {
		upstreams[u.Name] = true
	}
	return &images{registry: s.registry, names: names, upstreams: upstreams, payload: s.base}
}

// serveAPI serves /v1, the agents and the health of this server.
func (s *server) serveAPI(ctx context.Context, ready func()) error {
	ln, err := net.Listen("tcp", s.cfg.Listen.API)
	if err != nil {
		return err
	}
	defer ln.Close()
	// modules/balancer has the sum. An agent has two connections, a client one.
	all := crowd.Files() / 16
	ln = crowd.Listener(ln, crowd.New[netip.Addr](all/4, all))
	config := s.tls()
	config.NextProtos = []string{"h2", "http/1.1"}
	ready()
	return s.api.Serve(ctx, tls.NewListener(ln, config))
}

// issuerDocuments is all that a plane's own listener serves.
func (s *server) issuerDocuments() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+identity.DiscoveryPath, s.identity.ServeDiscovery)
	mux.HandleFunc("GET "+identity.KeysPath, s.identity.ServeKeys)
	return mux
}

var _ registry.Nodes = (*node.Hub)(nil)
