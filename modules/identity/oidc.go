package identity

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
)

const (
	// KubeTokenLife is how long a token for a workspace's API is valid. It can't
	// be taken back, so it is short; clients get the next one by themselves.
	KubeTokenLife = 10 * time.Minute
	// clockSkew is by how much the clocks of servers may differ.
	clockSkew = 30 * time.Second

	// DiscoveryPath and KeysPath are where the OIDC documents are.
	DiscoveryPath = "/.well-known/openid-configuration"
	KeysPath      = "/v1/oidc/keys"
)

// The groups in a token for a workspace's API, which planes bind to roles.
const (
	GroupAdmin     = "multipaas:org-admin"
	GroupDeveloper = "multipaas:org-developer"
)

// kubeClaims are what a workspace's API server reads beyond the standard ones.
type kubeClaims struct {
	Email  string   `json:"email"`
	Groups []string `json:"groups"`
}

// kubeUserPrefix is what planes put before the address in a token (embed/plane).
const kubeUserPrefix = "multipaas:"

// KubeUser is who p is in the cluster of a workspace, with a token or without. p's
// memberships must have been loaded, and p be one of the organization's.
func (*Identity) KubeUser(p *access.Principal, ws *resource.Workspace) resource.KubeUser {
	group := GroupDeveloper
	if p.RoleIn(ws.Account, ws.Organization) >= access.Admin {
		group = GroupAdmin
	}
	return resource.KubeUser{Name: kubeUserPrefix + p.User, Groups: []string{group}}
}

// IssueKubeToken signs a token for the API of one workspace: its audience is the
// workspace's UID, so that it is worth nothing at another one, not even at one of
// the same name made later. p's memberships must have been loaded.
func (id *Identity) IssueKubeToken(ctx context.Context, p *access.Principal, ws *resource.Workspace) (resource.KubeToken, error) {
	if err := access.Authorize(p, "kube.credential", ws.Account, ws.Organization); err != nil {
		return resource.KubeToken{}, err
	}
	claims := kubeClaims{Email: p.User, Groups: id.KubeUser(p, ws).Groups}
	token, now, err := id.sign(ctx, id.cfg.Issuer, p.User, ws.UID, KubeTokenLife, claims)
	if err != nil {
		return resource.KubeToken{}, err
	}
	return resource.KubeToken{Token: token, ExpiresAt: now.Add(KubeTokenLife).Truncate(time.Second)}, nil
}

// ServeDiscovery answers with the OIDC discovery document. The keys are where
// the document is: an API server asks both through a listener of its own, which
// the name in the issuer does not lead to. There is no authorization endpoint:
// tokens come from the API only.
func (id *Identity) ServeDiscovery(w http.ResponseWriter, r *http.Request) {
	answer(w, map[string]any{
		"issuer":                                id.cfg.Issuer,
		"jwks_uri":                              "https://" + cmp.Or(r.Host, "localhost") + KeysPath,
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(jose.ES256)},
		"claims_supported":                      []string{"iss", "sub", "aud", "exp", "nbf", "iat", "email", "groups"},
	})
}

// ServeKeys answers with the public keys, as a JWK set.
func (id *Identity) ServeKeys(w http.ResponseWriter, r *http.Request) {
	set, err := id.PublicKeys(r.Context())
	if err != nil {
		id.log.Error("public keys", "err", err)
		http.Error(w, "the keys can't be read now", http.StatusServiceUnavailable)
		return
	}
	answer(w, set)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // whoever asked has gone, else
}
