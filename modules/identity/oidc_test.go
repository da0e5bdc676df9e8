package identity

import (
	"crypto"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/distribution/distribution/v3/registry/auth/token"
	"github.com/go-jose/go-jose/v4"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// issuer is an identity behind a TLS server that is its issuer.
func issuer(t *testing.T) (*Identity, *clock, *httptest.Server) {
	t.Helper()
	c := newClock()
	mux := http.NewServeMux()
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	id := New(Config{Store: storetest.New(t), Issuer: server.URL, RegistryService: "mp.example:5000", Now: c.now})
	mux.HandleFunc(DiscoveryPath, id.ServeDiscovery)
	mux.HandleFunc(KeysPath, id.ServeKeys)
	mux.HandleFunc("/token", id.ServeRegistryToken)
	return id, c, server
}

func role(account, organization string, r resource.Role) *access.Principal {
	return &access.Principal{User: "ann@acme.example", Memberships: []resource.Membership{
		{Meta: resource.Meta{Name: "ann@acme.example"}, Account: account, Organization: organization, Role: r}}}
}

// TestKubeToken verifies tokens the way a Kubernetes API server does: from the
// discovery document.
func TestKubeToken(t *testing.T) {
	id, clock, server := issuer(t)
	ctx := oidc.ClientContext(t.Context(), server.Client())
	provider, err := oidc.NewProvider(ctx, server.URL)
	if err != nil {
		t.Fatal(err)
	}
	ws := &resource.Workspace{InOrganization: resource.InOrganization{Meta: resource.Meta{Name: "shop", UID: "uid-1"}, Account: "acme", Organization: "web"}}
	verifier := provider.VerifierContext(ctx, &oidc.Config{ClientID: "uid-1", SupportedSigningAlgs: []string{oidc.ES256}, Now: clock.now})

	for _, c := range []struct {
		who  *access.Principal
		want string
	}{
		{role("acme", "web", resource.RoleDeveloper), GroupDeveloper},
		{role("acme", "web", resource.RoleAdmin), GroupAdmin},
		{role("acme", "", resource.RoleOwner), GroupAdmin},
		{&access.Principal{User: "root@mp.example", Sysadmin: true}, GroupAdmin},
	} {
		got, err := id.IssueKubeToken(ctx, c.who, ws)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := verifier.Verify(ctx, got.Token)
		if err != nil {
			t.Fatal(err)
		}
		var claims kubeClaims
		if err := parsed.Claims(&claims); err != nil {
			t.Fatal(err)
		}
		if claims.Email != c.who.User || !slices.Equal(claims.Groups, []string{c.want}) || parsed.Subject != c.who.User {
			t.Errorf("got %+v, want group %s of %s", claims, c.want, c.who.User)
		}
		if life := got.ExpiresAt.Sub(clock.now()); life > KubeTokenLife || life < KubeTokenLife-5*time.Second {
			t.Errorf("it lives %v", life)
		}
		other := provider.VerifierContext(ctx, &oidc.Config{ClientID: "uid-2", SupportedSigningAlgs: []string{oidc.ES256}})
		if _, err := other.Verify(ctx, got.Token); err == nil {
			t.Error("another workspace takes the token")
		}
		if _, err := id.VerifyRegistryToken(ctx, got.Token); err == nil {
			t.Error("the registry takes a token of a workspace")
		}
	}
	if _, err := id.IssueKubeToken(ctx, role("acme", "other", resource.RoleAdmin), ws); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("an admin of another organization: got %v, want ErrNotFound", err)
	}
	if _, err := id.IssueKubeToken(ctx, nil, ws); !errors.Is(err, access.ErrUnauthenticated) {
		t.Errorf("nobody: got %v", err)
	}
}

func TestKeyRotation(t *testing.T) {
	id, clock, server := issuer(t)
	ctx := oidc.ClientContext(t.Context(), server.Client())
	provider, err := oidc.NewProvider(ctx, server.URL)
	if err != nil {
		t.Fatal(err)
	}
	ws := &resource.Workspace{InOrganization: resource.InOrganization{Meta: resource.Meta{Name: "shop", UID: "uid-1"}, Account: "acme", Organization: "web"}}
	verifier := provider.VerifierContext(ctx, &oidc.Config{ClientID: "uid-1", SupportedSigningAlgs: []string{oidc.ES256}, Now: clock.now})
	issue := func() (raw, key string) {
		t.Helper()
		got, err := id.IssueKubeToken(ctx, role("acme", "web", resource.RoleAdmin), ws)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifier.Verify(ctx, got.Token); err != nil {
			t.Error(err)
		}
		sig, err := jose.ParseSigned(got.Token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		return got.Token, sig.Signatures[0].Header.KeyID
	}
	count := func(want int) {
		t.Helper()
		set, err := id.PublicKeys(ctx)
		if err != nil || len(set.Keys) != want {
			t.Errorf("%d public keys, want %d, %v", len(set.Keys), want, err)
		}
		for _, k := range set.Keys {
			if !k.IsPublic() {
				t.Error("a private key is among the public ones")
			}
		}
	}
	_, first := issue()
	count(1)
	if err := id.RotateKeys(ctx); err != nil {
		t.Fatal(err)
	}
	count(2)
	if _, key := issue(); key != first {
		t.Error("the new key signs before it is known everywhere")
	}
	clock.advance(announce)
	last, key := issue()
	if key == first {
		t.Error("the new key does not sign")
	}
	if err := id.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	count(2)
	clock.advance(keepKey + time.Minute)
	if err := id.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	count(1)
	if _, err := verifier.Verify(ctx, last); err == nil {
		t.Error("a token outlives its time")
	}
}

// TestRegistryToken asks as an OCI client does and verifies as the distribution
// registry does.
func TestRegistryToken(t *testing.T) {
	id, _, server := issuer(t)
	ctx := t.Context()
	for _, o := range []*resource.Organization{{InAccount: resource.InAccount{Meta: resource.Meta{Name: "web"}, Account: "acme"}}, {InAccount: resource.InAccount{Meta: resource.Meta{Name: "ops"}, Account: "acme"}}, {InAccount: resource.InAccount{Meta: resource.Meta{Name: "web"}, Account: "rival"}}} {
		if err := store.Of[resource.Organization](id.store).Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	for user, m := range map[string]*resource.Membership{
		"dev@acme.example":   {Account: "acme", Organization: "web", Role: resource.RoleDeveloper},
		"admin@acme.example": {Account: "acme", Organization: "web", Role: resource.RoleAdmin},
		"owner@acme.example": {Account: "acme", Role: resource.RoleOwner},
	} {
		mustUser(t, id, user, resource.UserSpec{})
		m.Name = user
		if err := store.Of[resource.Membership](id.store).Create(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	mustUser(t, id, "root@mp.example", resource.UserSpec{Sysadmin: true})
	mustUser(t, id, "none@mp.example", resource.UserSpec{})

	keys, err := id.PublicKeys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	trusted := map[string]crypto.PublicKey{}
	for _, k := range keys.Keys {
		trusted[k.KeyID] = k.Key
	}
	ask := func(user, secret string, scopes ...string) (*http.Response, map[string]any) {
		t.Helper()
		q := url.Values{"service": {"mp.example:5000"}, "scope": scopes}
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/token?"+q.Encode(), nil)
		if user != "" {
			req.SetBasicAuth(user, secret)
		}
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var body map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		return resp, body
	}
	for _, c := range []struct{ user, scope, want string }{
		{"dev@acme.example", "repository:acme/web/hello:pull,push", "pull,push"},
		{"dev@acme.example", "repository:acme/web/team/hello:pull", "pull"},
		{"dev@acme.example", "repository:acme/web/hello:delete", ""},
		{"dev@acme.example", "repository:acme/ops/hello:pull", ""},
		{"dev@acme.example", "repository:rival/web/hello:pull,push", ""},
		{"dev@acme.example", "repository:acme/web:pull", ""},
		{"dev@acme.example", "repository:hello:pull", ""},
		{"dev@acme.example", "repository:acme/web/:pull", ""},
		{"dev@acme.example", "repository:acme/web/../../rival/web/hello:pull", ""},
		{"dev@acme.example", "repository:acme/-/hello:pull", ""},
		{"dev@acme.example", "repository:a,b/c/hello:pull", ""},
		{"dev@acme.example", "registry:catalog:*", ""},
		{"dev@acme.example", "repository(plugin):acme/web/hello:pull", "pull"},
		{"admin@acme.example", "repository:acme/web/hello:*", "pull,push,delete"},
		{"owner@acme.example", "repository:acme/ops/hello:pull,push,delete", "pull,push,delete"},
		{"owner@acme.example", "repository:acme/nothere/hello:push", ""},
		{"none@mp.example", "repository:acme/web/hello:pull", ""},
		{"root@mp.example", "registry:catalog:*", "*"},
		{"root@mp.example", "repository:rival/web/hello:pull", "pull"},
	} {
		resp, body := ask(c.user, password, c.scope)
		if resp.StatusCode != http.StatusOK || body["token"] != body["access_token"] {
			t.Fatalf("%s for %s: %s %v", c.user, c.scope, resp.Status, body)
		}
		raw, _ := body["token"].(string)
		parsed, err := token.NewToken(raw, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		claims, err := parsed.Verify(token.VerifyOptions{TrustedIssuers: []string{id.RegistryIssuer()}, AcceptedAudiences: []string{"mp.example:5000"}, TrustedKeys: trusted})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, a := range claims.Access {
			got += strings.Join(a.Actions, ",")
		}
		if got != c.want {
			t.Errorf("%s for %s: got %q, want %q", c.user, c.scope, got, c.want)
		}
		own, err := id.VerifyRegistryToken(ctx, raw)
		if err != nil || own.User != c.user {
			t.Errorf("got %+v, %v", own, err)
		}
		if own.Allows("rival/web/hello", "push") {
			t.Errorf("%s may push to a rival", c.user)
		}
	}
	login, err := id.Login(ctx, "dev@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	if resp, _ := ask("anything", login.Token, "repository:acme/web/hello:pull"); resp.StatusCode != http.StatusOK {
		t.Errorf("with a bearer token as password: %s", resp.Status)
	}
	for _, wrong := range [][2]string{{"dev@acme.example", "wrong password"}, {"x", "mps_wrong"}, {"", ""}} {
		resp, body := ask(wrong[0], wrong[1], "repository:acme/web/hello:pull")
		if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") == "" || body["errors"] == nil {
			t.Errorf("%v: %s %v", wrong, resp.Status, body)
		}
	}
	// A form is no way in, whatever is in it: clients that try one first, as containerd
	// does, ask by GET after this answer.
	for _, form := range []string{"username=dev@acme.example&password=" + url.QueryEscape(password), "username=dev@acme.example&password=" + login.Token, ""} {
		resp, err := server.Client().Post(server.URL+"/token?"+form, "application/x-www-form-urlencoded",
			strings.NewReader("grant_type=password&service=mp.example:5000&scope=repository:acme/web/a:pull&"+form))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "GET" {
			t.Errorf("POST: %s", resp.Status)
		}
	}
	for _, q := range []string{"service=other", "scope=nonsense", "scope=" + strings.Repeat("repository:a/b/c:pull+", 20)} {
		resp, err := server.Client().Get(server.URL + "/token?" + q)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%.30s: %s", q, resp.Status)
		}
	}
}
