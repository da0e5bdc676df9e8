package linklocal

import (
	"log/slog"
	"net/http"
	"net/http/httputil"

	"github.com/multipaas/multipaas/modules/wire"
)

// pull takes what a machine asks for to the platform's registry, with the node's
// certificate and the name of the workspace that asks. The query parameter ns is
// the host that the machine was asked for.
func (e *Endpoints) pull(workspace string, log *slog.Logger) http.Handler {
	return &httputil.ReverseProxy{
		Transport: e.cfg.Transport,
		ErrorLog:  slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		Rewrite: func(r *httputil.ProxyRequest) {
			registry := e.state.Load().Registry
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "https", registry, registry
			// Nothing a machine says about itself counts.
			r.Out.Header.Del("Authorization")
			r.Out.Header.Set(wire.WorkspaceHeader, workspace)
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			log.Warn("pull from the platform's registry", "path", r.URL.Path, "err", err)
			registryError(w, http.StatusServiceUnavailable, "UNAVAILABLE", "the platform's registry can't be reached from this node now")
		},
	}
}
