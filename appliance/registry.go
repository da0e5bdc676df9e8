package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"

	"github.com/go-jose/go-jose/v4"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// PayloadRegistry is the host in the references of images that every machine
// has from the payload, whatever network there is.
const PayloadRegistry = "multipaas.internal"

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

// addRegistry adds the registry with those who decide about it.
func (s *server) addRegistry(
	certificate part[*pki.Renewer],
	id part[*identity.Identity],
	hub part[*node.Hub],
	accounts cacheOf[*resource.Account],
	orgs cacheOf[*resource.Organization],
) (part[*registry.Registry], error) {
	var upstreams []registry.Upstream
	for _, u := range s.cfg.RegistryUpstreams {
		up, err := u.Open()
		if err != nil {
			return part[*registry.Registry]{}, err
		}
		upstreams = append(upstreams, up)
	}
	n := &needs{}
	users, byName, organizations := id.of(n), accounts.of(n), orgs.of(n)
	r, err := registry.New(registry.Config{
		Addr:      s.cfg.Listen.Registry,
		Dir:       s.cfg.Paths.Registry(),
		TLS:       s.tls(certificate.of(n)),
		Names:     s.registryNames(),
		Upstreams: upstreams,
		NodeRuns:  hub.of(n).Runs,
		HasOrganization: func(account, organization string) bool {
			o, ok := organizations.Get(account + "/" + organization)
			return ok && !o.Deleting()
		},
		AccountUID: func(account string) string {
			if a, ok := byName.Get(account); ok {
				return a.UID
			}
			return account // it goes, or has just come
		},
		Limit: func(account string) int64 { return s.limitsOf(byName, account).ImageBytes },
		Tokens: registry.Tokens{
			Issue:   http.HandlerFunc(users.ServeRegistryToken),
			Service: s.registryName(),
			Issuer:  users.RegistryIssuer(),
			Keys: func(ctx context.Context) (*jose.JSONWebKeySet, error) {
				set, err := users.PublicKeys(ctx)
				return &set, err
			},
		},
		Log: s.part("registry"),
	})
	if err != nil {
		return part[*registry.Registry]{}, err
	}
	return add(s.graph, "registry", n, r), nil
}

// payloadImage returns the digest of an image of the payload.
func (b *base) payloadImage(name, tag string) (string, error) {
	if tag != "1" || strings.Contains(name, "/") || name == "machine" || name == "storage" { // no pod runs these
		return "", store.ErrNotFound
	}
	f, err := b.payload.OpenFile("images/" + name + "/index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return "", store.ErrNotFound
	} else if err != nil {
		return "", err
	}
	defer f.Close()
	index, err := v1.ParseIndexManifest(io.LimitReader(f, 1<<20))
	if err != nil {
		return "", fmt.Errorf("payload image %s: %w", name, err)
	}
	if len(index.Manifests) == 0 {
		return "", store.ErrNotFound
	}
	return index.Manifests[0].Digest.String(), nil
}
