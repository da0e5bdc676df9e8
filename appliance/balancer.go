package appliance

import (
	"context"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/balancer"
	"github.com/multipaas/multipaas/modules/workspace"
)

// lateClusters are the workspaces' clusters for the balancer, which is made
// before what knows them: it asks only when it runs.
type lateClusters struct{ balancer.Workspaces }

func (s *server) addBalancer(d *database, clusters *lateClusters) part[*balancer.Balancer] {
	return add(s.graph, "balancer", &needs{}, balancer.New(balancer.Config{
		HTTPAddr:   s.cfg.Listen.HTTP,
		HTTPSAddr:  s.cfg.Listen.HTTPS,
		Dir:        s.cfg.Paths.Balancer(),
		Domain:     s.cfg.Domain,
		Store:      d.store,
		Etcd:       d.client,
		Signer:     signer{s.ca},
		Workspaces: clusters,
		Pods:       s.cfg.Plan.Pods,
		Log:        s.part("balancer"),
		Registerer: s.metrics,
	}))
}

// signer signs the balancer's certificates with the platform's authority.
type signer struct{ ca *pki.CA }

func (s signer) Sign(_ context.Context, csrPEM []byte, hosts []string) ([]byte, error) {
	return s.ca.Sign(csrPEM, pki.Request{CommonName: hosts[0], Hosts: hosts, Server: true})
}

func (s *server) addPlaneRouter(controller part[*workspace.Controller]) {
	n := &needs{}
	add(s.graph, "plane-router", n, balancer.NewPlaneRouter(balancer.PlaneRouterConfig{
		Addr:   s.cfg.Listen.Kubernetes,
		Planes: controller.of(n),
		Log:    s.part("plane-router"),
	}))
}
