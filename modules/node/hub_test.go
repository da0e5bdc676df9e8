package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/appliance/seal"
	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/testpki"
	"github.com/multipaas/multipaas/testing/wait"
)

// tokens takes one secret; identity's own tests are about real ones.
type tokens struct {
	refuse error
	used   bool
}

func (t *tokens) Redeem(_ context.Context, token, name, source string) error {
	t.used = t.refuse == nil
	return t.refuse
}

var n1Address = netip.MustParseAddr("192.0.2.11")

type platform struct {
	*Hub
	url   string
	ca    *pki.CA
	store *store.Store
	toks  *tokens
}

func start(t *testing.T) *platform {
	t.Helper()
	ca := testpki.New(t)
	db := storetest.New(t)
	log := slog.New(slog.DiscardHandler)
	p := &platform{ca: ca, store: db, toks: &tokens{}}
	sealed, err := seal.New(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	cfg := HubConfig{Log: log, Store: db, Seal: sealed, CA: ca, Storage: testpki.New(t), Tokens: p.toks, Server: "s1", Address: netip.MustParseAddr("192.0.2.1"), Plan: wire.DefaultPlan(),
		Nodes: store.Of[resource.Node](db).Cache(log), Workspaces: store.Of[resource.Workspace](db).Cache(log), Machines: store.Of[resource.Machine](db).Cache(log), Keys: store.Of[resource.WorkspaceKeys](db).Cache(log), Claims: store.Of[resource.VNI](db).Cache(log), Volumes: store.Of[resource.Volume](db).Cache(log), Snapshots: store.Of[resource.Snapshot](db).Cache(log), Trash: store.Of[resource.Trash](db).Cache(log)}
	p.Hub = NewHub(cfg)
	for _, run := range []func(context.Context, func()) error{cfg.Nodes.Run, cfg.Workspaces.Run, cfg.Machines.Run, cfg.Keys.Run, cfg.Claims.Run, cfg.Volumes.Run, cfg.Snapshots.Run, cfg.Trash.Run} {
		parttest.Run(t, run)
	}
	leaf, key, err := ca.Issue(pki.Request{CommonName: "s1", Server: true, Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(append(leaf, ca.CertPEM()...), key)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from := r.Header.Get("Test-From"); from != "" {
			r.RemoteAddr = from + ":9" // all hosts of a test are one
		}
		p.ServeHTTP(w, r)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: ca.Pool()}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	p.url = srv.URL
	return p
}

func (p *platform) token() string { return "id.secret." + p.ca.KeyHash() }

// host is a machine that has joined.
type host struct {
	dir       string
	from      netip.Addr // where its reports come from; none: where they say
	transport http.RoundTripper
	url       string
}

func (p *platform) join(t *testing.T, name string) *host {
	t.Helper()
	h := &host{dir: t.TempDir()}
	if err := agent.Join(t.Context(), h.dir, p.url, name, p.token()); err != nil {
		t.Fatalf("join %s: %v", name, err)
	}
	c, err := agent.Open(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	h.transport, h.url = c.Transport(), p.url
	t.Cleanup(h.transport.(*http.Transport).CloseIdleConnections)
	return h
}

// refused is an answer other than 200, and errGone is 410.
type refused struct {
	status int
	text   string
}

func (r refused) Error() string { return r.text }

func (r refused) Is(err error) bool { return err == errGone && r.status == http.StatusGone }

var errGone = errors.New("gone")

// call posts as the host's agent does.
func (h *host) call(ctx context.Context, path string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	if rep, ok := body.(wire.Report); ok && !h.from.IsValid() {
		req.Header.Set("Test-From", rep.Address.String())
	} else if h.from.IsValid() {
		req.Header.Set("Test-From", h.from.String())
	}
	res, err := (&http.Client{Transport: h.transport}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return refused{res.StatusCode, string(text)}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// certificate is the one that the host shows.
func (h *host) certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	pair, err := h.transport.(*http.Transport).TLSClientConfig.GetClientCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestJoinGivesAnIdentityThatWorks(t *testing.T) {
	p := start(t)
	c := p.join(t, "n1")
	if err := c.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address}, nil); err != nil {
		t.Fatalf("report: %v", err)
	}
	n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil || n.Status.Phase != resource.Ready || n.Status.Address != n1Address {
		t.Errorf("after a report the node is %+v, %v", n, err)
	}
}

func TestJoinRefuses(t *testing.T) {
	p := start(t)
	for name, c := range map[string]struct {
		server, name, token string
		refuse              error
		want                string
	}{
		"a token of another platform": {p.url, "n1", "id.secret." + strings.Repeat("0", 64), nil, "another platform"},
		"half a token":                {p.url, "n1", "id.secret", nil, "not complete"},
		"a name that can't be":        {p.url, "N 1", p.token(), nil, "not a valid name"},
		"the server's name":           {p.url, "s1", p.token(), nil, "the server has this name"},
		"an address without https":    {"http://127.0.0.1", "n1", p.token(), nil, "https://"},
		"a token that was used":       {p.url, "n1", p.token(), refusal{http.StatusUnauthorized, "the token was used"}, "the token was used"},
	} {
		t.Run(name, func(t *testing.T) {
			p.toks.refuse = c.refuse
			dir := t.TempDir()
			err := agent.Join(t.Context(), dir, c.server, c.name, c.token)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if _, _, err := agent.Joined(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a refused join left an identity: %v", err)
			}
		})
	}
}

func TestRemovedNodeIsToldSo(t *testing.T) {
	p := start(t)
	c := p.join(t, "n1")
	n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Of[resource.Node](p.store).Delete(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if err := c.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address}, nil); !errors.Is(err, errGone) {
		t.Errorf("got %v, want errGone", err)
	}
	// Another machine under the same name doesn't bring the old certificate back.
	p.join(t, "n1")
	if err := c.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address}, nil); !errors.Is(err, errGone) {
		t.Errorf("with a namesake: got %v, want errGone", err)
	}
}

func TestOnlyNodesAreHeard(t *testing.T) {
	p := start(t)
	// A certificate of the platform's authority that is no node's.
	leaf, key, err := p.ca.Issue(pki.Request{CommonName: "n1", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(leaf, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, certs := range map[string][]tls.Certificate{"none": nil, "not a node's": {pair}} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool(), Certificates: certs}}
		res, err := (&http.Client{Transport: tr}).Get(p.url + wire.StatePath)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		tr.CloseIdleConnections()
		if res.StatusCode != http.StatusUnauthorized {
			t.Errorf("certificate %s: got %s, want 401", name, res.Status)
		}
	}
}

func TestMachineCertificatesOnlyForOwnMachines(t *testing.T) {
	p := start(t)
	mine, other := p.join(t, "n1"), p.join(t, "n2")
	ca, key, err := pki.NewCA("kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	keys := &resource.WorkspaceKeys{Workspace: "acme/web/shop", CACert: ca, CAKey: key}
	m := &resource.Machine{InWorkspace: resource.InWorkspace{Account: "acme", Organization: "web", Workspace: "shop"}}
	m.Name, m.Spec.Node, m.Spec.Index = "shop-1", "n1", 1
	drained := &resource.Machine{InWorkspace: resource.InWorkspace{Account: "acme", Organization: "web", Workspace: "shop"}}
	drained.Name, drained.Spec.Node, drained.Spec.Index = "shop-2", "n1", 2
	drained.Status.Conditions.Set(resource.Condition{Type: resource.MachineDrained, Status: resource.True})
	if err := p.store.Commit(t.Context(), store.Of[resource.WorkspaceKeys](p.store).CreateOp(keys), store.Of[resource.Machine](p.store).CreateOp(m), store.Of[resource.Machine](p.store).CreateOp(drained)); err != nil {
		t.Fatal(err)
	}
	ask := func(c *host, machine, uid string) (*wire.MachineCertificates, error) {
		var out wire.MachineCertificates
		_, csr, err := pki.NewKeyCSR()
		if err != nil {
			t.Fatal(err)
		}
		return &out, c.call(t.Context(), wire.MachineCertificatesPath,
			wire.MachineCertificatesRequest{Machine: machine, UID: uid, KubeletClient: csr, KubeletServing: csr, KubeProxy: csr}, &out)
	}
	got, err := ask(mine, "acme/web/shop/shop-1", m.UID)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pem                []byte
		name, organization string
	}{
		{got.KubeletClient, "system:node:shop-1", "system:nodes,multipaas:machine:" + m.UID},
		{got.KubeletServing, "system:node:shop-1", "system:nodes,multipaas:machine:" + m.UID},
		{got.KubeProxy, "system:kube-proxy", "multipaas:machine:" + m.UID},
	} {
		cert, err := pki.ParseCertificate(c.pem)
		if err != nil || cert.Subject.CommonName != c.name || strings.Join(cert.Subject.Organization, ",") != c.organization {
			t.Errorf("a certificate is for %v, %v; want %s of %s", cert.Subject, err, c.name, c.organization)
		} else if life := time.Until(cert.NotAfter); life > wire.MachineCertificateLife {
			t.Errorf("the certificate of %v is good for another %v", cert.Subject, life)
		}
	}
	for name, c := range map[string]struct {
		who          *host
		machine, uid string
	}{
		"another node's":             {other, "acme/web/shop/shop-1", m.UID},
		"none":                       {mine, "acme/web/shop/shop-9", m.UID},
		"a former one of the name":   {mine, "acme/web/shop/shop-1", drained.UID},
		"one of the name, whichever": {mine, "acme/web/shop/shop-1", ""},
		"one that is drained":        {mine, "acme/web/shop/shop-2", drained.UID},
	} {
		if _, err := ask(c.who, c.machine, c.uid); err == nil || !strings.Contains(err.Error(), "is not on node") {
			t.Errorf("%s machine: got %v", name, err)
		}
	}
}

func TestMonitorNoticesSilence(t *testing.T) {
	p := start(t)
	c := p.join(t, "n1")
	if err := c.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address}, nil); err != nil {
		t.Fatal(err)
	}
	n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	began := n.Status.HeartbeatAt
	m := &Monitor{Log: slog.New(slog.DiscardHandler), Store: p.store, Nodes: p.cfg.Nodes, Machines: p.cfg.Machines, Claims: p.cfg.Claims, Trash: p.cfg.Trash}
	for _, step := range []struct {
		after time.Duration
		want  resource.Phase
	}{{wire.SilentAfter - time.Second, resource.Ready}, {wire.SilentAfter + time.Second, resource.Degraded}} {
		m.now = func() time.Time { return began.Add(step.after) }
		if err := m.look(t.Context(), n, began); err != nil {
			t.Fatal(err)
		}
		got, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
		if err != nil || got.Status.Phase != step.want {
			t.Errorf("after %v: %v, %v, want %v", step.after, got.Status.Phase, err, step.want)
		}
	}
	// What was said meanwhile of what is on it is no more, so it shall say all anew.
	wait.For(t, wait.Patience, "it is asked for all", func(ctx context.Context) error {
		if n, ok := p.cfg.Nodes.Get("n1"); !ok || n.Status.Phase != resource.Degraded {
			return errors.New("the cache does not follow")
		}
		var answer wire.ReportAnswer
		if err := c.call(ctx, wire.ReportPath, wire.Report{Address: n1Address}, &answer); err != nil || !answer.Anew {
			t.Fatalf("after its silence it is told %+v, %v", answer, err)
		}
		return nil
	})
	// It was silent, not gone: another machine doesn't become it.
	if _, err := store.Of[resource.Node](p.store).Modify(t.Context(), "n1", func(n *resource.Node) error { n.Status.Phase = resource.Degraded; return nil }); err != nil {
		t.Fatal(err)
	}
	err = agent.Join(t.Context(), t.TempDir(), p.url, "n1", p.token())
	if err == nil || !strings.Contains(err.Error(), "--lost") {
		t.Errorf("join under the name of a silent node: got %v", err)
	}
}

func TestReportIsNotTakenAtItsWord(t *testing.T) {
	p := start(t)
	c, other := p.join(t, "n1"), p.join(t, "n2")
	m := &resource.Machine{InWorkspace: resource.InWorkspace{Account: "acme", Organization: "web", Workspace: "shop"}}
	m.Name, m.Spec.Node = "shop-1", "n1"
	if err := store.Of[resource.Machine](p.store).Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, ok := p.cfg.Machines.Get(m.Key()); ok {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("the cache does not follow")
		}
	}
	report := func(c *host, address string) {
		t.Helper()
		rep := wire.Report{Address: netip.MustParseAddr(address), Kernel: strings.Repeat("k", 100<<10),
			Machines: []wire.MachineReport{{Key: m.Key(), UID: m.UID, Running: true, Removed: true, Message: "x"}}}
		for i := range 1000 {
			rep.Problems = append(rep.Problems, resource.Condition{Type: fmt.Sprint(i), Message: strings.Repeat("m", 900)})
		}
		if err := c.call(t.Context(), wire.ReportPath, rep, nil); err != nil {
			t.Fatal(err)
		}
	}
	report(other, "192.0.2.12")
	if got, err := store.Of[resource.Machine](p.store).Get(t.Context(), m.Key()); err != nil || len(got.Status.Conditions) > 0 {
		t.Errorf("another node's report counts: %+v, %v", got.Status.Conditions, err)
	}
	report(c, "192.0.2.11")
	got, err := store.Of[resource.Machine](p.store).Get(t.Context(), m.Key())
	if err != nil || !got.Status.Conditions.Is(resource.MachineRunning) || got.Status.Conditions.Is(resource.MachineRemoved) {
		t.Errorf("a machine that shall stay is %+v, %v; want it running and not removed", got.Status.Conditions, err)
	}
	n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil || len(n.Status.Conditions) > maxItems || len(n.Status.Kernel) > maxName {
		t.Errorf("the store keeps %d problems and %d octets of kernel, %v", len(n.Status.Conditions), len(n.Status.Kernel), err)
	}
}

func TestRepeatedJoinLeavesOneNode(t *testing.T) {
	p := start(t)
	first, second := p.join(t, "n1"), p.join(t, "n1") // the same name and token, before any report
	report := func(c *host) error {
		return c.call(t.Context(), wire.ReportPath, wire.Report{Address: n1Address}, nil)
	}
	if err := report(second); err != nil {
		t.Fatal(err)
	}
	if err := report(first); !errors.Is(err, errGone) {
		t.Errorf("who joined first reports after another became the node: got %v, want %v", err, errGone)
	}
	if err := agent.Join(t.Context(), t.TempDir(), p.url, "n1", p.token()); err == nil {
		t.Error("somebody joined as a node that lives")
	}
}

func TestRunsLooksAtTheCertificate(t *testing.T) {
	p := start(t)
	old := p.join(t, "n1")
	machine := &resource.Machine{InWorkspace: resource.InWorkspace{Meta: resource.Meta{Name: "shop-1"}, Account: "acme", Organization: "web", Workspace: "shop"}, Spec: resource.MachineSpec{Node: "n1"}}
	if err := store.Of[resource.Machine](p.store).Create(t.Context(), machine); err != nil {
		t.Fatal(err)
	}
	runs := func(c *host) bool {
		return p.Runs(c.certificate(t), "acme/web/shop")
	}
	wait.True(t, wait.Patience, "the node runs the machine", func() bool { return runs(old) })
	again := p.join(t, "n1") // another node with the same name
	wait.True(t, wait.Patience, "the new node runs it", func() bool { return runs(again) })
	if runs(old) {
		t.Error("the certificate of a node that is gone counts for the next one of its name")
	}
}

func TestRemovedNodeSpendsItsToken(t *testing.T) {
	p := start(t)
	c := p.join(t, "n1")
	now := time.Now()
	if err := store.Of[resource.JoinToken](p.store).Create(t.Context(), &resource.JoinToken{Meta: resource.Meta{Name: "used"}, UsedBy: "n1", UsedAt: &now, ExpiresAt: now}); err != nil {
		t.Fatal(err)
	}
	if err := c.call(t.Context(), wire.LeavePath, struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	m := &Monitor{Log: slog.New(slog.DiscardHandler), Store: p.store, Nodes: p.cfg.Nodes, Machines: p.cfg.Machines, Claims: p.cfg.Claims, Trash: p.cfg.Trash}
	m.now = time.Now
	if err := m.look(t.Context(), n, now); err != nil {
		t.Fatal(err)
	}
	if token, err := store.Of[resource.JoinToken](p.store).Get(t.Context(), "used"); err != nil || !token.Spent {
		t.Errorf("after its node was removed the token is %+v, %v, want it spent", token, err)
	}
	if _, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the node: got %v, want it gone", err)
	}
}

// TestNewerAgentsAreHeard: while a platform is upgraded, an agent may say what its
// server does not know yet. How much it may say is bounded all the same.
func TestNewerAgentsAreHeard(t *testing.T) {
	p := start(t)
	c := p.join(t, "n1")
	c.from = n1Address
	newer := map[string]any{"address": n1Address, "new": "x", "machines": []map[string]any{{"key": "a/b/c/d", "new": 1}}}
	if err := c.call(t.Context(), wire.ReportPath, newer, nil); err != nil {
		t.Errorf("a report with fields that are new: %v", err)
	}
	if n, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1"); err != nil || n.Status.Address != n1Address {
		t.Errorf("after it the node is %+v, %v", n, err)
	}
	newer["new"] = strings.Repeat("x", maxBody)
	if err := c.call(t.Context(), wire.ReportPath, newer, nil); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("a report of more than %d bytes: got %v", maxBody, err)
	}
}
