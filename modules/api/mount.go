package api

import (
	"net/http"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/wire"
)

// mount adds the endpoints that are not in the OpenAPI document.
func (a *API) mount() {
	handle := func(op access.Operation, pattern string, h http.Handler) {
		if h == nil {
			return
		}
		if rule, ok := access.Lookup(op); !ok || rule.Form != access.Mounted {
			panic("endpoint " + string(op) + " is not in the authorization table")
		}
		a.mux.Handle(pattern, h)
	}
	handle("openapi", "GET /v1/openapi.json", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(a.openAPI) // whoever asked has gone, else
	}))
	handle("oidc.discovery", "GET /.well-known/openid-configuration", http.HandlerFunc(a.id.ServeDiscovery))
	handle("oidc.keys", "GET /v1/oidc/keys", http.HandlerFunc(a.id.ServeKeys))
	if a.cfg.Agent != nil {
		handle(access.OpJoin, "POST "+wire.JoinPath, a.cfg.Agent)
		handle(access.OpAgent, wire.AgentPath, a.nodesOnly(a.cfg.Agent))
	}
	if a.cfg.Metrics != nil {
		handle(access.OpMetrics, "GET /metrics", a.sysadminsOnly(a.cfg.Metrics))
	}
	for pattern, h := range map[string]http.Handler{"GET /livez": a.cfg.Livez, "GET /readyz": a.cfg.Readyz} {
		if h != nil {
			a.mux.Handle(pattern, h)
		}
	}
}

// sysadminsOnly lets pass whose bearer token is a sysadmin's: metrics name what
// the platform is busy with.
func (a *API) sysadminsOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := a.principal(r.Context(), r)
		if err == nil {
			err = access.Authorize(p, access.OpMetrics, "", "")
		}
		if err != nil {
			writeProblem(w, a.problem(r.Context(), err))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// nodesOnly lets pass who came with the certificate of a node. Whether the node
// is one of ours still is for the handler to find out.
func (a *API) nodesOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := requestOf(r.Context())
		p, err := access.NodeOf(r.TLS)
		if err == nil {
			req.principal = p
			err = access.Authorize(p, access.OpAgent, "", "")
		}
		if err != nil {
			writeProblem(w, a.problem(r.Context(), err))
			return
		}
		h.ServeHTTP(w, r)
	})
}
