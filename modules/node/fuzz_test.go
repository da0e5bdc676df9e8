package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/testpki"
)

// maxNode bounds what one node makes the store keep of it.
const maxNode = 64 << 10

// FuzzAgentAPI sends what a machine or a node that turned hostile may send: it
// gets nothing of others, changes nothing of others, and the store keeps little
// of what it says.
func FuzzAgentAPI(f *testing.F) {
	ca := testpki.New(f)
	db := storetest.New(f)
	log := slog.New(slog.DiscardHandler)
	toks := &tokens{}
	cfg := HubConfig{Log: log, Store: db, CA: ca, Tokens: toks, Server: "s1", Address: netip.MustParseAddr("192.0.2.1"), Plan: wire.DefaultPlan(),
		Nodes: store.Of[resource.Node](db).Cache(log), Workspaces: store.Of[resource.Workspace](db).Cache(log), Machines: store.Of[resource.Machine](db).Cache(log), Keys: store.Of[resource.WorkspaceKeys](db).Cache(log), Claims: store.Of[resource.VNI](db).Cache(log), Volumes: store.Of[resource.Volume](db).Cache(log), Snapshots: store.Of[resource.Snapshot](db).Cache(log), Trash: store.Of[resource.Trash](db).Cache(log)}
	hub := NewHub(cfg)
	made := &resource.Node{}
	made.Name = "n1"
	keys := &resource.WorkspaceKeys{Workspace: "acme/web/shop", CACert: ca.CertPEM(), CAKey: ca.KeyPEM()}
	mine := &resource.Machine{InWorkspace: resource.InWorkspace{Account: "acme", Organization: "web", Workspace: "shop"}}
	mine.Name, mine.Spec.Node, mine.Spec.Index = "shop-1", "n1", 1
	other := &resource.Machine{InWorkspace: resource.InWorkspace{Account: "acme", Organization: "web", Workspace: "shop"}}
	other.Name, other.Spec.Node, other.Spec.Index = "shop-2", "n2", 2
	if err := db.Commit(f.Context(), store.Of[resource.Node](db).CreateOp(made), store.Of[resource.WorkspaceKeys](db).CreateOp(keys), store.Of[resource.Machine](db).CreateOp(mine), store.Of[resource.Machine](db).CreateOp(other)); err != nil {
		f.Fatal(err)
	}
	otherRevision := other.Revision
	for _, run := range []func(context.Context, func()) error{cfg.Nodes.Run, cfg.Workspaces.Run, cfg.Machines.Run, cfg.Keys.Run, cfg.Claims.Run} {
		parttest.Run(f, run)
	}
	leaf, err := hub.sign(testCSR(f), made)
	if err != nil {
		f.Fatal(err)
	}
	cert, err := pki.ParseCertificate(leaf)
	if err != nil {
		f.Fatal(err)
	}

	paths := []string{"join", "report", "certificate", "machine-certificates", "leave", "items"}
	seed := func(path byte, v any) {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		// @ and # stand for a machine's UID and the CSR, which each run has anew.
		text = bytes.ReplaceAll(text, []byte(mine.UID), []byte("@"))
		f.Add(path, string(text))
	}
	csr := []byte("#")
	seed(0, wire.JoinRequest{Name: "n7", Token: "id.secret.hash", CSR: csr})
	seed(0, wire.JoinRequest{Name: "n1", Token: "id.secret.hash", CSR: []byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n")})
	seed(1, wire.Report{Address: netip.MustParseAddr("192.0.2.11"), Drivers: []string{"sandbox"}, Capacity: resource.Size{MilliCPU: 1000, MemoryBytes: 1 << 30},
		Problems: []resource.Condition{{Type: "A", Status: "False", Message: "m"}},
		Machines: []wire.MachineReport{{Key: mine.Key(), UID: mine.UID, Running: true, Removed: true, Restarts: -1}, {Key: other.Key(), UID: "x", Removed: true}}})
	seed(1, wire.Report{Address: netip.MustParseAddr("::1")})
	seed(1, wire.Report{Address: netip.MustParseAddr("192.0.2.11"), Capacity: resource.Size{MilliCPU: -1 << 63}})
	seed(2, map[string]any{"csr": csr})
	seed(3, wire.MachineCertificatesRequest{Machine: mine.Key(), UID: mine.UID, KubeletClient: csr, KubeletServing: csr, KubeProxy: csr})
	seed(3, wire.MachineCertificatesRequest{Machine: "acme/web/shop/../../x", KubeletClient: csr})
	f.Add(byte(1), `{"address":"192.0.2.11","problems":[{"type":"x","status":"`+strings.Repeat("S", 100<<10)+`"}]}`)
	f.Add(byte(3), "{}")
	f.Add(byte(4), "{}")
	f.Add(byte(1), `[[[[`)
	f.Add(byte(5), `{"items":[{"kind":"volume","report":{"key":"acme/web/shop/data","uid":"x","removed":true}},{"kind":"volume","report":[]},{}]}`)

	f.Fuzz(func(t *testing.T, which byte, body string) {
		ctx := t.Context()
		path := paths[int(which)%len(paths)]
		request, _ := json.Marshal(testCSR(t))
		blank, _ := json.Marshal([]byte("#"))
		body = strings.ReplaceAll(strings.ReplaceAll(body, string(blank), string(request)), "@", mine.UID)
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, wire.AgentPath+path, strings.NewReader(body))
		if path != "join" {
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}}
		}
		r.RemoteAddr = "192.0.2.11:9"
		w := httptest.NewRecorder()
		began := time.Now()
		hub.ServeHTTP(w, r)
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s took %v", path, took)
		}
		if w.Code >= 500 {
			t.Errorf("%s %q: %d %s", path, body, w.Code, w.Body)
		}
		n, err := store.Of[resource.Node](db).Get(ctx, "n1")
		if err != nil {
			t.Fatal(err)
		}
		if a := n.Status.Address; a.IsValid() && a.String() != "192.0.2.11" {
			t.Errorf("a node is taken to be at %v", a)
		}
		kept, err := json.Marshal(n)
		if err != nil || len(kept) > maxNode {
			t.Errorf("the store keeps %d bytes of the node, %v", len(kept), err)
		}
		if c := n.Status.Capacity; c.MilliCPU < 0 || c.MemoryBytes < 0 || c.DiskBytes < 0 {
			t.Errorf("a node with less than nothing: %+v", c)
		}
		if got, err := store.Of[resource.Machine](db).Get(ctx, other.Key()); err != nil || got.Revision != otherRevision {
			t.Errorf("another node's machine was changed: %+v, %v", got, err)
		}
		if got, err := store.Of[resource.Machine](db).Get(ctx, mine.Key()); err != nil || got.Status.Conditions.Is(resource.MachineRemoved) {
			t.Errorf("a machine that shall stay is removed: %+v, %v", got, err)
		}
		if w.Code == http.StatusOK {
			checkSigned(t, path, body, w.Body.Bytes(), ca, mine.UID)
		} else if path == "join" && w.Code == http.StatusBadRequest && toks.used {
			t.Errorf("a join that could not succeed has used its token: %q", body)
		}
		toks.used = false
		forget(t, hub, made)
	})
}

// checkSigned looks at the certificates in an answer: they name whom the
// platform's records name.
func checkSigned(t *testing.T, path, body string, answer []byte, ca *pki.CA, uid string) {
	t.Helper()
	check := func(text []byte, name, organization string) {
		t.Helper()
		c, err := pki.ParseCertificate(text)
		if err != nil {
			t.Errorf("%s %q: %v", path, body, err)
			return
		}
		if c.IsCA || c.Subject.CommonName != name || (organization != "") != (len(c.Subject.Organization) > 0 && c.Subject.Organization[0] == organization) {
			t.Errorf("%s %q: a certificate for %v", path, body, c.Subject)
		}
		if _, err := c.Verify(x509.VerifyOptions{Roots: ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s %q: %v", path, body, err)
		}
	}
	switch path {
	case "join", "certificate":
		var res wire.JoinResponse
		var req wire.JoinRequest
		_ = json.Unmarshal([]byte(body), &req)
		if err := json.Unmarshal(answer, &res); err != nil {
			t.Fatal(err)
		}
		if path == "certificate" {
			req.Name = "n1"
		}
		if resource.CheckName("node", req.Name) != nil || req.Name == "s1" {
			t.Errorf("joined as %q", req.Name)
		}
		check(res.Certificate, req.Name, wire.NodesOrganization)
	case "machine-certificates":
		var res wire.MachineCertificates
		if err := json.Unmarshal(answer, &res); err != nil {
			t.Fatal(err)
		}
		check(res.KubeletClient, "system:node:shop-1", "system:nodes")
		check(res.KubeletServing, "system:node:shop-1", "system:nodes")
		check(res.KubeProxy, "system:kube-proxy", wire.MachineUIDPrefix+uid)
	}
}

// forget puts the store back to the one node.
func forget(t *testing.T, hub *Hub, made *resource.Node) {
	t.Helper()
	nodes, _, err := store.Of[resource.Node](hub.cfg.Store).List(t.Context(), "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Name == made.Name && !n.Deleting() {
			continue
		}
		if err := store.Of[resource.Node](hub.cfg.Store).Delete(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		if n.Name == made.Name {
			again := &resource.Node{}
			again.Name, again.UID = made.Name, made.UID
			if err := store.Of[resource.Node](hub.cfg.Store).Create(t.Context(), again); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func testCSR(t testing.TB) []byte {
	t.Helper()
	_, csr, err := pki.NewKeyCSR()
	if err != nil {
		t.Fatal(err)
	}
	return csr
}
