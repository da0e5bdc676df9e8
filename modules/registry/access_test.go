package registry

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	remotetransport "github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

func TestPushAndPullBySkopeo(t *testing.T) {
	p := newPlatform(t)
	_, host := start(t, p, nil)
	img := push1(t, p, host, "ann", "acme/web/hello:1", 2)
	push1(t, p, host, "ann", "acme/web/parts/of/a/name:1", 1)

	out, err := skopeo(t, p, "ann", "inspect", "docker://"+host+"/acme/web/hello:1")
	if err != nil || !strings.Contains(out, digestOf(t, img)) {
		t.Errorf("inspect: got %v %s, want digest %s", err, out, digestOf(t, img))
	}
	if out, err := skopeo(t, p, "ann", "copy", "docker://"+host+"/acme/web/hello:1", "oci:"+t.TempDir()+":x"); err != nil {
		t.Errorf("pull: %v\n%s", err, out)
	}
	if out, err := skopeo(t, p, "ann", "delete", "docker://"+host+"/acme/web/hello:1"); err != nil {
		t.Errorf("delete: %v\n%s", err, out)
	}
	if out, err := skopeo(t, p, "ann", "inspect", "docker://"+host+"/acme/web/hello:1"); err == nil {
		t.Errorf("inspect after delete: got %s, want an error", out)
	}
	// Wrong names, organizations that are not there: each says why.
	dir, _ := image(t, 1)
	for name, want := range map[string]string{
		"acme/hello:1":       "ACCOUNT/ORGANIZATION/IMAGE",
		"hello:1":            "ACCOUNT/ORGANIZATION/IMAGE",
		"acme/web2/hello:1":  "acme/web2",
		"ac_me/web/hello:1":  "ACCOUNT/ORGANIZATION/IMAGE",
		"umbrella/lab/hat:1": "umbrella/lab/hat",
	} {
		out, err := skopeo(t, p, "ann", "copy", "oci:"+dir+":x", "docker://"+host+"/"+name)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("push %s: got %v %s, want an error with %q", name, err, out, want)
		}
	}
	if out, err := skopeo(t, p, "root", "copy", "oci:"+dir+":x", "docker://"+host+"/acme/nowhere/hello:1"); err == nil || !strings.Contains(out, "mp org create") {
		t.Errorf("push to an organization that is not there: got %v %s", err, out)
	}
}

func TestOrganizationsAreApart(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, nil)
	img := push1(t, p, host, "ann", "acme/web/hello:1", 2)
	layer, dgst := layersOf(t, img)[0], digestOf(t, img)
	push1(t, p, host, "bob", "umbrella/lab/virus:1", 1)

	// With skopeo, as a user would try.
	if out, err := skopeo(t, p, "bob", "inspect", "docker://"+host+"/acme/web/hello:1"); err == nil {
		t.Errorf("bob inspects acme's image: %s", out)
	}
	if out, err := skopeo(t, p, "bob", "list-tags", "docker://"+host+"/acme/web/hello"); err == nil {
		t.Errorf("bob lists acme's tags: %s", out)
	}
	if out, err := skopeo(t, p, "bob", "delete", "docker://"+host+"/acme/web/hello:1"); err == nil {
		t.Errorf("bob deletes acme's image: %s", out)
	}

	// With bare requests, as an attacker would: the token is for his own only.
	bob := asUser(t, p, host, p.scope("umbrella/lab/virus", "pull", "push", "delete"))
	for _, try := range []string{
		"GET /v2/_catalog", "GET /v2/acme/web/hello/tags/list", "GET /v2/acme/web/hello/manifests/1",
		"HEAD /v2/acme/web/hello/manifests/" + dgst, "DELETE /v2/acme/web/hello/manifests/" + dgst,
		"GET /v2/acme/web/hello/blobs/" + layer, "DELETE /v2/acme/web/hello/blobs/" + layer,
		"POST /v2/acme/web/hello/blobs/uploads/", "PUT /v2/acme/web/hello/manifests/2",
		"GET /v2/umbrella/lab/../../acme/web/hello/manifests/1", "GET /v2/umbrella/lab/virus/%2e%2e/%2e%2e/acme/web/hello/tags/list",
		"GET /v2//acme/web/hello/tags/list", "POST /v2/acme/web/hello/manifests/1",
	} {
		method, path, _ := strings.Cut(try, " ")
		if status, _, body := bob.do(method, path, nil); status < 400 || status >= 500 {
			t.Errorf("%s: got %d %s, want a refusal", try, status, body)
		}
	}
	// A blob is reached through repositories that have it, also if one knows its digest.
	bob.want(404, "BLOB_UNKNOWN", "GET", "/v2/umbrella/lab/virus/blobs/"+layer)
	bob.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/umbrella/lab/virus/manifests/"+dgst)

	// A mount from a repository one may not pull is a plain upload instead.
	mount := "/v2/umbrella/lab/virus/blobs/uploads/?mount=" + url.QueryEscape(layer) + "&from=acme/web/hello"
	if status, _, body := bob.do("POST", mount, nil); status != http.StatusAccepted {
		t.Errorf("mount of a foreign blob: got %d %s, want 202", status, body)
	}
	if status, _, body := bob.do("POST", mount+"&from=umbrella/lab/virus", nil); status != http.StatusAccepted {
		t.Errorf("mount with two sources: got %d %s, want 202", status, body)
	}
	status, _, body := bob.do("POST", "/v2/umbrella/lab/virus/blobs/uploads/", strings.NewReader("from=acme%2Fweb%2Fhello&mount="+url.QueryEscape(layer)),
		"Content-Type", "application/x-www-form-urlencoded")
	if status != http.StatusUnsupportedMediaType {
		t.Errorf("mount by a form in the body: got %d %s, want 415", status, body)
	}
	bob.want(404, "BLOB_UNKNOWN", "GET", "/v2/umbrella/lab/virus/blobs/"+layer)
	// And of one's own it is a mount.
	both := asUser(t, p, host, p.sign(jwt.Claims{}, []map[string]any{
		{"type": "repository", "name": "acme/web/hello", "actions": []string{"pull"}},
		{"type": "repository", "name": "acme/web/other", "actions": []string{"pull", "push"}},
	}))
	if status, _, body := both.do("POST", strings.Replace(mount, "umbrella/lab/virus", "acme/web/other", 1), nil); status != http.StatusCreated {
		t.Errorf("mount of an own blob: got %d %s, want 201", status, body)
	}

	// A name that begins like another's is another's.
	push1(t, p, host, "root", "acme/web/hello2:1", 1)
	asUser(t, p, host, p.scope("acme/web/hello", "pull")).want(401, "DENIED", "GET", "/v2/acme/web/hello2/tags/list")

	images, err := r.List(t.Context(), "umbrella", "lab")
	if err != nil || len(images) != 1 || images[0].Name != "umbrella/lab/virus" {
		t.Errorf("List: got %v %v, want umbrella/lab/virus alone", images, err)
	}
	root := asUser(t, p, host, p.sign(jwt.Claims{}, []map[string]any{{"type": "registry", "name": "catalog", "actions": []string{"*"}}}))
	root.want(200, "acme/web/hello", "GET", "/v2/_catalog")
}

func TestTokens(t *testing.T) {
	p, other := newPlatform(t), newPlatform(t)
	_, host := start(t, p, nil)
	push1(t, p, host, "ann", "acme/web/hello:1", 1)
	access := []map[string]any{{"type": "repository", "name": "acme/web/hello", "actions": []string{"pull"}}}
	hour := func(h int) *jwt.NumericDate { return jwt.NewNumericDate(time.Now().Add(time.Duration(h) * time.Hour)) }

	hmac, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: make([]byte, 32)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := jwt.Signed(hmac).Claims(jwt.Claims{Audience: jwt.Audience{"test-service"}, Expiry: hour(1)}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	good := p.sign(jwt.Claims{}, access)
	for name, c := range map[string]struct {
		token string
		want  int
	}{
		"good":           {good, 200},
		"none":           {"", 401},
		"nonsense":       {"x.y.z", 401},
		"cut":            {good[:len(good)-4], 401},
		"other key":      {other.sign(jwt.Claims{}, access), 401},
		"other audience": {p.sign(jwt.Claims{Audience: jwt.Audience{"plane"}}, access), 401},
		"other issuer":   {p.sign(jwt.Claims{Issuer: "else"}, access), 401},
		"expired":        {p.sign(jwt.Claims{Expiry: hour(-1)}, access), 401},
		"not yet":        {p.sign(jwt.Claims{NotBefore: hour(1)}, access), 401},
		"symmetric":      {forged, 401},
		"no access":      {p.sign(jwt.Claims{}, nil), 401},
	} {
		status, header, body := asUser(t, p, host, c.token).do("GET", "/v2/acme/web/hello/manifests/1", nil)
		if status != c.want {
			t.Errorf("%s: got %d %s, want %d", name, status, body, c.want)
		}
		challenge := header.Get("WWW-Authenticate")
		want := `Bearer realm="https://` + host + `/token",service="test-service",scope="repository:acme/web/hello:pull"`
		if status == 401 && !strings.HasPrefix(challenge, want) {
			t.Errorf("%s: got challenge %s, want %s", name, challenge, want)
		}
	}
	asUser(t, p, host, "").want(401, "log in", "GET", "/v2/")
	asUser(t, p, host, good).want(200, "{}", "GET", "/v2/")
	asUser(t, p, host, good).want(404, "UNSUPPORTED", "GET", "/")
	asUser(t, p, host, good).want(404, "UNSUPPORTED", "OPTIONS", "/v2/acme/web/hello/manifests/1")
}

// TestLogsInAtAPrivateAddress pushes with the client library of crane, kaniko
// and ko. It gives no password to a private address unless that is the
// registry's own.
func TestLogsInAtAPrivateAddress(t *testing.T) {
	p := newPlatform(t)
	_, host := start(t, p, nil)
	_, img := image(t, 1)
	ref, err := name.ParseReference(host + "/acme/web/hello:1")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool()}}
	defer transport.CloseIdleConnections()
	push := func(user string) error {
		return remote.Write(ref, img, remote.WithContext(t.Context()), remote.WithTransport(transport),
			remote.WithAuth(&authn.Basic{Username: user, Password: "secret"}))
	}
	if err := push("ann"); err != nil {
		t.Error(err)
	}
	var no *remotetransport.Error
	if err := push("nobody"); !errors.As(err, &no) || no.StatusCode != http.StatusUnauthorized {
		t.Errorf("an unknown user: got %v, want 401", err)
	}
}

func TestNodesPullForTheirWorkspaces(t *testing.T) {
	p := newPlatform(t)
	_, host := start(t, p, nil)
	img := push1(t, p, host, "ann", "acme/web/hello:1", 1)
	push1(t, p, host, "root", "acme/ops/secret:1", 1)

	node := asNode(t, p, host, "node1", "acme/web/shop")
	node.want(200, "{}", "GET", "/v2/")
	node.want(200, "layers", "GET", "/v2/acme/web/hello/manifests/1?ns=registry.example:5000")
	node.want(200, "", "GET", "/v2/acme/web/hello/blobs/"+layersOf(t, img)[0])
	node.want(403, "own organization", "GET", "/v2/acme/ops/secret/manifests/1")
	node.want(403, "own organization", "GET", "/v2/acme/webshop/secret/manifests/1")
	node.want(403, "only pull", "POST", "/v2/acme/web/hello/blobs/uploads/")
	node.want(403, "only pull", "DELETE", "/v2/acme/web/hello/manifests/1")
	node.want(403, "DENIED", "GET", "/v2/_catalog")
	node.want(404, "open that registry as an upstream", "GET", "/v2/library/nginx/manifests/1?ns=docker.example")

	for name, a := range map[string]*asker{
		"a workspace that runs elsewhere": asNode(t, p, host, "node1", "umbrella/lab/virus"),
		"a node that runs nothing":        asNode(t, p, host, "node3", "acme/web/shop"),
		"no workspace":                    asNode(t, p, host, "node1", ""),
		"half a workspace":                asNode(t, p, host, "node1", "acme/web"),
	} {
		if status, _, body := a.do("GET", "/v2/acme/web/hello/manifests/1", nil); status != 403 {
			t.Errorf("%s: got %d %s, want 403", name, status, body)
		}
	}
	// The header alone is nothing.
	asUser(t, p, host, "").want(401, "log in", "GET", "/v2/acme/web/hello/manifests/1", "X-Multipaas-Workspace", "acme/web/shop")
	// A certificate from elsewhere does not get through the handshake.
	stranger := asNode(t, newPlatform(t), host, "node1", "acme/web/shop")
	stranger.client.Transport.(*http.Transport).TLSClientConfig.RootCAs = p.ca.Pool()
	if resp, err := stranger.client.Get("https://" + host + "/v2/"); err == nil {
		resp.Body.Close()
		t.Errorf("a node of another platform: got %s, want a refused handshake", resp.Status)
	}
}
