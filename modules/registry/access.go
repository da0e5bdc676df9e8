package registry

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v2 "github.com/distribution/distribution/v3/registry/api/v2"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/wire"
)

// principal is who asks: exactly one of the two is set.
type principal struct {
	token *claims
	node  string // "ACCOUNT/ORGANIZATION", whose images this node may pull now
}

// allows says whether the principal may do that to a repository of this registry.
func (p principal) allows(repository, action string) bool {
	if p.token != nil {
		return p.token.allow("repository", repository, action)
	}
	return action == pull && strings.HasPrefix(repository, p.node+"/")
}

// ServeHTTP decides who asks for what and whether he may have it. Nothing else
// reaches the storage.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if req.URL.Path == TokenPath {
		if nodeCertificate(req) != nil {
			// What comes by a node comes from its pods, which would guess passwords as it.
			refuse(http.StatusForbidden, "DENIED", "machines have no tokens: they pull without one").serve(w, req)
			return
		}
		// The upload of a layer may take hours, the form of a login may not.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(10 * time.Second))
		r.cfg.Tokens.Issue.ServeHTTP(w, req)
		return
	}
	if err := r.serve(w, req); err != nil {
		no, ok := errors.AsType[*refusal](err)
		if !ok {
			r.cfg.Log.Error("request", "method", req.Method, "path", req.URL.Path, "err", err)
			no = refuse(http.StatusInternalServerError, "UNKNOWN", "internal error of the registry")
		}
		r.cfg.Log.Debug("refused", "method", req.Method, "path", req.URL.Path, "status", no.Status, "reason", no.Message)
		no.serve(w, req)
	}
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) error {
	t, ok := r.parse(req)
	if !ok {
		return unknown(req)
	}
	who, err := r.authenticate(w, req, t)
	if err != nil {
		return err
	}
	if ns := req.URL.Query().Get("ns"); ns != "" && !r.isOwn(ns) {
		return r.serveUpstream(w, req, t, who, ns)
	}
	switch t.route {
	case v2.RouteNameBase:
	case v2.RouteNameCatalog:
		if who.token == nil || !who.token.allow("registry", "catalog", "*") {
			return refuse(http.StatusForbidden, "DENIED",
				"only a system administrator can list all repositories; list an organization's with `mp images list`")
		}
	default:
		if err := r.authorize(w, req, t, who); err != nil {
			return err
		}
	}

	if t.action != pull {
		done, err := r.admitPush(req, t)
		if err != nil {
			return err
		}
		defer done()
		w = &pushAnswer{ResponseWriter: w, method: req.Method, route: t.route}
	}
	switch t.route {
	case v2.RouteNameManifest:
		return r.serveManifest(w, req, t)
	case routeReferrers:
		return r.serveReferrers(w, req, t)
	case v2.RouteNameBlob:
		return r.serveBlob(w, req, t, who)
	case v2.RouteNameBlobUpload, v2.RouteNameBlobUploadChunk:
		return r.serveUpload(w.(*pushAnswer), req, t) //nolint:forcetypeassert // these routes write
	}
	r.app.ServeHTTP(w, req)
	return nil
}

// admitPush lets a request in that writes, as one of its account's, and bounds what it brings.
func (r *Registry) admitPush(req *http.Request, t target) (done func(), err error) {
	account, organization, err := splitName(t.repository)
	if err != nil {
		return nil, err
	}
	p, err := r.push(req.Context(), account)
	if err != nil {
		return nil, err
	}
	end := p.end
	var grow func(int)
	if t.route == v2.RouteNameBlobUploadChunk {
		u, err := r.usageOf(account)
		if err != nil {
			end()
			return nil, err
		}
		var over func()
		grow, over = u.carry(t.reference, organization, filepath.Join(r.repositoryDir(t.repository), "_uploads", t.reference))
		end = func() { over(); p.end() }
	}
	if req.Method == http.MethodDelete {
		p.gate()
		return func() { end(); r.deleted(account) }, nil
	}
	body, err := admit(req, r.cfg.MaxBlobBytes, r.disk.check, r.roomOf(account))
	if err != nil {
		end()
		return nil, err
	}
	if req.ContentLength == 0 || t.route == v2.RouteNameBlobUpload && req.URL.Query().Get("digest") == "" {
		p.gate()
	}
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &pushBody{guardedBody: body, p: p, grow: grow}
	}
	return end, nil
}

// pushAnswer is the answer to a step of a push, which has been done when the
// answer begins.
type pushAnswer struct {
	http.ResponseWriter
	method, route string
	status        int
}

func (a *pushAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *pushAnswer) WriteHeader(status int) {
	a.status = status
	if status < 300 {
		switch {
		case a.route == v2.RouteNameBlobUpload:
			failpoint.Reach("image/push/upload-begun")
		case a.route == v2.RouteNameBlobUploadChunk && a.method == http.MethodPatch:
			failpoint.Reach("image/push/blob-received")
		case a.route == v2.RouteNameBlobUploadChunk && a.method == http.MethodPut:
			failpoint.Reach("image/push/blob-committed")
		case a.route == v2.RouteNameManifest && a.method == http.MethodPut:
			failpoint.Reach("image/push/manifest-put")
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

// authenticate finds out who asks.
func (r *Registry) authenticate(w http.ResponseWriter, req *http.Request, t target) (principal, error) {
	if cert := nodeCertificate(req); cert != nil && req.Header.Get("Authorization") == "" {
		node, workspace := cert.Subject.CommonName, req.Header.Get(wire.WorkspaceHeader)
		parts := strings.Split(workspace, "/")
		if len(parts) != 3 || !r.cfg.NodeRuns(cert, workspace) {
			return principal{}, refuse(http.StatusForbidden, "DENIED", "node %s runs no machine of workspace %q", node, workspace)
		}
		return principal{node: parts[0] + "/" + parts[1]}, nil
	}
	token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if !ok {
		r.challenge(w, t, req, "")
		return principal{}, refuse(http.StatusUnauthorized, "UNAUTHORIZED",
			"log in first: use your user name and password of the platform")
	}
	c, err := r.cfg.Tokens.verify(req.Context(), token)
	if err != nil {
		r.cfg.Log.Info("token refused", "remote", req.RemoteAddr, "err", err)
		r.challenge(w, t, req, "invalid_token")
		return principal{}, refuse(http.StatusUnauthorized, "UNAUTHORIZED", "the token is not valid, or no longer: log in again")
	}
	return principal{token: c}, nil
}

// nodeCertificate is the verified client certificate of a node, or nil.
func nodeCertificate(req *http.Request) *x509.Certificate {
	state := req.TLS
	if state == nil || len(state.VerifiedChains) == 0 ||
		!slices.Contains(state.VerifiedChains[0][0].Subject.Organization, wire.NodesOrganization) {
		return nil
	}
	return state.VerifiedChains[0][0]
}

// authorize decides on a request to a repository of this registry, and takes out
// of the request what its principal may not ask for.
func (r *Registry) authorize(w http.ResponseWriter, req *http.Request, t target, who principal) error {
	account, organization, err := splitName(t.repository)
	if err != nil {
		return err
	}
	if !who.allows(t.repository, t.action) {
		if who.token == nil {
			return refuse(http.StatusForbidden, "DENIED", "a machine may only pull, and only images of its own organization %s", who.node)
		}
		r.challenge(w, t, req, "insufficient_scope")
		return refuse(http.StatusUnauthorized, "DENIED", "you may not %s %s, or there is no such organization", t.action, t.repository)
	}
	if t.action != push {
		return nil
	}
	if !r.cfg.HasOrganization(account, organization) {
		return refuse(http.StatusNotFound, "NAME_UNKNOWN",
			"there is no organization %s/%s: create it first with `mp org create`", account, organization)
	}
	if req.Method == http.MethodPost {
		return r.checkMount(req, who)
	}
	return nil
}

// checkMount lets a blob be mounted from another repository only if the
// principal may pull there. If not, the wish is taken out, which turns the
// request into a plain upload: the client can't tell whether the blob exists.
func (r *Registry) checkMount(req *http.Request, who principal) error {
	// The handler behind reads "from" and "mount" also from a form in the
	// body. No client sends one.
	content := req.Header.Get("Content-Type")
	if strings.HasPrefix(content, "application/x-www-form-urlencoded") || strings.HasPrefix(content, "multipart/") {
		return refuse(http.StatusUnsupportedMediaType, "UNSUPPORTED", "a form can't be uploaded")
	}
	q := req.URL.Query() // drops what doesn't parse
	if from := q.Get("from"); from != "" {
		_, _, err := splitName(from)
		if err != nil || len(q["from"]) != 1 || !who.allows(from, pull) {
			q.Del("from")
			q.Del("mount")
		}
	}
	req.URL.RawQuery = q.Encode()
	req.Form, req.PostForm = nil, nil
	return nil
}

// challenge tells the client where to get a token, and for what.
func (r *Registry) challenge(w http.ResponseWriter, t target, req *http.Request, problem string) {
	// By the name the client used: that is the one whose certificate it believes.
	c := fmt.Sprintf("Bearer realm=%q,service=%q", "https://"+req.Host+TokenPath, r.cfg.Tokens.Service)
	switch {
	case t.repository != "":
		actions := t.action
		if t.action == push {
			actions = "pull,push"
		}
		c += fmt.Sprintf(",scope=%q", "repository:"+t.repository+":"+actions)
		// Ask for the source of a mount at once, or the client pushes it anew.
		if from := req.URL.Query().Get("from"); from != "" && req.Method == http.MethodPost {
			if _, _, err := splitName(from); err == nil {
				c = strings.TrimSuffix(c, `"`) + " repository:" + from + `:pull"`
			}
		}
	case t.route == v2.RouteNameCatalog:
		c += `,scope="registry:catalog:*"`
	}
	if problem != "" {
		c += fmt.Sprintf(",error=%q", problem)
	}
	w.Header().Set("WWW-Authenticate", c)
}

// serveUpstream answers from the pull-through cache. Only machines use it.
func (r *Registry) serveUpstream(w http.ResponseWriter, req *http.Request, t target, who principal, ns string) error {
	u := r.upstreams[strings.ToLower(ns)]
	if u == nil {
		return refuse(http.StatusNotFound, "NAME_UNKNOWN",
			"images of %s are not to be had here: push the image to this platform's registry, "+
				"or ask the operator to open that registry as an upstream", ns)
	}
	if who.token != nil {
		return refuse(http.StatusForbidden, "DENIED", "only machines pull from %s through this registry", ns)
	}
	if t.action != pull {
		return refuse(http.StatusMethodNotAllowed, "UNSUPPORTED", "%s can only be pulled from", ns)
	}
	account := accountOf(who.node)
	if r.cfg.AccountUID != nil {
		account = r.cfg.AccountUID(account)
	}
	return u.serve(w, req, t, account)
}
