package appliance

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/storage"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/task"
	"github.com/multipaas/multipaas/modules/workspace"
)

// addAPI adds what serves /v1, the agents and the health of this server.
func (s *server) addAPI(
	certificate part[*pki.Renewer],
	from part[*store.Store],
	id part[*identity.Identity],
	controller part[*workspace.Controller],
	volumes part[*storage.Controller],
	images part[*registry.Registry],
	tasks part[*task.Tasks],
	hub part[*node.Hub],
) {
	n := &needs{}
	a := api.New(api.Config{
		Store:      from.of(n),
		Identity:   id.of(n),
		Workspaces: controller.of(n),
		Volumes:    volumes.of(n),
		Claims:     storage.Claims{Clusters: controller.of(n)},
		Images:     images.of(n),
		Tasks:      tasks.of(n),
		Datastore:  s.cfg.Datastore,
		Limits:     s.cfg.Limits,
		Info: resource.Info{
			Version:            s.version,
			Domain:             s.cfg.Domain,
			Registry:           s.registryName(),
			KubernetesAPI:      s.reach(s.cfg.Listen.Kubernetes),
			KubernetesVersions: s.versions,
			Registration:       s.cfg.Registration,
			CA:                 string(s.ca.CertPEM()),
		},
		NodeAddress: hub.of(n).CheckAddress,
		JoinCommand: func(token string) string {
			return "MULTIPAAS_JOIN_TOKEN=" + token + " multipaas node join " + s.url()
		},
		Files:      hub.of(n),
		Agent:      hub.of(n),
		Livez:      s.status.Live(),
		Readyz:     s.status.ReadyHandler(),
		Metrics:    s.status.Handler(),
		Registerer: s.metrics,
		Log:        s.part("api"),
	})
	config := s.tls(certificate.of(n))
	config.NextProtos = []string{"h2", "http/1.1"}
	add(s.graph, "api", n, lifecycle.Func(func(ctx context.Context, ready func()) error {
		ln, err := net.Listen("tcp", s.cfg.Listen.API)
		if err != nil {
			return err
		}
		defer ln.Close()
		// An agent has two connections, a client one.
		ln = limiter.Listener(ln, 16)
		ready()
		return a.Serve(ctx, tls.NewListener(ln, config))
	}))
}
