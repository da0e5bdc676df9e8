package identity

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

const fuzzUser = "dev@acme.example"

// fuzzed is an identity with one user, a developer of acme/web, and his session.
func fuzzed(f *testing.F) (id *Identity, session string) {
	f.Helper()
	began := time.Now() // and stays: the tokens must not expire while the fuzzer runs
	id = New(Config{Store: storetest.New(f), Issuer: "https://mp.example:7443", RegistryService: "mp.example:5000", CAKeyHash: "cafe",
		Now: func() time.Time { return began }})
	if _, err := id.CreateUser(f.Context(), fuzzUser, password, resource.User{}, nil); err != nil {
		f.Fatal(err)
	}
	db := id.store
	if err := db.Commit(f.Context(),
		store.Of[resource.Account](db).CreateOp(&resource.Account{Meta: resource.Meta{Name: "acme"}}),
		store.Of[resource.Organization](db).CreateOp(&resource.Organization{InAccount: resource.InAccount{Meta: resource.Meta{Name: "web"}, Account: "acme"}}),
		store.Of[resource.Organization](db).CreateOp(&resource.Organization{InAccount: resource.InAccount{Meta: resource.Meta{Name: "ops"}, Account: "acme"}}),
		store.Of[resource.Membership](db).CreateOp(&resource.Membership{Meta: resource.Meta{Name: fuzzUser}, Account: "acme", Organization: "web", Role: resource.RoleDeveloper}),
	); err != nil {
		f.Fatal(err)
	}
	login, err := id.Login(f.Context(), fuzzUser, password, source)
	if err != nil {
		f.Fatal(err)
	}
	return id, login.Token
}

// splice puts text in place of drop bytes of s: what a fuzzer finds about a
// token must be told relative to it, since each run has others.
func splice(s string, at, drop uint16, text string) string {
	begin := int(at) % (len(s) + 1)
	end := min(begin+int(drop), len(s))
	return s[:begin] + text + s[end:]
}

// FuzzTokens changes good tokens of every kind, and takes any text for one: only
// the very token is believed, only where it belongs, and only with the claims it
// was signed with.
func FuzzTokens(f *testing.F) {
	id, session := fuzzed(f)
	dev := &access.Principal{User: fuzzUser}
	wanted := []RegistryAccess{{Type: "repository", Name: "acme/web/hello", Actions: []string{"pull", "push"}}}
	registry, _, err := id.IssueRegistryToken(f.Context(), dev, wanted)
	if err != nil {
		f.Fatal(err)
	}
	kube, err := id.IssueKubeToken(f.Context(), role("acme", "web", resource.RoleDeveloper),
		&resource.Workspace{InOrganization: resource.InOrganization{Meta: resource.Meta{Name: "shop", UID: "uid-1"}, Account: "acme", Organization: "web"}})
	if err != nil {
		f.Fatal(err)
	}
	join, record, err := id.CreateJoinToken(f.Context(), time.Hour, "root@mp.example")
	if err != nil {
		f.Fatal(err)
	}
	tokens := []string{"", session, registry, kube.Token, join}
	for kind := range tokens {
		f.Add(byte(kind), uint16(0), uint16(0), "")
		f.Add(byte(kind), uint16(7), uint16(1), "A")
		f.Add(byte(kind), uint16(60000), uint16(0), ".")
		f.Add(byte(kind), uint16(90), uint16(4), "=\n")
	}
	f.Add(byte(0), uint16(0), uint16(0), "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.")
	f.Add(byte(0), uint16(0), uint16(0), `{"payload":"e30","signatures":[]}`)
	f.Add(byte(0), uint16(0), uint16(0), "mps_")
	f.Add(byte(0), uint16(0), uint16(0), "nothere.secret.cafe")
	f.Fuzz(func(t *testing.T, kind byte, at, drop uint16, text string) {
		ctx := t.Context()
		raw := splice(tokens[int(kind)%len(tokens)], at, drop, text)
		if p, err := id.Authenticate(ctx, raw, "192.0.2.1:1"); err == nil && (raw != session || p.User != fuzzUser || p.Sysadmin) {
			t.Errorf("%q is taken for a session of %+v", raw, p)
		} else if err != nil && raw == session {
			t.Errorf("the session is refused: %v", err)
		}
		// The signature's last character has bits that say nothing, so another text
		// may be the same token; never another token.
		if c, err := id.VerifyRegistryToken(ctx, raw); err == nil && (c.User != fuzzUser || !reflect.DeepEqual(c.Access, wanted)) {
			t.Errorf("%q is taken for a registry token with %+v", raw, c)
		} else if err != nil && raw == registry {
			t.Errorf("the registry token is refused: %v", err)
		}
		err := id.Redeem(ctx, raw, "host1", "")
		whole := strings.TrimSpace(raw)
		if good := whole == join || whole == strings.TrimSuffix(join, ".cafe"); good != (err == nil) && len(raw) <= 256 {
			t.Errorf("redeem %q: %v, the token is %q", raw, err, join)
		}
		if err != nil {
			return
		}
		if err := id.Redeem(ctx, raw, "host2", ""); err == nil {
			t.Error("a join token was used twice")
		}
		if _, err := store.Of[resource.JoinToken](id.store).Modify(ctx, record.Name, func(x *resource.JoinToken) error {
			x.UsedBy, x.UsedAt = "", nil
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzScopes asks for any scope as a developer of acme/web: what is granted was
// asked for and is in acme/web.
func FuzzScopes(f *testing.F) {
	id, _ := fuzzed(f)
	for _, s := range []string{
		"repository:acme/web/hello:pull,push", "repository:acme/ops/hello:*", "registry:catalog:*", "repository(plugin):acme/web/a/b:*,*",
		"repository:mp.example:5000/acme/web/x:pull", "repository:acme/web/../ops/x:pull", "repository:acme/web/:pull", "a:b:c d:e:f",
		strings.Repeat("repository:acme/web/x:delete ", 20), ":::", "repository:acme/web/x:pull,pull",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, scope string) {
		wanted, err := parseScopes([]string{scope})
		if err != nil {
			return
		}
		if len(wanted) > maxScopes {
			t.Fatalf("%d scopes", len(wanted))
		}
		raw, _, err := id.IssueRegistryToken(t.Context(), &access.Principal{User: fuzzUser}, wanted)
		if err != nil {
			t.Fatal(err)
		}
		got, err := id.VerifyRegistryToken(t.Context(), raw)
		if err != nil {
			t.Fatalf("what was issued is refused: %v", err)
		}
		for _, a := range got.Access {
			image, inside := strings.CutPrefix(a.Name, "acme/web/")
			if a.Type != "repository" || !inside || !repository.MatchString(image) || slices.Contains(strings.Split(image, "/"), "..") {
				t.Errorf("%q: granted %+v", scope, a)
			}
			if !slices.ContainsFunc(wanted, func(w RegistryAccess) bool { return w.Name == a.Name }) {
				t.Errorf("%q: granted %+v, which nobody asked for", scope, a)
			}
			for i, action := range a.Actions {
				if !slices.Contains([]string{"pull", "push", "delete"}, action) || slices.Contains(a.Actions[:i], action) {
					t.Errorf("%q: granted %q", scope, a.Actions)
				}
			}
		}
	})
}

// FuzzTokenRequest sends requests to the registry's token endpoint: nobody gets
// a token for anything but a password or a session, and nothing breaks.
func FuzzTokenRequest(f *testing.F) {
	id, session := fuzzed(f)
	f.Add("GET", "service=mp.example:5000&scope=repository:acme/web/x:pull", "", "Bearer @", "")
	f.Add("GET", "scope=a", "", "Basic eDp5", "")
	f.Add("GET", "", "", "", "")
	f.Add("POST", "", "grant_type=password&username=x&password=@&scope=repository:acme/web/x:pull", "", "application/x-www-form-urlencoded")
	f.Add("POST", "%zz", "grant_type=refresh_token", "", "application/x-www-form-urlencoded")
	f.Add("POST", "", "--x\r\n\r\n", "", "multipart/form-data; boundary=x")
	f.Fuzz(func(t *testing.T, method, query, body, authorization, contentType string) {
		// @ stands for the session, which each run has anew.
		fill := func(s string) string { return strings.ReplaceAll(s, "@", session) }
		r, err := http.NewRequestWithContext(t.Context(), method, "https://mp.example/v1/registry/token", strings.NewReader(fill(body)))
		if err != nil {
			return
		}
		r.URL.RawQuery = fill(query)
		r.RemoteAddr = source
		r.Header.Set("Authorization", fill(authorization))
		r.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		id.ServeRegistryToken(w, r)
		switch {
		case w.Code >= 500:
			t.Errorf("%s %q %q %q: %d %s", method, query, body, authorization, w.Code, w.Body)
		case w.Code == http.StatusOK && (r.Method != http.MethodGet || !strings.Contains(fill(authorization), session) && !basicSession(r, session)):
			t.Errorf("%s %q %q %q: a token for nothing", method, query, body, authorization)
		}
	})
}

func basicSession(r *http.Request, session string) bool {
	_, p, ok := r.BasicAuth()
	return ok && p == session
}

// FuzzStoredSecrets reads password hashes and signing keys as the store may hold
// them: a damaged one is refused, within the memory and the time of a good one.
func FuzzStoredSecrets(f *testing.F) {
	good := hashPassword(password)
	f.Add(good, password, []byte("x"), "1")
	f.Add("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "x", []byte{0x30}, "-1")
	f.Add("$argon2id$v=19$m=99999999,t=1,p=1$$", "", []byte{}, "x")
	f.Add("$argon2id$v=19$m=8,t=1,p=16$$AAAAAAAAAAAAAAAAAAAAAA", "", []byte{}, "")
	f.Add("", "", []byte{}, "")
	f.Fuzz(func(t *testing.T, phc, text string, der []byte, name string) {
		began := time.Now()
		same, err := comparePassword(phc, text)
		if same && (err != nil || (phc == good && text != password)) {
			t.Errorf("%q matches %q, %v", text, phc, err)
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%q took %v", phc, took)
		}
		if k, err := parseKey(&SigningKey{Meta: resource.Meta{Name: name}, Private: der}); err == nil && (k.key == nil || k.public.KeyID == "" || !k.public.Valid()) {
			t.Errorf("a key without its parts: %+v", k)
		}
	})
}
