package guard

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"
)

// asking is a request over a connection made with a certificate for this name and
// these groups; for "", without one.
func asking(ctx context.Context, name string, groups ...string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/secrets", nil)
	r.TLS = &tls.ConnectionState{}
	if name != "" {
		r.TLS.PeerCertificates = []*x509.Certificate{{Subject: pkix.Name{CommonName: name, Organization: groups}}}
	}
	return r
}

func (g *Guard) list(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(g.cfg.MachinesFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyLivingMachinesAreHeard(t *testing.T) {
	const node, proxy = "system:node:shop-1", "system:kube-proxy"
	for what, c := range map[string]struct {
		file   string // "-": none
		name   string
		groups []string
		heard  bool
	}{
		"kubelet":                        {`["u1","u2"]`, node, []string{"system:nodes", "multipaas:machine:u1"}, true},
		"kube-proxy":                     {`["u1","u2"]`, proxy, []string{"multipaas:machine:u2"}, true},
		"kubelet of one that is gone":    {`["u2"]`, node, []string{"system:nodes", "multipaas:machine:u1"}, false},
		"kube-proxy of one that is gone": {`["u2"]`, proxy, []string{"multipaas:machine:u1"}, false},
		"a part of a UID":                {`["u11"]`, node, []string{"system:nodes", "multipaas:machine:u1"}, false},
		"kubelet without UID":            {`["u1",""]`, node, []string{"system:nodes"}, false},
		"kubelet of UID nothing":         {`["u1",""]`, node, []string{"system:nodes", "multipaas:machine:"}, false},
		"kube-proxy without UID":         {`["u1",""]`, proxy, nil, false},
		"two UIDs":                       {`["u1"]`, node, []string{"system:nodes", "multipaas:machine:u1", "multipaas:machine:u9"}, false},
		"a node's name alone":            {`["u1"]`, node, nil, false},
		"the nodes' group alone":         {`["u1"]`, "x", []string{"system:nodes"}, false},
		"a machine under another name":   {`["u1"]`, "x", []string{"multipaas:machine:u9"}, false},
		"no machine lives":               {`[]`, node, []string{"system:nodes", "multipaas:machine:u1"}, false},
		"no file":                        {"-", node, []string{"system:nodes", "multipaas:machine:u1"}, false},
		"an empty file":                  {"", node, []string{"system:nodes", "multipaas:machine:u1"}, false},
		"a cut file":                     {`["u1","u`, node, []string{"system:nodes", "multipaas:machine:u1"}, false},
		"a file of another kind":         {`{"u1":true}`, node, []string{"system:nodes", "multipaas:machine:u1"}, false},
		"nothing is named":               {`null`, node, []string{"system:nodes", "multipaas:machine:u1"}, false},
		"the platform":                   {"-", platform, []string{"system:masters"}, true},
		"a part of the plane":            {"-", "system:kube-scheduler", nil, true},
		"a user by token":                {"-", "", nil, true},
	} {
		t.Run(what, func(t *testing.T) {
			g := newGuard(t, "baseline")
			g.Started()
			if c.file != "-" {
				g.list(t, c.file)
			}
			heard := false
			w := httptest.NewRecorder()
			g.Filter(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { heard = true })).ServeHTTP(w, asking(t.Context(), c.name, c.groups...))
			if heard != c.heard {
				t.Errorf("heard: %v, want %v: %d %s", heard, c.heard, w.Code, w.Body)
			}
			if !c.heard && (w.Code != http.StatusUnauthorized || w.Header().Get("Connection") != "close") {
				t.Errorf("got %d, Connection: %q; want 401 and a new connection", w.Code, w.Header().Get("Connection"))
			}
			if len(g.machines.open) != 0 {
				t.Errorf("remembers requests that have ended: %v", g.machines.open)
			}
		})
	}
}

func TestWatchesOfADeadMachineEnd(t *testing.T) {
	g := newGuard(t, "baseline")
	g.Started()
	g.list(t, `["u1","u2"]`)
	ended, began := make(chan string, 2), make(chan bool)
	h := g.Filter(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		began <- true
		<-r.Context().Done()
		ended <- r.TLS.PeerCertificates[0].Subject.Organization[1]
	}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, uid := range []string{"u1", "u2"} {
		go h.ServeHTTP(httptest.NewRecorder(), asking(ctx, "system:node:x", "system:nodes", machineGroup+uid))
		<-began
	}
	g.list(t, `["u2"]`)
	go g.Watch(ctx)
	select {
	case who := <-ended:
		if who != machineGroup+"u1" {
			t.Errorf("the requests of %s have ended", who)
		}
	case <-time.After(5 * lookEvery):
		t.Error("what a dead machine has under way goes on")
	}
	cancel()
	<-ended
}
