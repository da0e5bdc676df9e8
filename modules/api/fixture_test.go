package api_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/identity"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/task"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/testpki"
)

const password = "correct horse battery"

// clusters stands for the planes of workspaces: those are in another process
// and have tests of their own.
type clusters struct {
	mu         sync.Mutex
	namespaces map[string]bool
	err        error
	bindErr    error // of Bind alone
	claimsErr  error
	users      []string // who changed claims
	encrypts   bool     // some host can
}

func (c *clusters) Access(_ context.Context, ws *resource.Workspace) (resource.KubeAccess, error) {
	return resource.KubeAccess{Server: "https://mp.example:6443", ServerName: ws.Status.APIHost, Context: ws.Key()}, c.err
}

func (c *clusters) Namespaces(_ context.Context, key string) ([]resource.Namespace, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []resource.Namespace
	for name := range c.namespaces {
		if ns, ok := strings.CutPrefix(name, key+"/"); ok {
			list = append(list, resource.Namespace{Name: ns, Phase: "Active"})
		}
	}
	return list, c.err
}

func (c *clusters) CreateNamespace(_ context.Context, key, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if resource.IsSystemNamespace(name) {
		return resource.ErrSystemNamespace
	}
	if c.namespaces[key+"/"+name] {
		return store.ErrExists
	}
	if c.namespaces == nil {
		c.namespaces = map[string]bool{}
	}
	c.namespaces[key+"/"+name] = true
	return c.err
}

func (c *clusters) DeleteNamespace(_ context.Context, key, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if resource.IsSystemNamespace(name) || name == "default" {
		return resource.ErrSystemNamespace
	}
	if !c.namespaces[key+"/"+name] {
		return store.ErrNotFound
	}
	delete(c.namespaces, key+"/"+name)
	return c.err
}

func (c *clusters) ClusterNodes(context.Context, string) ([]resource.ClusterNode, error) {
	return []resource.ClusterNode{{Name: "shop-1", Ready: true, Node: "host1"}}, c.err
}

// List, Create, Delete, CheckBind, Bind and Release are of the claims of a cluster: the user has to be
// somebody.
func (c *clusters) List(_ context.Context, _ *resource.Workspace, _ resource.KubeUser, namespace string) ([]resource.Claim, error) {
	return []resource.Claim{{Name: "data", Namespace: namespace, SizeBytes: 1 << 30},
		{Name: "files", Namespace: namespace, SizeBytes: 1 << 30, Shared: true}}, c.claimsErr
}

func (c *clusters) Create(_ context.Context, _ *resource.Workspace, as resource.KubeUser, want resource.Claim) (resource.Claim, bool, error) {
	c.as(as)
	if want.Name == "data" {
		return resource.Claim{Name: "data", Class: "local", SizeBytes: 1 << 30}, false, c.claimsErr
	}
	return want, true, c.claimsErr
}

func (c *clusters) Delete(_ context.Context, _ *resource.Workspace, as resource.KubeUser, _, _ string) error {
	c.as(as)
	return c.claimsErr
}

func (c *clusters) CheckBind(_ context.Context, _ *resource.Workspace, as resource.KubeUser, _ *resource.Volume) error {
	c.as(as)
	if errors.Is(c.claimsErr, resource.ErrNotReady) {
		return nil // it is from a moment later on
	}
	return c.claimsErr
}

func (c *clusters) Bind(_ context.Context, _ *resource.Workspace, as resource.KubeUser, _ *resource.Volume) error {
	c.as(as)
	return cmp.Or(c.bindErr, c.claimsErr)
}

func (c *clusters) Release(_ context.Context, _ *resource.Workspace, as resource.KubeUser, _ *resource.Volume) error {
	c.as(as)
	return c.claimsErr
}

func (c *clusters) Users(_ context.Context, _ *resource.Workspace, as resource.KubeUser, _ *resource.Volume) ([]string, error) {
	c.as(as)
	return []string{"writer-1", "writer-2"}, c.claimsErr
}

func (c *clusters) Unused(context.Context, *resource.Workspace, *resource.Volume) error {
	return c.claimsErr
}

func (c *clusters) as(who resource.KubeUser) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users = append(c.users, who.Name+" "+strings.Join(who.Groups, ","))
}

// Grow has room for 100 GiB more.
func (c *clusters) Grow(_ context.Context, _ *resource.Volume, more int64, commit func() error) error {
	if more > 100<<30 {
		return &access.Refusal{Reason: access.ErrExists, Text: "The volume can't grow: its host is full."}
	}
	return commit()
}

// Restore has room for all but what is called crowded.
func (c *clusters) Restore(_ context.Context, v *resource.Volume, commit func() error) error {
	if v.Name == "crowded" {
		return &access.Refusal{Reason: access.ErrExists, Text: "It can't be there: the host has 250 volumes of this workspace."}
	}
	return commit()
}

// Needed is what is called copied.
func (c *clusters) Needed(_ context.Context, v *resource.Volume) error {
	if v.Name == "copied" {
		return &access.Refusal{Reason: access.ErrExists, Text: "The snapshot then is being made from it."}
	}
	return nil
}

func (c *clusters) Move(_ context.Context, _ *resource.Volume, commit func(...store.Op) error) error {
	return commit()
}

// Snapshot has room for what is up to 100 GiB.
func (c *clusters) Snapshot(_ context.Context, now *resource.Snapshot, commit func(...store.Op) error) error {
	return c.room(now.Spec.SizeBytes, commit)
}

func (c *clusters) BalancePlan(context.Context) ([]resource.BalancedCopy, error) {
	return []resource.BalancedCopy{{Volume: "acme/web/shop/files", From: "host1/default", To: "host2/default"}}, nil
}

func (c *clusters) CheckEncryption(v *resource.Volume) error {
	if v.Spec.Encrypted && !c.encrypts {
		return &access.Refusal{Reason: access.ErrExists, Text: "It can't be made."}
	}
	return nil
}

func (c *clusters) Copy(_ context.Context, now *resource.Volume, commit func(...store.Op) error) error {
	return c.room(now.Spec.SizeBytes, commit)
}

func (c *clusters) room(size int64, commit func(...store.Op) error) error {
	if size > 100<<30 {
		return &access.Refusal{Reason: access.ErrExists, Text: "It can't be made: its host is full."}
	}
	return commit()
}

// images stands for the registry.
type images struct {
	names []string
}

func (i *images) List(_ context.Context, account, organization string) ([]resource.Image, error) {
	var list []resource.Image
	for _, n := range i.names {
		if strings.HasPrefix(n, account+"/"+organization+"/") {
			list = append(list, resource.Image{Name: n, Tags: []string{"1"}})
		}
	}
	return list, nil
}

func (i *images) RemoveAll(context.Context, string, string) error { return nil }

func (i *images) Delete(_ context.Context, name, _ string) error {
	for _, n := range i.names {
		if n == name {
			return nil
		}
	}
	return store.ErrNotFound
}

// auditor keeps what it is told.
type auditor struct {
	mu      sync.Mutex
	entries []api.Entry
}

func (a *auditor) Record(_ context.Context, e api.Entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.entries = append(a.entries, e)
}

// lines is a log that several may write to.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// site is the API over TLS, with a store and identity behind it.
type site struct {
	t        testing.TB
	store    *store.Store
	identity *identity.Identity
	clusters *clusters
	images   *images
	audit    *auditor
	api      *api.API
	server   *httptest.Server
	ca       *pki.CA
	tokens   map[string]string // by user
}

func newSite(t testing.TB, change ...func(*api.Config)) *site {
	t.Helper()
	s := &site{t: t, store: storetest.New(t), clusters: &clusters{}, images: &images{}, audit: &auditor{}, tokens: map[string]string{"": ""}}
	s.identity = identity.New(identity.Config{Store: s.store, Issuer: "https://mp.example:7443", RegistryService: "mp.example:5000", CAKeyHash: "cafe"})
	gatherer := prometheus.NewRegistry()
	cfg := api.Config{
		Store: s.store, Identity: s.identity, Workspaces: s.clusters, Volumes: s.clusters, Claims: s.clusters, Images: s.images, Tasks: task.New(task.Config{Store: s.store}), Audit: s.audit,
		Info: resource.Info{Version: "test", Domain: "mp.example", KubernetesVersions: []string{"1.9", "1.36", "1.35"}, Registration: "open"},
		Agent: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "agent "+r.URL.Path)
		}),
		Livez:      http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }),
		Metrics:    promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{}),
		Registerer: gatherer,
	}
	for _, fn := range change {
		fn(&cfg)
	}
	s.api = api.New(cfg)
	s.ca = testpki.New(t)
	s.server = httptest.NewUnstartedServer(nil)
	s.server.Config = s.api.Server()
	s.server.EnableHTTP2 = true
	s.server.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: s.ca.Pool()}
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	return s
}

// The cast: one user per role in acme/web, and a rival with the same in his own.
const (
	root   = "root@mp.example"
	owner  = "owner@acme.example"
	admin  = "admin@acme.example"
	dev    = "dev@acme.example"
	nobody = "nobody@mp.example"
	rival  = "owner@rival.example"
)

// people makes the cast and logs it in.
func (s *site) people() {
	s.t.Helper()
	if _, err := s.identity.CreateUser(s.t.Context(), root, password, resource.User{Spec: resource.UserSpec{Sysadmin: true}}, nil); err != nil {
		s.t.Fatal(err)
	}
	cred, err := store.Of[resource.Credential](s.store).Get(s.t.Context(), root)
	if err != nil {
		s.t.Fatal(err)
	}
	s.login(root)
	for _, u := range []string{owner, admin, dev, nobody, rival} {
		// The same password: a hash of its own for each takes most of the time.
		err := s.store.Commit(s.t.Context(), store.Of[resource.User](s.store).CreateOp(&resource.User{Meta: resource.Meta{Name: u}}),
			store.Of[resource.Credential](s.store).CreateOp(&resource.Credential{Meta: resource.Meta{Name: u}, Hash: cred.Hash}))
		if err != nil {
			s.t.Fatal(err)
		}
		s.login(u)
	}
	s.things()
}

func (s *site) login(user string) string {
	s.t.Helper()
	got, err := s.identity.Login(s.t.Context(), user, password, "192.0.2.1:1")
	if err != nil {
		s.t.Fatal(err)
	}
	s.tokens[user] = got.Token
	return got.Token
}

// settle logs in a user who was made by another, and sets a password of his own.
func (s *site) settle(user string) {
	s.t.Helper()
	s.login(user)
	s.want(http.StatusNoContent, user, "PUT", "/v1/session/password", `{"oldPassword":"`+password+`","newPassword":"a battery of my own"}`)
}

// things puts everything that the sample requests name in its place, afresh.
func (s *site) things() {
	s.t.Helper()
	meta := func(name string) resource.Meta { return resource.Meta{Name: name} }
	var drop, make []store.Op
	for _, account := range []string{"acme", "rival"} {
		people := map[string]resource.Role{"": resource.RoleOwner, "admin": resource.RoleAdmin, "dev": resource.RoleDeveloper}
		one(&drop, &make, store.Of[resource.Account](s.store), &resource.Account{Meta: resource.Meta{Name: account, UID: "uid-" + account}})
		one(&drop, &make, store.Of[resource.User](s.store), &resource.User{Meta: meta("spare@" + account + ".example"), Account: account, AccountUID: "uid-" + account})
		one(&drop, &make, store.Of[resource.Invitation](s.store), &resource.Invitation{Meta: meta("guest@" + account + ".example"), Account: account, Organization: "web",
			Role: resource.RoleDeveloper, By: "owner@" + account + ".example", CodeHash: "secret-hash", ExpiresAt: time.Now().Add(time.Hour)})
		for _, org := range []string{"web", "spare"} {
			one(&drop, &make, store.Of[resource.Organization](s.store), &resource.Organization{InAccount: resource.InAccount{Meta: meta(org), Account: account}})
			for who, role := range people {
				m := &resource.Membership{Meta: meta(who + "@" + account + ".example"), Account: account, Organization: org, Role: role}
				if who == "" {
					m.Name, m.Organization = "owner@"+account+".example", ""
					if org == "spare" {
						continue
					}
				}
				one(&drop, &make, store.Of[resource.Membership](s.store), m)
			}
		}
		ws := &resource.Workspace{InOrganization: resource.NewInOrganization(account+"/web", "shop"), Spec: resource.WorkspaceSpec{KubernetesVersion: "1.36", Datastore: resource.Kine, Machines: 2,
			MachineSize: resource.Size{MilliCPU: 1000, MemoryBytes: 2 << 30, DiskBytes: 10 << 30}, PodSecurity: "baseline"}}
		ws.UID = "uid-" + account
		ws.Status = resource.WorkspaceStatus{APIHost: "00002a.k8s.mp.example", Server: "secret-server", NodeSlots: map[string]int{"secret-host": 1}}
		one(&drop, &make, store.Of[resource.Workspace](s.store), ws)
		one(&drop, &make, store.Of[resource.App](s.store), &resource.App{InWorkspace: resource.NewInWorkspace(account+"/web/shop", "hello"),
			Spec: resource.AppSpec{Namespace: "default", Image: "hello:1", Instances: 1, Port: 8080}})
		one(&drop, &make, store.Of[resource.Volume](s.store), &resource.Volume{InWorkspace: resource.NewInWorkspace(account+"/web/shop", "data"),
			Spec: resource.VolumeSpec{Class: resource.LocalVolume, SizeBytes: 1 << 30}, Status: resource.VolumeStatus{State: resource.State{Phase: resource.Ready}, Node: "secret-host", NodeUID: "secret-uid", SizeBytes: 1 << 30}})
		one(&drop, &make, store.Of[resource.Snapshot](s.store), &resource.Snapshot{InWorkspace: resource.NewInWorkspace(account+"/web/shop", "before"),
			Spec: resource.SnapshotSpec{Volume: "data"}, Status: resource.SnapshotStatus{State: resource.State{Phase: resource.Ready}, Node: "secret-host", NodeUID: "secret-uid"}})
		drop = append(drop, store.Of[resource.Snapshot](s.store).DeleteOp(&resource.Snapshot{InWorkspace: resource.NewInWorkspace(account+"/web/shop", "fresh")}))
		drop = append(drop, store.Of[resource.Volume](s.store).DeleteOp(&resource.Volume{InWorkspace: resource.NewInWorkspace(account+"/web/shop", "fresh")}))
		one(&drop, &make, store.Of[resource.Trash](s.store), &resource.Trash{InOrganization: resource.NewInOrganization(account+"/web", "old-1"),
			Spec:   resource.TrashSpec{Volume: "old", Workspace: "shop", WorkspaceUID: "uid-" + account, NetworkID: "00002a", Was: resource.VolumeSpec{Class: resource.LocalVolume, SizeBytes: 1 << 30}, Until: time.Now().Add(time.Hour)},
			Status: resource.VolumeStatus{State: resource.State{Phase: resource.Kept}, Node: "secret-host", NodeUID: "secret-uid", SizeBytes: 1 << 30}})
		one(&drop, &make, store.Of[resource.Machine](s.store), &resource.Machine{InWorkspace: resource.NewInWorkspace(account+"/web/shop", "shop-1"), Spec: resource.MachineSpec{Node: "secret-host"}})
		one(&drop, &make, store.Of[resource.Task](s.store), &resource.Task{Meta: meta(account + "-task"), Status: resource.TaskStatus{State: resource.TaskDone},
			Spec: resource.TaskSpec{Operation: "workspace.create", Kind: "workspaces", Target: account + "/web/shop", Account: account, By: "owner@" + account + ".example"}})
	}
	one(&drop, &make, store.Of[resource.Membership](s.store), &resource.Membership{Meta: meta("second@acme.example"), Account: "acme", Role: resource.RoleOwner})
	one(&drop, &make, store.Of[resource.User](s.store), &resource.User{Meta: meta("spare@mp.example")})
	one(&drop, &make, store.Of[resource.Node](s.store),
		&resource.Node{Meta: meta("host1"), Spec: resource.NodeSpec{Pools: []resource.NodePool{{Name: "old", UID: "u1", Path: "/old"}}}})
	one(&drop, &make, store.Of[resource.Node](s.store), &resource.Node{Meta: meta("secret-host")})
	one(&drop, &make, store.Of[resource.JoinToken](s.store), &resource.JoinToken{Meta: meta("token1"), SecretHash: "secret-hash", ExpiresAt: time.Now().Add(time.Hour)})
	for _, org := range []string{"", "web"} {
		drop = append(drop, store.Of[resource.Membership](s.store).DeleteOp(&resource.Membership{Meta: meta("spare@acme.example"), Account: "acme", Organization: org}))
	}
	drop = append(drop, store.Of[resource.User](s.store).DeleteOp(&resource.User{Meta: meta("new@acme.example")}), store.Of[resource.Credential](s.store).DeleteOp(&resource.Credential{Meta: meta("new@acme.example")}),
		store.Of[resource.Organization](s.store).DeleteOp(&resource.Organization{InAccount: resource.InAccount{Meta: meta("fresh"), Account: "acme"}}))
	for _, ops := range [][]store.Op{drop, make} {
		if err := s.store.Commit(s.t.Context(), ops...); err != nil {
			s.t.Fatal(err)
		}
	}
	s.clusters.mu.Lock()
	s.clusters.namespaces = map[string]bool{"acme/web/shop/staging": true}
	s.clusters.mu.Unlock()
	s.images.names = []string{"acme/web/hello", "rival/web/hello"}
}

func one[T resource.Object](drop, make *[]store.Op, kind store.Kind[T], obj T) {
	*drop, *make = append(*drop, kind.DeleteOp(obj)), append(*make, kind.CreateOp(obj))
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// problem is the body of an answer that is one.
func (a answer) problem(t testing.TB) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || a.header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("no problem: %d %s %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	if p.Status != a.status || p.Code == "" || p.Detail == "" || p.RequestID == "" || p.RequestID != a.header.Get("X-Request-Id") {
		t.Errorf("problem lacks something: %s", a.body)
	}
	return p
}

func (s *site) do(user, method, path, body string, header ...string) answer {
	s.t.Helper()
	got, err := s.try(s.tokens[user], method, path, body, header...)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

func (s *site) try(token, method, path, body string, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.server.URL+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.server.Client().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(data)}, err
}

// want does a request and checks the status.
func (s *site) want(status int, user, method, path, body string, header ...string) answer {
	s.t.Helper()
	got := s.do(user, method, path, body, header...)
	if got.status != status {
		s.t.Errorf("%s %s %s as %q: got %d %s, want %d", method, path, body, user, got.status, got.body, status)
	}
	if got.status >= 400 {
		got.problem(s.t)
	}
	return got
}

// into reads the body.
func into[T any](t testing.TB, a answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
	return v
}

// nodeClient has a certificate of the given organizations.
func (s *site) nodeClient(name string, organizations ...string) *http.Client {
	s.t.Helper()
	certPEM, keyPEM, err := s.ca.Issue(pki.Request{CommonName: name, Organizations: organizations, Client: true})
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(s.server.Certificate())
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}}}
}
