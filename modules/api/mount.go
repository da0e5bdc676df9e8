package api

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/wire"
)

// mount adds the endpoints that are not in the OpenAPI document.
func (a *API) mount() {
	handle := func(op access.Operation, pattern string, h http.Handler) {
		rule, ok := access.Lookup(op)
		if !ok || rule.Form != access.Mounted {
			panic("endpoint " + string(op) + " is not in the authorization table")
		}
		if rule.Allow&access.Anonymous != 0 {
			h = a.only(op, h, func(*http.Request) (*access.Principal, error) { return nil, nil })
		}
		a.mux.Handle(pattern, h)
	}
	document, err := json.Marshal(a.huma.OpenAPI())
	if err != nil {
		panic(fmt.Sprintf("OpenAPI document: %v", err))
	}
	handle("openapi", "GET /v1/openapi.json", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(document) // whoever asked has gone, else
	}))
	handle("oidc.discovery", "GET /.well-known/openid-configuration", http.HandlerFunc(a.id.ServeDiscovery))
	handle("oidc.keys", "GET /v1/oidc/keys", http.HandlerFunc(a.id.ServeKeys))
	if a.cfg.Agent != nil {
		handle(access.OpJoin, "POST "+wire.JoinPath, a.cfg.Agent)
		// Whether the node is one of ours still is for the handler to find out.
		handle(access.OpAgent, wire.AgentPath, a.only(access.OpAgent, a.cfg.Agent, func(r *http.Request) (*access.Principal, error) {
			return access.NodeOf(r.TLS)
		}))
	}
	if a.cfg.Metrics != nil {
		// They name what the platform is busy with.
		handle(access.OpMetrics, "GET /metrics", a.only(access.OpMetrics, a.cfg.Metrics, a.principal))
	}
	for pattern, h := range map[string]http.Handler{"GET /livez": a.cfg.Livez, "GET /readyz": a.cfg.Readyz} {
		if h != nil {
			a.mux.Handle(pattern, h)
		}
	}
}

// only lets pass those who may do op, a right without a place.
func (a *API) only(op access.Operation, h http.Handler, principal func(*http.Request) (*access.Principal, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := principal(r)
		requestOf(r.Context()).principal = p
		leave, err := a.admitted(r, p, func() error {
			if err != nil {
				return err
			}
			return access.Authorize(p, op, "", "")
		})
		if err != nil {
			a.refuse(r.Context(), w, err)
			return
		}
		defer leave()
		h.ServeHTTP(w, r)
	})
}
