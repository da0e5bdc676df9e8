package attack

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// testRegistry reaches for B's images with A's rights.
func testRegistry(t *testing.T, s *suite) {
	a := s.people(t)
	base := "https://" + s.RegistryAddress() + "/v2/"
	grant := func(scopes ...string) string {
		q := url.Values{"scope": scopes}
		got := a.bearer(t, "", http.MethodGet, "https://"+s.RegistryAddress()+"/token?"+q.Encode(), "", "Authorization", "Basic "+basic(ownerA, a.word(t, "password")))
		var token struct{ Token string }
		_ = json.Unmarshal([]byte(got.body), &token)
		return token.Token
	}
	own := grant("repository:beta/ops/tool:pull,push")
	const accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
	mine := a.bearer(t, own, http.MethodGet, base+"beta/ops/tool/manifests/1", "", "Accept", accept)
	var err error
	if mine.status != http.StatusOK {
		err = errors.New(mine.String())
	}
	if !s.control(t, "A pulls A's manifest", err) {
		return
	}
	// A blob that only B has.
	data := []byte("what only B has: " + s.RegistryAddress())
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	sum512 := sha512.Sum512(data)
	digest512 := "sha512:" + hex.EncodeToString(sum512[:])
	q := url.Values{"scope": {"repository:acme/web/tool:pull,push"}}
	theirs := a.bearer(t, "", http.MethodGet, "https://"+s.RegistryAddress()+"/token?"+q.Encode(), "", "Authorization", "Basic "+basic(ownerB, a.word(t, "owner-password")))
	var tokenB struct{ Token string }
	if err := json.Unmarshal([]byte(theirs.body), &tokenB); err != nil {
		t.Fatal(theirs)
	}
	upload := func(token, repository, digest, content string) answer {
		began := a.bearer(t, token, http.MethodPost, base+repository+"/blobs/uploads/", "")
		if began.status != http.StatusAccepted {
			return began
		}
		return a.bearer(t, token, http.MethodPut, join(base, began.header.Get("Location"))+"&digest="+url.QueryEscape(digest), content, "Content-Type", "application/octet-stream")
	}
	err = nil
	for _, d := range []string{digest, digest512} {
		if got := upload(tokenB.Token, "acme/web/tool", d, string(data)); got.status != http.StatusCreated {
			err = errors.New(got.String())
		}
	}
	if !s.control(t, "B uploads a blob", err) {
		return
	}
	const oci = "application/vnd.oci.image.manifest.v1+json"
	manifestB := a.bearer(t, tokenB.Token, http.MethodPut, base+"acme/web/tool/manifests/only", fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`,
		oci, digest, len(data)), "Content-Type", oci)
	if manifestB.status != http.StatusCreated {
		t.Fatal(manifestB)
	}
	digestB := manifestB.header.Get("Docker-Content-Digest")

	refused := func(what string, got answer) {
		t.Helper()
		s.record(t, attempt{What: what, From: ownerA, Want: "4xx and nothing of B's", Got: got.String(),
			Blocked: got.status >= 400 && got.status < 500 && !strings.Contains(got.body, "what only B has") && !strings.Contains(got.body, `"layers"`)})
	}
	// Tokens for more than one may have.
	wide := map[string]string{"no token": "", "A's token": own, "a session": a.tokens[ownerA]}
	names := append(s.registryNames(), "digest", digest[len("sha256:"):], "digest512", digest512[len("sha512:"):], "digestB", digestB, "mine", mine.body)
	rows := rows[registryRows](t, "registry.yaml", names...)
	for _, scope := range rows.Scopes {
		wide["a token for "+scope] = grant(strings.Split(scope, " ")...)
	}
	if j, err := parseJWT(own); err != nil {
		t.Fatal(err)
	} else {
		claims := map[string]any{"access": []map[string]any{{"type": "repository", "name": "acme/web/tool", "actions": []string{"pull", "push", "delete"}}, {"type": "registry", "name": "catalog", "actions": []string{"*"}}}}
		for what, token := range j.forgeries(t, claims, []byte(a.ask(t, "", http.MethodGet, "/v1/oidc/keys", "").body)) {
			wide["A's token made wider: "+what] = token
		}
	}
	if p := s.plane(t, a, ownerB, "acme/web/shop"); p.token != "" {
		wide["B's own token for Kubernetes"] = p.token
	}
	for what, token := range wide {
		refused("GET B's manifest with "+what, a.bearer(t, token, http.MethodGet, base+"acme/web/tool/manifests/1", "", "Accept", accept))
		refused("GET B's blob with "+what, a.bearer(t, token, http.MethodGet, base+"acme/web/tool/blobs/"+digest, ""))
		refused("list all repositories with "+what, a.bearer(t, token, http.MethodGet, base+"_catalog", ""))
	}
	all := wide["a token for repository:acme/web/tool:*"]
	for _, r := range rows.Requests {
		for what, token := range map[string]string{"A's token": own, "a token that was asked for B's": all} {
			refused(r.Method+" "+r.Path+" with "+what, a.bearer(t, token, r.Method, base+r.Path, r.Body, "Content-Type", "application/vnd.oci.image.manifest.v1+json"))
		}
	}
	for _, name := range rows.Workspaces {
		refused("X-Multipaas-Workspace: "+name+" without a node's certificate", a.bearer(t, "", http.MethodGet, base+"acme/web/tool/manifests/1", "", "X-Multipaas-Workspace", name))
	}
	s.mounts(t, a, rows, base, own, digest, string(data), upload)
	s.manifests(t, a, rows, base, own, digest, digestB)
	s.referrers(t, a, base, grant("repository:beta/ops/tool:*"), tokenB.Token, digestB)
	s.floods(t, a, base, grant, tokenB.Token)
}

func basic(user, word string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + word))
}

// join makes an address of what may be only a path.
func join(base, location string) string {
	b, err := url.Parse(base)
	if err != nil {
		return location
	}
	l, err := b.Parse(location)
	if err != nil {
		return location
	}
	return l.String()
}

// mounts takes B's blob into A's repository, and A's upload into B's.
func (s *suite) mounts(t *testing.T, a *asker, rows registryRows, base, own, digest, data string, upload func(token, repository, digest, content string) answer) {
	record := func(what string, got answer, blocked bool) {
		t.Helper()
		s.record(t, attempt{What: what, From: ownerA, Want: "B's blob is not in A's repository", Got: got.String(), Blocked: blocked})
	}
	has := func() bool {
		sum := sha512.Sum512([]byte(data))
		return a.bearer(t, own, http.MethodHead, base+"beta/ops/tool/blobs/"+digest, "").status == http.StatusOK ||
			a.bearer(t, own, http.MethodHead, base+"beta/ops/tool/blobs/sha512:"+hex.EncodeToString(sum[:]), "").status == http.StatusOK
	}
	for _, q := range rows.Mounts {
		got := a.bearer(t, own, http.MethodPost, base+"beta/ops/tool/blobs/uploads/?"+q, "")
		record("mount by "+q, got, got.status != http.StatusCreated && !has())
	}
	got := a.bearer(t, own, http.MethodPost, base+"beta/ops/tool/blobs/uploads/", "mount="+url.QueryEscape(digest)+"&from=acme/web/tool", "Content-Type", "application/x-www-form-urlencoded")
	record("mount by a form", got, got.status != http.StatusCreated && !has())
	got = upload(own, "beta/ops/tool", digest, "")
	record("say that B's digest was uploaded, without its bytes", got, got.status != http.StatusCreated && !has())
	got = upload(own, "beta/ops/tool", digest, data[:len(data)-1]+"X")
	record("upload other bytes under B's digest", got, got.status != http.StatusCreated && !has())

	began := a.bearer(t, own, http.MethodPost, base+"beta/ops/tool/blobs/uploads/", "")
	moved := strings.Replace(join(base, began.header.Get("Location")), "beta/ops/tool", "acme/web/tool", 1)
	for _, method := range []string{http.MethodGet, http.MethodPatch, http.MethodPut, http.MethodDelete} {
		got := a.bearer(t, own, method, moved, "x", "Content-Type", "application/octet-stream")
		record(method+" an upload of A's at B's repository", got, got.status >= 400 && got.status < 500)
	}
	location, _ := url.Parse(join(base, began.header.Get("Location")))
	for what, id := range map[string]string{"another id": "00000000-0000-4000-8000-000000000000", "a path": "..%2f..%2f..%2f..%2facme%2fweb%2ftool%2f_uploads%2fx"} {
		other := *location
		parts := strings.Split(other.EscapedPath(), "/")
		parts[len(parts)-1] = id
		got := a.bearer(t, own, http.MethodPatch, location.Scheme+"://"+location.Host+strings.Join(parts, "/")+"?"+location.RawQuery, "x", "Content-Type", "application/octet-stream")
		record("an upload session with "+what, got, got.status >= 400 && got.status < 500)
	}
	forged := location.Query()
	forged.Set("_state", strings.Repeat("A", 120))
	got = a.bearer(t, own, http.MethodPatch, location.Scheme+"://"+location.Host+location.Path+"?"+forged.Encode(), "x", "Content-Type", "application/octet-stream")
	record("an upload session with a forged state", got, got.status >= 400 && got.status < 500)
}

// manifests puts manifests that name what A does not have, or too much.
func (s *suite) manifests(t *testing.T, a *asker, rows registryRows, base, own, digest, digestB string) {
	const oci = "application/vnd.oci.image.manifest.v1+json"
	part := func(digest string, extra string) string {
		return fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"%s","size":10%s}`, digest, extra)
	}
	config := `{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + digest + `","size":10}`
	for what, m := range map[string][2]string{
		"a layer that only B has":       {oci, `{"schemaVersion":2,"mediaType":"` + oci + `","config":` + config + `,"layers":[` + part(digest, "") + `]}`},
		"an index of B's manifest":      {"application/vnd.oci.image.index.v1+json", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"` + oci + `","digest":"` + digestB + `","size":10}]}`},
		"a foreign layer":               {oci, `{"schemaVersion":2,"mediaType":"` + oci + `","config":` + config + `,"layers":[` + part(digest, `,"urls":["http://127.0.0.1:2379/"]`) + `]}`},
		"schema 1":                      {"application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1,"name":"acme/web/tool","tag":"1","fsLayers":[{"blobSum":"` + digest + `"}],"history":[{"v1Compatibility":"{}"}]}`},
		"signed schema 1":               {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"name":"acme/web/tool","tag":"1","fsLayers":[],"history":[],"signatures":[]}`},
		"no media type":                 {"", `{}`},
		"a manifest of 8 MB":            {oci, `{"schemaVersion":2,"x":"` + strings.Repeat("x", 8<<20) + `"}`},
		"100,000 layers":                {oci, `{"schemaVersion":2,"mediaType":"` + oci + `","config":` + config + `,"layers":[` + strings.Repeat(part(digest, "")+",", 20000) + part(digest, "") + `]}`},
		"no layers and no config":       {oci, `{"schemaVersion":2,"mediaType":"` + oci + `"}`},
		"deep JSON":                     {oci, strings.Repeat("[", 100000)},
		"a path where a digest belongs": {oci, `{"schemaVersion":2,"mediaType":"` + oci + `","config":{"mediaType":"x","digest":"../../../../acme/web/tool","size":1},"layers":[]}`},
	} {
		got := a.bearer(t, own, http.MethodPut, base+"beta/ops/tool/manifests/evil", m[1], "Content-Type", m[0])
		for try := 1; try < 10 && got.status == 0; try++ { // who refuses before all has come may end the connection at once: RFC 9112, 9.6
			got = a.bearer(t, own, http.MethodPut, base+"beta/ops/tool/manifests/evil", m[1], "Content-Type", m[0])
		}
		s.record(t, attempt{What: "put a manifest with " + what, From: ownerA, Want: "4xx", Got: got.String(), Blocked: got.status >= 400 && got.status < 500})
	}
	for _, tag := range append(rows.Tags, strings.Repeat("a", 200)) {
		got := a.bearer(t, own, http.MethodPut, base+"beta/ops/tool/manifests/"+strings.ReplaceAll(tag, "..", "%2e%2e"), "{}", "Content-Type", oci)
		s.record(t, attempt{What: "put a manifest under the tag " + tag, From: ownerA, Want: "4xx", Got: got.String(), Blocked: got.status >= 400 && got.status < 500})
	}
	for _, name := range append(rows.Repositories, "beta/ops/"+strings.Repeat("x", 300)) {
		got := a.bearer(t, own, http.MethodPost, base+strings.ReplaceAll(name, "..", "%2e%2e")+"/blobs/uploads/", "")
		s.record(t, attempt{What: "push to the repository " + name, From: ownerA, Want: "4xx", Got: got.String(), Blocked: got.status >= 400 && got.status < 500})
	}
}
