package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/testpki"
)

// signer is a server that signs for machines, or is away.
type signer struct {
	ca    *pki.CA
	away  bool
	asked int
	names bool // certificates name the machine
}

func (s *signer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked++
	var req wire.MachineCertificatesRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || s.away {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	sign := func(csr []byte) []byte {
		r := pki.Request{CommonName: "x", Client: true, Life: wire.MachineCertificateLife}
		if s.names {
			r.Organizations = []string{wire.MachineUIDPrefix + req.UID}
		}
		cert, err := s.ca.Sign(csr, r)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		return cert
	}
	_ = json.NewEncoder(w).Encode(wire.MachineCertificates{KubeletClient: sign(req.KubeletClient), KubeletServing: sign(req.KubeletServing), KubeProxy: sign(req.KubeProxy)})
}

// TestCertificatesAreRenewedInTime: a server that is away costs a machine nothing, and
// once it is back the machine has new certificates at the next look, also when the old
// ones have ended.
func TestCertificatesAreRenewedInTime(t *testing.T) {
	s := &signer{ca: testpki.New(t)}
	web := httptest.NewServer(s)
	defer web.Close()
	client := &Client{dir: t.TempDir(), server: web.URL, http: web.Client()}
	d := machines{MachinesConfig: MachinesConfig{Log: slog.New(slog.DiscardHandler), Client: client}}
	m := wire.Machine{Key: "acme/web/shop/shop-1", UID: "u1", Name: "shop-1"}
	file := filepath.Join(d.keys(m.UID), "certificates.json")
	age := func(by time.Duration) {
		t.Helper()
		at := time.Now().Add(-by)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	look := func(what string, asks bool) []byte {
		t.Helper()
		before := s.asked
		pairs, err := d.certificates(context.Background(), m)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if (s.asked > before) != asks {
			t.Errorf("%s: it asks for certificates: %v, want %v", what, s.asked > before, asks)
		}
		return pairs.KubeletClient
	}
	look("a new machine", true)
	look("certificates of another make, which name no machine", true)
	s.names = true
	look("the same, and the server is newer now", true)
	first := look("certificates that name it", false)
	age(wire.MachineCertificateRenew - time.Minute)
	look("before it is time", false)
	age(wire.MachineCertificateRenew + time.Minute)
	s.away = true
	if got := look("the server is away", true); string(got) != string(first) {
		t.Error("the old certificates are not kept")
	}
	age(3 * wire.MachineCertificateLife)
	look("the server is away for days", true)
	s.away = false
	second := look("the server is back", true)
	if string(second) == string(first) {
		t.Error("the certificates were not renewed")
	}
	look("then", false)
	age(-time.Hour)
	look("the clock was set back", true)
	m.UID = "u2"
	look("another machine of the name", true)
}
