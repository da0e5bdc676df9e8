package faults

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/dctest"
)

// get asks the balancer and returns the answer's body.
func (s *suite) get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return string(body), err
}

// image is one that nobody else has.
type image struct {
	layout string
	blobs  []v1.Hash
}

// ownImage makes an image of bytes of chance, two layers of 1 MB.
func ownImage(t *testing.T) image {
	t.Helper()
	var layers []v1.Layer
	for range 2 {
		l, err := random.Layer(1<<20, types.OCILayer)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	// skopeo finds only OCI's kind of manifest in a layout.
	made, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
	if err != nil {
		t.Fatal(err)
	}
	m, err := made.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	blobs := []v1.Hash{m.Config.Digest}
	for _, l := range m.Layers {
		blobs = append(blobs, l.Digest)
	}
	dir := t.TempDir()
	if err := dctest.WriteLayout(dir, "walked", made); err != nil {
		t.Fatal(err)
	}
	return image{dir, blobs}
}

// collected says whether nothing of an image is in the registry any more.
func (s *suite) collected(i image) error {
	for _, b := range i.blobs {
		_, err := os.Stat(s.Server.Data("registry", "images", "docker", "registry", "v2", "blobs", b.Algorithm, b.Hex[:2], b.Hex))
		if err == nil {
			return fmt.Errorf("blob %s is there still", b)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// walkRenew gives the walked host a certificate that is due, and kills its agent
// on the way to another.
func walkRenew(t *testing.T, s *suite) {
	h := s.walked()
	s.kill(t, h)
	file := h.Data("node", "identity.json")
	due, err := makeDue(file, s.Server.Data("pki"))
	if err != nil {
		t.Fatal(err)
	}
	s.walk(t, operation{name: "node", on: h, points: []string{"node/renew/signed", "node/renew/kept"},
		reached: func(ctx context.Context) error {
			cert, err := certificateIn(file)
			if err == nil && !cert.NotAfter.After(due.Add(24*time.Hour)) {
				err = fmt.Errorf("the certificate is good until %s, as before", cert.NotAfter)
			}
			if err != nil {
				return err
			}
			return s.nodeIs(t, h.Name(), "Ready")(ctx)
		}})
}

// makeDue puts a certificate into a node's identity that two thirds of its life
// are over of, and returns when it ends.
func makeDue(file, authority string) (ends time.Time, err error) {
	cert, err := certificateIn(file)
	if err != nil {
		return ends, err
	}
	ca, err := pki.LoadOrCreateCA(authority, "")
	if err != nil {
		return ends, err
	}
	ca.Now = func() time.Time { return time.Now().Add(-70 * 24 * time.Hour) }
	key, csr, err := pki.NewKeyCSR()
	if err != nil {
		return ends, err
	}
	signed, err := ca.Sign(csr, pki.Request{CommonName: cert.Subject.CommonName, Organizations: slices.Clone(cert.Subject.Organization),
		Client: true, Life: 90 * 24 * time.Hour})
	if err != nil {
		return ends, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return ends, err
	}
	var id map[string]any
	if err := json.Unmarshal(data, &id); err != nil {
		return ends, err
	}
	id["certificate"], id["key"] = signed, key
	if data, err = json.Marshal(id); err != nil {
		return ends, err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return ends, err
	}
	cert, err = certificateIn(file)
	if err != nil {
		return ends, err
	}
	return cert.NotAfter, nil
}

func certificateIn(file string) (*x509.Certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var id struct{ Certificate []byte }
	if err := json.Unmarshal(data, &id); err != nil {
		return nil, err
	}
	block, _ := pem.Decode(id.Certificate)
	if block == nil {
		return nil, fmt.Errorf("%s: no certificate in it", file)
	}
	return x509.ParseCertificate(block.Bytes)
}
