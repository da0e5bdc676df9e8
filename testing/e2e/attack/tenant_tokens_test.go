package attack

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
)

// jwt is a token of three parts, taken apart.
type jwt struct {
	header, claims map[string]any
	text           string
}

func parseJWT(text string) (jwt, error) {
	j := jwt{text: text}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return j, fmt.Errorf("%d parts", len(parts))
	}
	for i, to := range []*map[string]any{&j.header, &j.claims} {
		data, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(data, to)
		}
		if err != nil {
			return j, err
		}
	}
	return j, nil
}

// with makes a token of changed parts, signed by sign over its first two.
func (j jwt) with(header, claims map[string]any, sign func(string) []byte) string {
	part := func(base, change map[string]any) string {
		all := map[string]any{}
		for _, m := range []map[string]any{base, change} {
			for k, v := range m {
				all[k] = v
			}
		}
		data, _ := json.Marshal(all)
		return base64.RawURLEncoding.EncodeToString(data)
	}
	text := part(j.header, header) + "." + part(j.claims, claims)
	return text + "." + base64.RawURLEncoding.EncodeToString(sign(text))
}

// forgeries are tokens made of a good one without the issuer's key.
func (j jwt) forgeries(t *testing.T, claims map[string]any, public []byte) map[string]string {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(j.text, ".")
	old, _ := base64.RawURLEncoding.DecodeString(parts[2])
	none := func(string) []byte { return nil }
	same := func(string) []byte { return old }
	ours := func(text string) []byte {
		sum := sha256.Sum256([]byte(text))
		r, s, _ := ecdsa.Sign(rand.Reader, own, sum[:])
		out := make([]byte, 64)
		r.FillBytes(out[:32])
		s.FillBytes(out[32:])
		return out
	}
	shared := func(key []byte) func(string) []byte {
		return func(text string) []byte {
			m := hmac.New(sha256.New, key)
			m.Write([]byte(text))
			return m.Sum(nil)
		}
	}
	point, _ := own.PublicKey.ECDH()
	raw := point.Bytes()
	jwk := map[string]any{"kty": "EC", "crv": "P-256", "x": base64.RawURLEncoding.EncodeToString(raw[1:33]), "y": base64.RawURLEncoding.EncodeToString(raw[33:])}
	return map[string]string{
		"alg none":                       j.with(map[string]any{"alg": "none"}, claims, none),
		"alg None":                       j.with(map[string]any{"alg": "None"}, claims, none),
		"alg none with the signature":    j.with(map[string]any{"alg": "none"}, claims, same),
		"no alg":                         j.with(map[string]any{"alg": nil}, claims, same),
		"the signature of another token": j.with(nil, claims, same),
		"no signature":                   j.with(nil, claims, none),
		"another key":                    j.with(nil, claims, ours),
		"another key, its own jwk":       j.with(map[string]any{"jwk": jwk}, claims, ours),
		"another key, a jku":             j.with(map[string]any{"jku": "https://evil.example/keys"}, claims, ours),
		"a kid that is a path":           j.with(map[string]any{"kid": "../../../../dev/null"}, claims, ours),
		"a kid that is none":             j.with(map[string]any{"kid": ""}, claims, ours),
		"HS256 with the public keys":     j.with(map[string]any{"alg": "HS256"}, claims, shared(public)),
		"HS256 with an empty key":        j.with(map[string]any{"alg": "HS256"}, claims, shared(nil)),
		"r and s zero":                   j.with(nil, claims, func(string) []byte { return make([]byte, 64) }),
		"crit":                           j.with(map[string]any{"crit": []string{"x"}, "x": 1}, claims, ours),
		"a good token with a dot more":   j.text + ".",
		"a good token without its end":   j.text[:len(j.text)-4],
	}
}

// testTokens forges and replays everything that lets somebody in.
func testTokens(t *testing.T, s *suite) {
	a := s.people(t)
	planeA, planeB := s.plane(t, a, ownerA, "beta/ops/box"), s.plane(t, a, ownerB, "acme/web/shop")
	const who = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
	review := `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`
	ask := func(p plane, token string) answer { return a.plane(t, p, token, http.MethodPost, who, review) }
	var err error
	if got := ask(planeA, planeA.token); got.status != http.StatusCreated {
		err = errors.New(got.String())
	}
	if s.control(t, "A's token opens A's plane", err) {
		public := []byte(a.ask(t, "", http.MethodGet, "/v1/oidc/keys", "").body)
		good, err := parseJWT(planeA.token)
		if err != nil {
			t.Fatal(err)
		}
		ofB, err := parseJWT(planeB.token)
		if err != nil {
			t.Fatal(err)
		}
		try := func(what string, p plane, token string) {
			got := ask(p, token)
			s.record(t, attempt{What: what, From: ownerA, Want: "401", Got: got.String(), Blocked: got.refused(http.StatusUnauthorized, http.StatusForbidden)})
		}
		try("A's token at B's plane", planeB, planeA.token)
		try("B's token at A's plane", planeA, planeB.token)
		try("A's session at A's plane", planeA, a.tokens[ownerA])
		for what, token := range good.forgeries(t, map[string]any{"aud": ofB.claims["aud"], "sub": ofB.claims["sub"], "email": ownerB, "groups": []string{"system:masters"}}, public) {
			try("A's token made B's: "+what, planeB, token)
		}
		for what, token := range good.forgeries(t, map[string]any{"groups": []string{"system:masters"}, "exp": time.Now().Add(time.Hour).Unix()}, public) {
			if !strings.HasPrefix(what, "a good token") {
				try("A's token made stronger: "+what, planeA, token)
			}
		}
		for _, impersonate := range [][]string{{"Impersonate-User", "system:admin"}, {"X-Remote-User", "system:admin", "X-Remote-Group", "system:masters"}} {
			got := a.plane(t, planeB, planeA.token, http.MethodPost, who, review, impersonate...)
			s.record(t, attempt{What: "B's plane with header " + impersonate[0], From: ownerA, Want: "401", Got: got.String(), Blocked: got.status == http.StatusUnauthorized})
		}
		s.serviceAccounts(t, a, planeB, ask)
		for what, token := range map[string]string{"A's token for Kubernetes": planeA.token, "a token of no issuer": good.with(nil, map[string]any{"sub": ownerB}, func(string) []byte { return nil }),
			"an empty one": " ", "B's address": ownerB, "a hash as it is stored": strings.Repeat("0", 64), "A's with a letter more": a.tokens[ownerA] + "x", "A's in capitals": strings.ToUpper(a.tokens[ownerA])} {
			got := a.bearer(t, token, http.MethodGet, s.URL()+"/v1/session", "")
			s.record(t, attempt{What: "the platform's API with " + what, From: ownerA, Want: "401", Got: got.String(), Blocked: got.status == http.StatusUnauthorized})
		}
	}
	s.endedSessions(t, a)
	s.guesses(t, a)
	s.nodes(t, a)
}

// plane is a Kubernetes API and a token of somebody for it.
type plane struct{ server, name, token string }

func (s *suite) plane(t *testing.T, a *asker, who, workspace string) plane {
	t.Helper()
	p := strings.Split(workspace, "/")
	path := "/v1/accounts/" + p[0] + "/organizations/" + p[1] + "/workspaces/" + p[2] + "/kube"
	var way struct{ Server, ServerName string }
	var credential struct{ Token string }
	for path, to := range map[string]any{"GET " + path: &way, "POST " + path + "/credential": &credential} {
		method, path, _ := strings.Cut(path, " ")
		if got := a.ask(t, who, method, path, ""); json.Unmarshal([]byte(got.body), to) != nil || got.status != http.StatusOK {
			t.Fatalf("%s: %s", path, got)
		}
	}
	return plane{way.Server, way.ServerName, credential.Token}
}

// plane asks a Kubernetes API; its certificate is not what is tested here.
func (a *asker) plane(t *testing.T, p plane, token, method, path, body string, headers ...string) answer {
	t.Helper()
	c := *a
	c.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: a.s.Dial, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{ServerName: p.name, InsecureSkipVerify: true}}}
	return c.bearer(t, token, method, p.server+path, body, headers...)
}

// serviceAccounts takes a token of A's cluster elsewhere.
func (s *suite) serviceAccounts(t *testing.T, a *asker, planeB plane, ask func(plane, string) answer) {
	r := s.Kube(t, s.box, "", "create", "token", "default", "-n", "default")
	token := strings.TrimSpace(r.Out)
	if r.Code != 0 || token == "" {
		s.control(t, "A's cluster gives a service account's token", errors.New(r.String()))
		return
	}
	for what, got := range map[string]answer{
		"B's plane": ask(planeB, token), "the platform's API": a.bearer(t, token, http.MethodGet, s.URL()+"/v1/session", ""),
		"the registry": a.bearer(t, token, http.MethodGet, "https://"+s.RegistryAddress()+"/v2/", ""), "the node agents' API": a.bearer(t, token, http.MethodGet, s.URL()+"/v1/agent/state", ""),
		"the registry's tokens": a.bearer(t, token, http.MethodGet, "https://"+s.RegistryAddress()+"/token?scope=repository:acme/web/tool:pull", ""),
	} {
		s.record(t, attempt{What: "a service account's token of A's cluster at " + what, From: "pod of A", Want: "401 or 403", Got: got.String(), Blocked: got.refused(401, 403)})
	}
}

// endedSessions replays a token after its session has ended.
func (s *suite) endedSessions(t *testing.T, a *asker) {
	const user = "leaver@beta.example"
	first := a.word(t, "password")
	s.Make(t, dctest.Rival, "leaver", user, "users", "create", user)
	alive := func(token string) answer { return a.bearer(t, token, http.MethodGet, s.URL()+"/v1/session", "") }
	end := func(what string, how func(token string) answer) {
		token := a.login(t, user, first)
		if got := alive(token); got.status != http.StatusOK {
			s.control(t, "a fresh session", errors.New(got.String()))
			return
		}
		if got := how(token); got.status >= 300 {
			s.control(t, what, errors.New(got.String()))
			return
		}
		got := alive(token)
		s.record(t, attempt{What: "a token replayed after " + what, From: "outside", Want: "401", Got: got.String(), Blocked: got.status == http.StatusUnauthorized})
	}
	end("logout", func(token string) answer { return a.bearer(t, token, http.MethodPost, s.URL()+"/v1/logout", "") })
	admin := a.admin(t)
	end("the sysadmin set another password", func(string) answer {
		got := a.bearer(t, admin, http.MethodPut, s.URL()+"/v1/users/"+user+"/password", `{"password":"another good battery"}`)
		first = "another good battery"
		return got
	})
	a.settle(t, user, first, "one more good battery")
	first = "one more good battery"
	end("the user was disabled", func(string) answer {
		return a.bearer(t, admin, http.MethodPatch, s.URL()+"/v1/users/"+user, `{"spec":{"disabled":true}}`)
	})
	if got := a.bearer(t, admin, http.MethodPatch, s.URL()+"/v1/users/"+user, `{"spec":{"disabled":false}}`); got.status != http.StatusOK {
		t.Fatal(got)
	}
	end("the user was deleted", func(string) answer { return a.bearer(t, admin, http.MethodDelete, s.URL()+"/v1/users/"+user, "") })

	// A session that the attacker chose does not become the victim's.
	chosen := "attackers-choice-attackers-choice-attackers-ch"
	got := a.bearer(t, chosen, http.MethodPost, s.URL()+"/v1/login", `{"email":"`+devA+`","password":"`+a.word(t, "password")+`"}`, "Cookie", "session="+chosen)
	fixed := alive(chosen)
	s.record(t, attempt{What: "log in with a token that was chosen before", From: "outside", Want: "another token, and the chosen one is worthless", Got: fmt.Sprint(got.status, " ", fixed.status),
		Blocked: got.status == http.StatusOK && !strings.Contains(got.body, chosen) && fixed.status == http.StatusUnauthorized && got.header.Get("Set-Cookie") == ""})
}

// admin logs the first sysadmin in.
func (a *asker) admin(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(a.s.Server.Root("var", "lib", "multipaas", "bootstrap-admin.json"))
	var first struct{ Email, Password string }
	if err == nil {
		err = json.Unmarshal(data, &first)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a.login(t, first.Email, first.Password)
}

// guesses tries passwords until it is slowed down, and looks whether forged
// headers help.
func (s *suite) guesses(t *testing.T, a *asker) {
	statuses := map[int]int{}
	for i := range 14 {
		got := a.ask(t, "", http.MethodPost, "/v1/login", fmt.Sprintf(`{"email":"victim@acme.example","password":"guess number %d"}`, i), "X-Forwarded-For", fmt.Sprintf("198.51.100.%d", i), "Forwarded", fmt.Sprintf("for=198.51.100.%d", i))
		statuses[got.status]++
	}
	s.record(t, attempt{What: "14 passwords for one user, each with another X-Forwarded-For", From: "one address", Want: "429 before the end, never 200", Got: fmt.Sprint(statuses),
		Blocked: statuses[http.StatusTooManyRequests] > 0 && statuses[http.StatusOK] == 0})
	known := a.ask(t, "", http.MethodPost, "/v1/login", `{"email":"`+devB+`","password":"not the password"}`)
	unknown := a.ask(t, "", http.MethodPost, "/v1/login", `{"email":"nosuch@acme.example","password":"not the password"}`)
	s.record(t, attempt{What: "find out by logging in whether a user exists", From: "outside", Want: "the same answer", Got: known.String() + " | " + unknown.String(),
		Blocked: known.status == http.StatusUnauthorized && plain(known.body, devB) == plain(unknown.body, "nosuch@acme.example")})
}

// nodes plays a node: with join tokens that are no good, and with a node's own
// certificate for what is another's.
func (s *suite) nodes(t *testing.T, a *asker) {
	admin := a.admin(t)
	csr, key := request(t, "evil")
	join := func(name, token string) answer {
		body, _ := json.Marshal(map[string]any{"name": name, "token": token, "csr": csr})
		return a.ask(t, "", http.MethodPost, "/v1/agent/join", string(body))
	}
	refused := func(what string, got answer) {
		s.record(t, attempt{What: what, From: "outside", Want: "4xx, no certificate", Got: got.String(), Blocked: got.status >= 400 && got.status < 500 && !strings.Contains(got.body, "BEGIN CERT")})
	}
	good := s.Token(t)
	parts := strings.Split(good.Token, ".")
	for what, token := range map[string]string{"an invented one": "aaaaaaaaaa.bbbb." + parts[2], "another secret": parts[0] + ".AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA." + parts[2],
		"no secret": parts[0] + "." + "." + parts[2], "another platform's": parts[0] + "." + parts[1] + "." + strings.Repeat("0", 64), "a path": "../nodes/x." + parts[1], "nothing": ""} {
		refused("join with "+what, join("evil", token))
	}
	for _, name := range []string{s.Server.Name(), s.Nodes[0].Name(), "../x", "a/b", "A", strings.Repeat("a", 64), ""} {
		refused("join with a good token under the name "+name, join(name, good.Token))
	}
	got := join("evil", good.Token)
	var joined struct{ Certificate []byte }
	if err := json.Unmarshal([]byte(got.body), &joined); err != nil || len(joined.Certificate) == 0 {
		s.control(t, "a good token lets a machine join", errors.New(got.String()))
		return
	}
	defer func() {
		for _, step := range [][2]string{{http.MethodPatch, `{"spec":{"lost":true}}`}, {http.MethodDelete, ""}} {
			if got := a.bearer(t, admin, step[0], s.URL()+"/v1/nodes/evil", step[1]); got.status >= 300 {
				t.Errorf("remove the node: %s", got)
			}
		}
	}()
	refused("a join token that was used, under another name", join("evil2", good.Token))
	withdrawn := s.Token(t)
	if got := a.bearer(t, admin, http.MethodDelete, s.URL()+"/v1/tokens/"+withdrawn.ID, ""); got.status >= 300 {
		s.control(t, "a join token is withdrawn", errors.New(got.String()))
	} else {
		refused("a join token that was withdrawn", join("evil3", withdrawn.Token))
	}

	var pair tls.Certificate
	for rest := joined.Certificate; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		pair.Certificate = append(pair.Certificate, block.Bytes)
	}
	pair.PrivateKey = key
	as := func(pair tls.Certificate) *asker {
		c := *a
		c.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: s.Pool, Certificates: []tls.Certificate{pair}}}}
		return &c
	}
	node := as(pair)
	var machines struct {
		Items []struct{ Name, UID string }
	}
	list := a.ask(t, ownerB, http.MethodGet, "/v1/accounts/acme/organizations/web/workspaces/shop/machines", "")
	if err := json.Unmarshal([]byte(list.body), &machines); err != nil || len(machines.Items) == 0 {
		t.Fatal(list)
	}
	m := machines.Items[0]
	theirs, _ := request(t, "system:node:"+m.Name)
	ask, _ := json.Marshal(map[string]any{"machine": "acme/web/shop/" + m.Name, "uid": m.UID, "kubeletClient": theirs, "kubeletServing": theirs, "kubeProxy": theirs})
	refused("a node without B's machine asks for the machine's certificates", node.ask(t, "", http.MethodPost, "/v1/agent/machine-certificates", string(ask)))
	before := plain(list.body, "\x00")
	report, _ := json.Marshal(map[string]any{"address": "203.0.113.7", "machines": []map[string]any{{"key": "acme/web/shop/" + m.Name, "uid": m.UID, "running": false, "removed": true}}})
	got = node.ask(t, "", http.MethodPost, "/v1/agent/report", string(report))
	after := plain(a.ask(t, ownerB, http.MethodGet, "/v1/accounts/acme/organizations/web/workspaces/shop/machines", "").body, "\x00")
	s.record(t, attempt{What: "a node reports that another's machine is gone", From: "a host", Want: "nothing is taken down", Got: got.String(), Blocked: strings.Count(before, `"uid"`) == strings.Count(after, `"uid"`) && !strings.Contains(after, "Removed")})
	pulled := node.bearer(t, "", http.MethodGet, "https://"+s.RegistryAddress()+"/v2/acme/web/tool/manifests/1", "", "X-Multipaas-Workspace", "acme/web/shop")
	refused("a node without B's machine pulls B's image", pulled)
	for _, path := range []string{"/v1/accounts/acme", "/v1/nodes", "/v1/users", "/metrics"} {
		refused("a node's certificate at GET "+path, node.ask(t, "", http.MethodGet, path, ""))
	}
	// A certificate that says that it is a node's, by an authority of one's own.
	forged := as(selfSigned(t, key, s.Nodes[0].Name()))
	got = forged.ask(t, "", http.MethodGet, "/v1/agent/state", "")
	s.record(t, attempt{What: "a node's certificate signed by A", From: "outside", Want: "no TLS, or 401", Got: got.String(), Blocked: got.status == 0 || got.status == http.StatusUnauthorized})
}

// request makes a key and a PEM certificate request.
func request(t *testing.T, name string) ([]byte, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), key
}

func selfSigned(t *testing.T, key crypto.Signer, name string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{"multipaas:nodes"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
