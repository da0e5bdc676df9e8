package api_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// sample is a request that does its operation, as one who may.
type sample struct {
	op     access.Operation
	method string
	path   string
	body   string
	status int
}

const (
	inAcme = "/v1/accounts/acme"
	inWeb  = inAcme + "/organizations/web"
	inShop = inWeb + "/workspaces/shop"
)

// samples is one request per operation of the API; TestDocument misses none.
func samples() []sample {
	return []sample{
		{"info", "GET", "/v1/info", "", 200},
		{"register", "POST", "/v1/register", `{"account":"taken!","email":"x@y.example","password":"` + password + `"}`, 422}, // allowed, and wrong: nothing is left behind
		{"login", "POST", "/v1/login", `{"email":"` + dev + `","password":"` + password + `"}`, 200},
		{"session.get", "GET", "/v1/session", "", 200},
		{"invitations.own", "GET", "/v1/session/invitations", "", 200},
		{"invitations.accept", "POST", "/v1/session/invitations/accept", `{"account":"acme","organization":"web","code":"X"}`, 404}, // got through to the check of the code
		{"invitations.decline", "POST", "/v1/session/invitations/decline", `{"account":"acme"}`, 404},
		{"password.change", "PUT", "/v1/session/password", `{"oldPassword":"wrong","newPassword":"` + password + `"}`, 403}, // got through to the check of the password
		{"users.create", "POST", "/v1/users", `{"email":"new@acme.example","password":"` + password + `"}`, 201},
		{"users.list", "GET", "/v1/users", "", 200},
		{"users.get", "GET", "/v1/users/spare@mp.example", "", 200},
		{"users.patch", "PATCH", "/v1/users/spare@mp.example", `{"spec":{"displayName":"Spare"}}`, 200},
		{"users.password", "PUT", "/v1/users/spare@mp.example/password", `{"password":"` + password + `"}`, 204},
		{"users.delete", "DELETE", "/v1/users/spare@mp.example", "", 204},
		{"accounts.list", "GET", "/v1/accounts", "", 200},
		{"accounts.get", "GET", inAcme, "", 200},
		{"accounts.patch", "PATCH", inAcme, `{"spec":{"limits":{"workspaces":9}}}`, 200},
		{"accounts.delete", "DELETE", inAcme, "", 409}, // not empty
		{"owners.list", "GET", inAcme + "/owners", "", 200},
		{"owners.put", "PUT", inAcme + "/owners/spare@acme.example", "", 201},
		{"owners.delete", "DELETE", inAcme + "/owners/second@acme.example", "", 204},
		{"invitations.list", "GET", inAcme + "/invitations", "", 200},
		{"organizations.list", "GET", inAcme + "/organizations", "", 200},
		{"organizations.get", "GET", inWeb, "", 200},
		{"organizations.put", "PUT", inAcme + "/organizations/fresh", "{}", 201},
		{"organizations.delete", "DELETE", inAcme + "/organizations/spare", "", 204},
		{"members.list", "GET", inWeb + "/members", "", 200},
		{"members.put", "PUT", inWeb + "/members/spare@acme.example", `{"role":"developer"}`, 201},
		{"members.delete", "DELETE", inWeb + "/members/dev@acme.example", "", 204},
		{"workspaces.list", "GET", inWeb + "/workspaces", "", 200},
		{"workspaces.get", "GET", inShop, "", 200},
		{"workspaces.put", "PUT", inShop, `{"spec":{"machines":3}}`, 202},
		{"workspaces.patch", "PATCH", inShop, `{"spec":{"machines":3}}`, 202},
		{"workspaces.delete", "DELETE", inShop, "", 202},
		{"machines.list", "GET", inShop + "/machines", "", 200},
		{"clusternodes.list", "GET", inShop + "/nodes", "", 200},
		{"namespaces.list", "GET", inShop + "/namespaces", "", 200},
		{"namespaces.put", "PUT", inShop + "/namespaces/fresh", "", 201},
		{"namespaces.delete", "DELETE", inShop + "/namespaces/staging", "", 204},
		{"kube.access", "GET", inShop + "/kube", "", 200},
		{"kube.credential", "POST", inShop + "/kube/credential", "", 200},
		{"apps.list", "GET", inShop + "/apps", "", 200},
		{"apps.get", "GET", inShop + "/apps/hello", "", 200},
		{"apps.put", "PUT", inShop + "/apps/hello", `{"spec":{"image":"hello:2","instances":2}}`, 202},
		{"apps.patch", "PATCH", inShop + "/apps/hello", `{"spec":{"instances":5}}`, 202},
		{"apps.delete", "DELETE", inShop + "/apps/hello", "", 202},
		{"volumes.list", "GET", inShop + "/volumes", "", 200},
		{"volumes.get", "GET", inShop + "/volumes/data", "", 200},
		{"volumes.put", "PUT", inShop + "/volumes/fresh", `{"spec":{"sizeBytes":1073741824}}`, 202},
		{"volumes.patch", "PATCH", inShop + "/volumes/data", `{"spec":{"sizeBytes":2147483648}}`, 202},
		{"volumes.delete", "DELETE", inShop + "/volumes/data?purge=true", "", 202},
		{"snapshots.list", "GET", inShop + "/snapshots", "", 200},
		{"snapshots.get", "GET", inShop + "/snapshots/before", "", 200},
		{"snapshots.put", "PUT", inShop + "/snapshots/fresh", `{"spec":{"volume":"data"}}`, 202},
		{"snapshots.delete", "DELETE", inShop + "/snapshots/before", "", 202},
		{"volumes.bind", "PUT", inShop + "/volumes/data/claim", `{"claim":"files"}`, 202},
		{"volumes.unbind", "DELETE", inShop + "/volumes/data/claim", "", 200},
		{"volumes.move", "POST", inShop + "/volumes/data/move", `{"to":"shop-1"}`, 202},
		{"volumes.scrub", "POST", inShop + "/volumes/data/scrub", "", 409},
		{"volumes.beginimport", "POST", inShop + "/volumes/data/content", "", 409}, // all of it is there
		{"volumes.import", "PUT", inShop + "/volumes/data/content?id=some", "", 409},
		{"snapshots.export", "GET", inShop + "/snapshots/before/content?from=0", "", 409}, // it is not made yet
		{"trash.list", "GET", inWeb + "/trash", "", 200},
		{"trash.get", "GET", inWeb + "/trash/old-1", "", 200},
		{"trash.delete", "DELETE", inWeb + "/trash/old-1", "", 202},
		{"trash.restore", "POST", inWeb + "/trash/old-1/restore", `{"volume":"fresh"}`, 202},
		{"claims.list", "GET", inShop + "/namespaces/default/claims", "", 200},
		{"claims.put", "PUT", inShop + "/namespaces/default/claims/fresh", `{"spec":{"sizeBytes":1073741824}}`, 201},
		{"claims.delete", "DELETE", inShop + "/namespaces/default/claims/data", "", 204},
		{"images.list", "GET", inWeb + "/images", "", 200},
		{"images.delete", "DELETE", inWeb + "/images/hello?tag=1", "", 204},
		{"nodes.list", "GET", "/v1/nodes", "", 200},
		{"nodes.get", "GET", "/v1/nodes/host1", "", 200},
		{"nodes.patch", "PATCH", "/v1/nodes/host1", `{"spec":{"unschedulable":true}}`, 200},
		{"nodes.addpool", "POST", "/v1/nodes/host1/pools", `{"name":"fast","device":"/dev/sdb"}`, 200},
		{"nodes.removepool", "DELETE", "/v1/nodes/host1/pools/old", "", 200},
		{"balances.get", "GET", "/v1/balances/storage", "", 200},
		{"balances.put", "PUT", "/v1/balances/storage", `{"spec":{"stop":true}}`, 202},
		{"nodes.delete", "DELETE", "/v1/nodes/host1?lost=true", "", 202},
		{"tokens.create", "POST", "/v1/tokens", `{"role":"node"}`, 201},
		{"tokens.list", "GET", "/v1/tokens", "", 200},
		{"tokens.delete", "DELETE", "/v1/tokens/token1", "", 204},
		{"tasks.list", "GET", "/v1/tasks", "", 200},
		{"tasks.get", "GET", "/v1/tasks/acme-task", "", 200},
		{"tasks.events", "GET", "/v1/tasks/acme-task/events", "", 200},
		{"logout", "POST", "/v1/logout", "", 204},
	}
}

// TestEveryOperationAsEveryRole does each operation as each role, and compares
// with the authorization table.
func TestEveryOperationAsEveryRole(t *testing.T) {
	s := newSite(t)
	s.people()
	roles := []struct {
		user string
		role access.Roles
	}{{"", access.Anonymous}, {nobody, access.User}, {dev, access.Developer}, {admin, access.Admin}, {owner, access.Owner}, {root, access.Sysadmin}}
	for _, c := range samples() {
		rule, _ := access.Lookup(c.op)
		for _, r := range roles {
			want := c.status
			switch {
			case r.role&rule.Allow != 0:
			case r.role == access.Anonymous:
				want = http.StatusUnauthorized
			case rule.Scope != access.Platform && r.role == access.User, rule.Scope == access.OfObject:
				want = http.StatusNotFound
			default:
				want = http.StatusForbidden
			}
			if c.method != http.MethodGet || r.role == access.Anonymous {
				s.things()
			}
			got := s.want(want, r.user, c.method, c.path, c.body)
			for _, secret := range []string{"secret-hash", "nodeSlots", "argon2", "codeHash"} {
				if strings.Contains(got.body, secret) {
					t.Errorf("%s answers with %s: %s", c.op, secret, got.body)
				}
			}
			if r.user != root && (strings.Contains(got.body, "secret-") || strings.Contains(got.body, `"host1"`)) {
				t.Errorf("%s tells a tenant about hosts: %s", c.op, got.body)
			}
			if c.op == "logout" && r.user != "" {
				s.login(r.user)
			}
		}
	}
	if n := len(s.audit.entries); n < 100 {
		t.Errorf("%d audit entries", n)
	}
	for _, e := range s.audit.entries {
		if e.Operation == "" || e.Who == "" || e.Source == "" || e.Outcome == "" || e.Request == "" || !strings.HasPrefix(e.Target, "/v1/") {
			t.Errorf("audit entry lacks something: %+v", e)
		}
	}
}

// document is what the tests read of the OpenAPI document.
type document struct {
	OpenAPI    string `json:"openapi"`
	Components struct {
		Schemas map[string]json.RawMessage `json:"schemas"`
	} `json:"components"`
	Paths map[string]map[string]struct {
		OperationID string                       `json:"operationId"`
		Security    []map[string][]string        `json:"security"`
		Responses   map[string]json.RawMessage   `json:"responses"`
		Parameters  []struct{ Name, In string }  `json:"parameters"`
		Roles       []string                     `json:"x-multipaas-roles"`
		Summary     string                       `json:"summary"`
		RequestBody struct{ Required bool }      `json:"requestBody"`
		Content     map[string]map[string]string `json:"-"`
	} `json:"paths"`
}

func (s *site) document() document {
	s.t.Helper()
	got := s.want(http.StatusOK, "", "GET", "/v1/openapi.json", "")
	return into[document](s.t, got)
}

// TestDocument: the OpenAPI document, the authorization table and the samples
// have the same operations, and no reference leads nowhere.
func TestDocument(t *testing.T) {
	s := newSite(t)
	doc, text := s.document(), s.do("", "GET", "/v1/openapi.json", "").body
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("version %s", doc.OpenAPI)
	}
	var described, table, sampled []string
	byID := map[string]string{}
	param := regexp.MustCompile(`\{(\w+)\}`)
	for path, methods := range doc.Paths {
		for method, op := range methods {
			described = append(described, op.OperationID)
			byID[op.OperationID] = strings.ToUpper(method) + " " + path
			rule, _ := access.Lookup(access.Operation(op.OperationID))
			if open := rule.Allow&access.Anonymous != 0; open != (len(op.Security) == 0) {
				t.Errorf("%s: security %v, open %v", op.OperationID, op.Security, open)
			}
			if op.Responses["default"] == nil || op.Summary == "" || !slices.Equal(op.Roles, rule.Allow.Names()) {
				t.Errorf("%s lacks something: %+v", op.OperationID, op)
			}
			var inPath []string
			for _, p := range op.Parameters {
				if p.In == "path" {
					inPath = append(inPath, p.Name)
				}
			}
			var want []string
			for _, m := range param.FindAllStringSubmatch(path, -1) {
				want = append(want, m[1])
			}
			slices.Sort(inPath)
			slices.Sort(want)
			if !slices.Equal(inPath, want) {
				t.Errorf("%s: parameters %v, path %s", op.OperationID, inPath, path)
			}
			// The table's scope is what the path names.
			switch named := strings.Contains(path, "{organization}"); {
			case rule.Scope == access.InOrganization && !named,
				rule.Scope == access.InAccount && !strings.Contains(path, "{account}"),
				rule.Scope == access.Platform && strings.Contains(path, "{account}"):
				t.Errorf("%s: scope %s, path %s", op.OperationID, rule.Scope, path)
			}
		}
	}
	for _, r := range access.Table() {
		if r.Form == access.HTTP {
			table = append(table, string(r.Operation))
		}
	}
	for _, c := range samples() {
		sampled = append(sampled, string(c.op))
		path, _, _ := strings.Cut(c.path, "?")
		method, pattern, _ := strings.Cut(byID[string(c.op)], " ")
		if re := regexp.MustCompile("^" + param.ReplaceAllString(pattern, `[^/]+`) + "$"); method != c.method || !re.MatchString(path) {
			t.Errorf("sample of %s is %s %s, described is %s", c.op, c.method, path, byID[string(c.op)])
		}
	}
	slices.Sort(described)
	slices.Sort(table)
	slices.Sort(sampled)
	if !slices.Equal(described, table) {
		t.Errorf("described %v\ntable     %v", described, table)
	}
	if !slices.Equal(described, sampled) {
		t.Errorf("described %v\nsampled   %v", described, sampled)
	}
	for _, m := range regexp.MustCompile(`"\$ref":"#/components/schemas/([^"]+)"`).FindAllStringSubmatch(text, -1) {
		if doc.Components.Schemas[m[1]] == nil {
			t.Errorf("no schema %s", m[1])
		}
	}
	if strings.Contains(text, "ErrorModel") {
		t.Error("the document has errors that nobody answers with")
	}
}

// TestIsolation asks, as the owner of another account, for every path of acme,
// and for every mixture of the two: all of it does not exist for him, and it
// does not exist in the same words as what is not there.
func TestIsolation(t *testing.T) {
	s := newSite(t)
	s.people()
	normal := func(a answer) string {
		p := a.problem(t)
		p.RequestID = ""
		text, _ := json.Marshal(p)
		return string(text)
	}
	for _, c := range samples() {
		if !strings.Contains(c.path, "acme") || strings.Contains(c.path, "/v1/users/") {
			continue
		}
		got := s.want(http.StatusNotFound, rival, c.method, c.path, c.body)
		if strings.HasPrefix(c.path, "/v1/tasks") {
			absent := s.want(http.StatusNotFound, rival, c.method, strings.Replace(c.path, "acme-task", "acme-none", 1), c.body)
			if normal(got) != strings.ReplaceAll(normal(absent), "acme-none", "acme-task") {
				t.Errorf("%s: a task of others is told from none: %s, %s", c.op, got.body, absent.body)
			}
			continue
		}
		absent := s.want(http.StatusNotFound, rival, c.method, strings.Replace(c.path, "acme", "nothere", 1), c.body)
		if normal(got) != normal(absent) {
			t.Errorf("%s: what is others' is told from what is not there: %s, %s", c.op, got.body, absent.body)
		}
		// His own names in front, acme's behind: nothing of acme's may be reached.
		for _, path := range []string{
			strings.Replace(c.path, "acme", "rival%2F..%2Facme", 1),
			strings.Replace(c.path, "acme", "rival/../acme", 1),
			strings.Replace(c.path, "acme", "acme%00", 1),
			strings.Replace(c.path, "acme", "ACME", 1),
			strings.Replace(c.path, "acme", "rival,1", 1),
			strings.Replace(c.path, "/accounts/acme", "/accounts//acme", 1),
		} {
			got, err := s.try(s.tokens[rival], c.method, path, c.body)
			if err != nil {
				t.Fatal(err)
			}
			if got.status < 300 {
				t.Errorf("%s %s: got %d %s", c.method, path, got.status, got.body)
			}
		}
	}
	// Pages can't begin elsewhere.
	for _, after := range []string{"../../acme/web/", "../acme", "acme/web/aaa", "%00", "\xff", ",1", "aaa,1", "aaa,999999999"} {
		got := s.do(rival, "GET", "/v1/accounts/rival/organizations/web/workspaces?after="+url.QueryEscape(after), "")
		if strings.Contains(got.body, "acme") || got.status >= 500 {
			t.Errorf("after=%q: %d %s", after, got.status, got.body)
		}
	}
	// Lists hold what is one's own.
	for user, own := range map[string]string{rival: "rival", owner: "acme", dev: "acme"} {
		for _, path := range []string{"/v1/accounts", "/v1/tasks", "/v1/tasks?account=acme", "/v1/tasks?target=acme/web", "/v1/session"} {
			got := s.want(http.StatusOK, user, "GET", path, "")
			other := map[string]string{"rival": "acme", "acme": "rival"}[own]
			if strings.Contains(strings.ReplaceAll(got.body, own+".example", ""), other) {
				t.Errorf("%s of %s has %s: %s", path, user, other, got.body)
			}
		}
	}
	// The admin of one organization is nobody in the next of the same account.
	if err := store.Of[resource.Membership](s.store).Delete(t.Context(), mustGet(t, store.Of[resource.Membership](s.store), "acme/spare/"+admin)); err != nil {
		t.Fatal(err)
	}
	s.want(http.StatusNotFound, admin, "GET", inAcme+"/organizations/spare", "")
	s.want(http.StatusNotFound, admin, "PUT", inAcme+"/organizations/spare/members/"+admin, `{"role":"admin"}`)
	if got := s.want(http.StatusOK, admin, "GET", inAcme+"/organizations", ""); strings.Contains(got.body, "spare") {
		t.Errorf("the list has what one has no role in: %s", got.body)
	}
	// After a role is taken, it is gone with the next request.
	s.want(http.StatusNoContent, owner, "DELETE", inWeb+"/members/"+dev, "")
	s.want(http.StatusNotFound, dev, "GET", inShop, "")
}

// TestNodesHaveOnlyWhatTheyCan: what would cut off another host, or the host itself, is
// refused, and nothing changes; what was set can be taken back.
func TestNodesHaveOnlyWhatTheyCan(t *testing.T) {
	s := newSite(t, func(c *api.Config) {
		c.NodeAddress = func(a netip.Addr) error {
			if a == netip.MustParseAddr("192.0.2.1") {
				return errors.New("192.0.2.1 is the server's")
			}
			return nil
		}
	})
	s.people()
	s.things()
	nodes := store.Of[resource.Node](s.store)
	address := func(a string) func(*resource.Node) error {
		return func(n *resource.Node) error { n.Status.Address = netip.MustParseAddr(a); return nil }
	}
	if _, err := nodes.Modify(t.Context(), "host1", address("192.0.2.11")); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]string{"host2": "192.0.2.12", "host3": "192.0.2.13"} {
		n := &resource.Node{Meta: resource.Meta{Name: name}}
		_ = address(a)(n)
		if name == "host3" {
			n.Spec.Address = netip.MustParseAddr("192.0.2.23") // it moves
		}
		if err := nodes.Create(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	m := &resource.Machine{
		InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-2"),
		Spec:        resource.MachineSpec{Node: "host1", Size: resource.Size{MilliCPU: 2000, MemoryBytes: 2 << 30, DiskBytes: 8 << 30}},
	}
	if err := store.Of[resource.Machine](s.store).Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		node, spec string
		want       int
		says       string
	}{
		{"host1", `"address":"192.0.2.12"`, 409, "192.0.2.12 is the address of node host2."},
		{"host1", `"address":"192.0.2.12","zone":"z"`, 409, "host2"},
		{"host1", `"address":"192.0.2.13"`, 409, "host3"},
		{"host1", `"address":"192.0.2.23"`, 409, "host3"},
		{"host1", `"address":"192.0.2.1"`, 409, "192.0.2.1 is the server's."},
		{"host1", `"address":"192.0.2.11"`, 200, ""},
		{"host1", `"address":"192.0.2.44"`, 200, ""},
		{"host1", `"addresses":["198.51.100.1","192.0.2.12"]`, 409, "host2"},
		{"host1", `"addresses":["192.0.2.1"]`, 409, "the server's"},
		{"host1", `"addresses":["198.51.100.1"]`, 200, ""},
		{"host2", `"addresses":["198.51.100.1"]`, 200, ""}, // one that moves between hosts
		{"host1", `"notAddresses":["192.0.2.44"]`, 422, "by which the node is reached"},
		{"host1", `"notAddresses":["192.0.2.12"]`, 200, ""},
		{"host1", `"address":""`, 200, ""},
		{"host1", `"address":"nowhere"`, 422, "nowhere"},
		{"host1", `"address":"2001:db8::1"`, 422, "no IPv4 address"},
		{"host1", `"notAddresses":["192.0.2.11"]`, 422, "by which the node is reached"},
		{"host1", `"address":"192.0.2.45","notAddresses":["192.0.2.11"]`, 200, ""},
		{"host1", `"capacity":{"memoryBytes":1}`, 422, "less than the"},
		{"host1", `"capacity":{"milliCPU":1999}`, 422, "1999m is less than the 2 that its machines have been promised"},
		{"host1", `"capacity":{"diskBytes":8589934591}`, 422, "capacity.diskBytes"},
		{"host1", `"capacity":{"milliCPU":2000,"memoryBytes":1073741824}`, 422, "1Gi is less than the 2Gi"},
		{"host1", `"capacity":{"milliCPU":2000,"memoryBytes":2147483648,"diskBytes":8589934592}`, 200, ""},
		{"host1", `"capacity":{"milliCPU":0,"memoryBytes":0,"diskBytes":0}`, 200, ""},
		{"host2", `"capacity":{"memoryBytes":1}`, 422, "less than the smallest machine has, 512Mi"},
		{"host2", `"capacity":{"milliCPU":199,"diskBytes":1}`, 422, "mp nodes cordon host2"},
		{"host2", `"capacity":{"milliCPU":200}`, 200, ""},
	} {
		was := mustGet(t, nodes, c.node)
		got := s.want(c.want, root, "PATCH", "/v1/nodes/"+c.node, `{"spec":{`+c.spec+`}}`)
		if !strings.Contains(got.body, c.says) {
			t.Errorf("%s %s: %q is missing in %s", c.node, c.spec, c.says, got.body)
		}
		if now := mustGet(t, nodes, c.node); c.want != 200 && now.Revision != was.Revision {
			t.Errorf("%s %s: was refused, and changed %+v", c.node, c.spec, now.Spec)
		}
	}
	// GlusterFS knows copies by their hosts' addresses, be their volume deleted.
	v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shared"), Spec: resource.VolumeSpec{Class: resource.SharedVolume}}
	v.DeletedAt = new(time.Now())
	v.Status.Leaving = []resource.VolumeBrick{{UID: "b", NodeUID: mustGet(t, nodes, "host2").UID}}
	if err := store.Of[resource.Volume](s.store).Create(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if got := s.want(409, root, "PATCH", "/v1/nodes/host2", `{"spec":{"address":"192.0.2.46"}}`); !strings.Contains(got.body, "1 copies of shared") {
		t.Errorf("of a host with copies: %s", got.body)
	}
	s.want(200, root, "PATCH", "/v1/nodes/host2", `{"spec":{"address":"192.0.2.12"}}`)
	s.want(200, root, "PATCH", "/v1/nodes/host1", `{"spec":{"address":"192.0.2.46"}}`)
	if n := mustGet(t, nodes, "host1"); n.Spec.Capacity != (resource.Size{}) || n.Status.Allocated != (resource.Size{}) {
		t.Errorf("in the end: %+v", n)
	}
}

func TestNodesSayWhatIsPromisedOfThem(t *testing.T) {
	s := newSite(t)
	s.people()
	s.things()
	machines := store.Of[resource.Machine](s.store)
	two := resource.Size{MilliCPU: 2000, MemoryBytes: 2 << 30, DiskBytes: 8 << 30}
	for name, node := range map[string]string{"shop-2": "host1", "shop-3": "host1", "shop-4": "host2"} {
		m := &resource.Machine{
			InWorkspace: resource.NewInWorkspace("acme/web/shop", name),
			Spec:        resource.MachineSpec{Node: node, Size: two},
		}
		if err := machines.Create(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	four := two.Add(two)
	read := func(a answer, v any) {
		t.Helper()
		if err := json.Unmarshal([]byte(a.body), v); err != nil {
			t.Fatal(err)
		}
	}
	var list resource.List[*resource.Node]
	read(s.want(200, root, "GET", "/v1/nodes", ""), &list)
	if len(list.Items) != 2 || list.Items[0].Status.Allocated != four {
		t.Errorf("the list says %+v, want %+v of host1", list.Items, four)
	}
	for method, body := range map[string]string{"GET": "", "PATCH": `{"spec":{"unschedulable":true}}`} {
		var one resource.Node
		read(s.want(200, root, method, "/v1/nodes/host1", body), &one)
		if one.Status.Allocated != four {
			t.Errorf("%s says %+v, want %+v", method, one.Status.Allocated, four)
		}
	}
	for _, field := range []string{"addresses", "notAddresses"} {
		for addresses, want := range map[string]int{`"203.0.113.9"`: 200, ``: 200, `"::1"`: 422, `"127.0.0.1"`: 422} {
			read(s.want(want, root, "PATCH", "/v1/nodes/host1", `{"spec":{"`+field+`":[`+addresses+`]}}`), &struct{}{})
		}
	}
	if kept, err := store.Of[resource.Node](s.store).Get(t.Context(), "host1"); err != nil || kept.Status.Allocated != (resource.Size{}) {
		t.Errorf("the store keeps %+v, %v", kept.Status.Allocated, err)
	}
	m, err := machines.Get(t.Context(), "acme/web/shop/shop-2")
	if err != nil {
		t.Fatal(err)
	}
	if err := machines.Delete(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	var one resource.Node
	read(s.want(200, root, "GET", "/v1/nodes/host1", ""), &one)
	if one.Status.Allocated != two {
		t.Errorf("with a machine less: %+v, want %+v", one.Status.Allocated, two)
	}
}
