package registry

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// TestConformance has the OCI's own suite ask the registry, in its widest version. Two things
// that the specification leaves open we refuse on purpose: an image of which a layer is missing
// (such a push has lost something, and whoever pulls it would find out), and to mount a blob
// from nowhere in particular (what is elsewhere is nobody's business).
func TestConformance(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, nil)
	dir := t.TempDir()
	suite := filepath.Join(dir, "conformance")
	build := exec.Command("go", "build", "-C", "../../testing/conformance", "-o", suite, "github.com/opencontainers/distribution-spec/conformance")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the suite: %v\n%s", err, out)
	}
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, p.ca.CertPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, suite)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+ca, "NO_PROXY=127.0.0.1", "OCI_REGISTRY="+host, "OCI_VERSION=dev",
		"OCI_REPO1=acme/web/one", "OCI_REPO2=acme/web/two", "OCI_USERNAME=ann", "OCI_PASSWORD=secret", "OCI_RESULTS_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	summary := out[max(0, bytes.LastIndex(out, []byte("\nOCI Conformance Result"))):]
	total := regexp.MustCompile(`Total\.*: *(\d+)`).FindSubmatch(summary)
	if err != nil || total == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if n, _ := strconv.Atoi(string(total[1])); n < 970 {
		t.Errorf("%d checks, there were 978\n%s", n, summary)
	}
	// It deletes what it has pushed; the collector finds nothing amiss.
	age(t, r)
	if _, err := r.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	if n := blobs(t, r); n != 0 {
		t.Errorf("%d blobs are left", n)
	}
}
