package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/lab"
)

// registryAddress is where the platform's registry answers.
func (d *datacenter) registryAddress() string { return d.server.Address().String() + ":5000" }

// probeImage is the image of the probe in the platform's registry.
func (d *datacenter) probeImage(organization string) string {
	return d.registryAddress() + "/" + organization + "/probe:1"
}

// buildProbe makes an OCI layout of the probe.
func (d *datacenter) buildProbe(t *testing.T) (string, v1.Image) {
	t.Helper()
	dir := filepath.Join(d.dir, "probe")
	binary := filepath.Join(dir, "probe")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", binary, "./testing/e2e/probe")
	cmd.Dir, cmd.Env = d.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	image, err := probeImage(program)
	if err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(dir, "oci")
	if err := os.RemoveAll(oci); err != nil {
		t.Fatal(err)
	}
	path, err := layout.Write(oci, empty.Index)
	if err == nil {
		err = path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "probe"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return oci, image
}

// probeImage makes an image that holds the program as /probe.
func probeImage(program []byte) (v1.Image, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err := errors.Join(
		w.WriteHeader(&tar.Header{Name: "probe", Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}),
		func() error { _, err := w.Write(program); return err }(), w.Close())
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layer)
	if err != nil {
		return nil, err
	}
	return mutate.ConfigFile(image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: must(image.ConfigFile()).RootFS,
		Config: v1.Config{Entrypoint: []string{"/probe"}, User: "65532:65532"}})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// skopeo runs skopeo, which knows the platform's authority and the login that
// authfile holds.
func (d *datacenter) skopeo(t *testing.T, authfile string, args ...string) result {
	t.Helper()
	certs := filepath.Join(d.dir, "certs")
	if err := os.MkdirAll(certs, 0o755); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(d.ca)
	if err == nil {
		err = os.WriteFile(filepath.Join(certs, "ca.crt"), ca, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	flag := "--cert-dir"
	if args[0] == "copy" {
		flag = "--dest-cert-dir"
	}
	args = slices.Insert(args, 1, flag, certs)
	if args[0] != "login" {
		// No policy: what may be pulled onto this machine is not the test's.
		args = append([]string{"--insecure-policy"}, args...)
	}
	return run(t, []string{"REGISTRY_AUTH_FILE=" + filepath.Join(d.dir, authfile)}, "", append([]string{"skopeo"}, args...)...)
}

// login logs skopeo in, as people do.
func (d *datacenter) login(t *testing.T, authfile, email, passwordFile string) {
	t.Helper()
	word, err := os.ReadFile(passwordFile)
	if err != nil {
		t.Fatal(err)
	}
	if r := d.skopeo(t, authfile, "login", "--username", email, "--password", strings.TrimSpace(string(word)), d.registryAddress()); r.code != 0 {
		t.Fatal(r)
	}
}

// pushed is the layout of the probe, once it is in both accounts' repositories.
func (d *datacenter) push(t *testing.T) {
	t.Helper()
	if d.pushed {
		return
	}
	oci, image := d.buildProbe(t)
	d.probeLayout, d.probeV1 = oci, image
	d.login(t, "auth-acme", "owner@acme.example", filepath.Join(d.dir, "owner-password"))
	d.login(t, "auth-beta", "owner@beta.example", filepath.Join(d.dir, "password"))
	for auth, organization := range map[string]string{"auth-acme": "acme/web", "auth-beta": "beta/ops"} {
		if r := d.skopeo(t, auth, "copy", "oci:"+oci+":probe", "docker://"+d.probeImage(organization)); r.code != 0 {
			t.Fatal(r)
		}
	}
	d.pushed = true
}

// probe runs the probe on every machine of acme/web/shop, with a Service, and
// returns its pods.
func (d *datacenter) probe(t *testing.T) []pod {
	t.Helper()
	d.push(t)
	d.apply(t, probeManifest(d.probeImage("acme/web")))
	d.kubectl(t, "rollout", "status", "daemonset/probe", "--timeout", "90s")
	var all []pod
	for _, p := range d.pods(t, "app=probe") {
		all = append(all, p)
	}
	if len(all) != 2 {
		t.Fatalf("the probe runs in %d pods, want 2", len(all))
	}
	return all
}

func probeManifest(image string) string {
	return strings.ReplaceAll(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe, namespace: default}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: probe, image: "IMAGE", args: [wait], readinessProbe: {httpGet: {port: 8080, path: /healthz}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: probe, namespace: default}
spec:
  selector: {app: probe}
  ports: [{port: 80, targetPort: 8080}]
`, "IMAGE", image)
}

// testRegistry pushes with a client from outside, deploys what was pushed, and
// tries what isn't allowed and what isn't there.
func testRegistry(t *testing.T, d *datacenter) {
	d.push(t)
	mine, theirs := "docker://"+d.probeImage("acme/web"), "docker://"+d.probeImage("beta/ops")
	t.Run("own organization", func(t *testing.T) {
		if r := d.skopeo(t, "auth-acme", "list-tags", "docker://"+d.registryAddress()+"/acme/web/probe"); r.code != 0 || !strings.Contains(r.out, `"1"`) {
			t.Error(r)
		}
		if got := d.must(t, owner, "images", "list"); !strings.Contains(got, "probe") {
			t.Errorf("images list says %q", got)
		}
	})
	t.Run("others", func(t *testing.T) {
		word := filepath.Join(d.dir, "password")
		d.must(t, owner, "org", "use", "web")
		d.login(t, "auth-dev", "dev@acme.example", word)
		if r := d.mp(t, owner, "org", "create", "lab", "--account", "acme"); r.code != 0 && r.code != 4 {
			t.Fatal(r)
		}
		d.must(t, owner, "org", "use", "web")
		d.must(t, owner, "ws", "use", "shop")
		for _, row := range []struct {
			what string
			auth string
			args []string
		}{
			{"pull of another account", "auth-beta", []string{"inspect", mine}},
			{"list of another account", "auth-beta", []string{"list-tags", "docker://" + d.registryAddress() + "/acme/web/probe"}},
			{"push to another account", "auth-beta", []string{"copy", "oci:" + d.probeLayout + ":probe", mine}},
			{"pull the other way", "auth-acme", []string{"inspect", theirs}},
			{"pull of nobody", "auth-nobody", []string{"inspect", mine}},
			{"push of nobody", "auth-nobody", []string{"copy", "oci:" + d.probeLayout + ":probe", mine}},
			{"push to another organization", "auth-dev", []string{"copy", "oci:" + d.probeLayout + ":probe", "docker://" + d.probeImage("acme/lab")}},
			{"push to no organization", "auth-acme", []string{"copy", "oci:" + d.probeLayout + ":probe", "docker://" + d.probeImage("acme/none")}},
		} {
			if r := d.skopeo(t, row.auth, row.args...); r.code == 0 {
				t.Errorf("%s goes well: %s", row.what, r)
			}
		}
		if r := d.mp(t, rival, "images", "list", "--account", "acme", "--organization", "web"); r.code != 3 {
			t.Errorf("another account's images: %s; want exit 3", r)
		}
	})
	t.Run("deploy", func(t *testing.T) {
		d.must(t, owner, "apps", "deploy", "probe2", "--image", "probe:1", "--port", "8080", "--no-route", "--timeout", "2m")
		d.must(t, owner, "apps", "delete", "probe2", "--yes", "--timeout", "2m")
	})
	t.Run("no such image", func(t *testing.T) {
		for _, image := range []string{"nothing:1", "probe:none", "registry.invalid/x/y:1"} {
			r := d.mp(t, owner, "apps", "deploy", "ghost", "--image", image, "--port", "8080", "--timeout", "1m")
			if r.code != 1 && r.code != 3 || !strings.Contains(r.err, image) {
				t.Errorf("%s; want exit 1 or 3 and a sentence with the image", r)
			}
			t.Logf("%s: %s", image, strings.TrimSpace(r.err))
		}
		if got := d.kubectl(t, "get", "deploy,svc,pods", "-A", "-o", "name"); strings.Contains(got, "ghost") {
			t.Errorf("left in the cluster:\n%s", got)
		}
		// The mistake can be put right.
		d.must(t, owner, "apps", "deploy", "ghost", "--image", "probe:1", "--port", "8080", "--timeout", "1m")
		d.must(t, owner, "apps", "delete", "ghost", "--yes", "--timeout", "1m")
	})
	t.Run("unknown registry", func(t *testing.T) {
		// containerd asks by HEAD, whose answer has no room for our sentence.
		if message := d.pullFails(t, "unknown", "registry.invalid/some/image:1"); !strings.Contains(message, "not found") {
			t.Errorf("the pod says %q", message)
		}
	})
	t.Run("upstream", func(t *testing.T) { d.testUpstream(t) })
	t.Run("delete", func(t *testing.T) {
		d.must(t, owner, "images", "delete", "probe:1", "--yes")
		if r := d.skopeo(t, "auth-acme", "inspect", mine); r.code == 0 {
			t.Error("the image is still there")
		}
		d.pushed = false
		d.push(t)
	})
}

// pullFails runs a pod and returns why its image can't be pulled.
func (d *datacenter) pullFails(t *testing.T, podName, image string) (message string) {
	t.Helper()
	d.kubectl(t, "run", podName, "--image", image, "--restart", "Never")
	defer d.kubectl(t, "delete", "pod", podName, "--now", "--wait=false")
	eventually(t, 30*time.Second, "the pull of "+image+" fails", func(context.Context) error {
		message = d.kubectl(t, "get", "pod", podName, "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}")
		if !strings.HasPrefix(message, "ErrImagePull") {
			return fmt.Errorf("it says %q", message)
		}
		return nil
	})
	return message
}

// upstream is a registry somewhere else, as the internet is. It is switched off
// by closing.
type upstream struct {
	address string
	ca      []byte
	server  *http.Server
}

const upstreamName = "images.example"

func (d *datacenter) startUpstream(t *testing.T) *upstream {
	t.Helper()
	ca, err := pki.LoadOrCreateCA(filepath.Join(d.dir, "upstream"), "somebody else")
	if err != nil {
		t.Fatal(err)
	}
	address := d.lab.Address().String()
	certificate, key, err := ca.Issue(pki.Request{CommonName: "upstream", Hosts: []string{address}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", address+":5443")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	go func() { _ = server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	u := &upstream{address: ln.Addr().String(), ca: ca.CertPEM(), server: server}

	transport := remote.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: ca.Pool()}
	ref, err := name.ParseReference(u.address + "/tools/probe:7")
	if err == nil {
		err = remote.Write(ref, d.probeV1, remote.WithTransport(transport))
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// testUpstream: the operator opens a registry in the server's configuration;
// what was pulled from it once is there without it.
func (d *datacenter) testUpstream(t *testing.T) {
	u := d.startUpstream(t)
	const caFile = "/etc/multipaas/upstream.crt"
	config, err := os.ReadFile(filepath.Join(d.server.Dir(), "etc", "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(config), upstreamName) {
		config = fmt.Appendf(config, "registry_upstreams:\n- name: %s\n  url: https://%s\n  ca_file: %s\n", upstreamName, u.address, caFile)
		if err := errors.Join(d.server.WriteFile(t.Context(), "/etc/multipaas/config.yaml", config, 0o600),
			d.server.WriteFile(t.Context(), caFile, u.ca, 0o644)); err != nil {
			t.Fatal(err)
		}
		d.restart(t, d.server)
		d.answers(t)
		d.nodesReady(t, 2)
	}
	nodes := strings.Fields(d.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	image := upstreamName + "/tools/probe:7"
	pull := func(t *testing.T, name, node string) {
		t.Helper()
		d.apply(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0,
			"containers":[{"name":"c","image":%q,"imagePullPolicy":"Always"}]}}`, name, node, image))
		defer d.kubectl(t, "delete", "pod", name, "--now", "--wait=false")
		d.kubectl(t, "wait", "pod", name, "--for=condition=Ready", "--timeout=60s")
	}
	pull(t, "pulled-"+nodes[0], nodes[0])
	if err := u.server.Close(); err != nil {
		t.Fatal(err)
	}
	pull(t, "pulled-"+nodes[1], nodes[1])

	began := time.Now()
	if message := d.pullFails(t, "uncached", upstreamName+"/tools/other:1"); !strings.Contains(message, upstreamName) {
		t.Errorf("after %s the pod says %q", time.Since(began).Round(time.Second), message)
	}
}

// restart stops the appliance of a host and starts it again.
func (d *datacenter) restart(t *testing.T, h *lab.Host) {
	t.Helper()
	d.stop(t, h)()
}

// stop stops the appliance of a host by SIGTERM, and returns what starts it
// again as it was.
func (d *datacenter) stop(t *testing.T, h *lab.Host) (start func()) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(h.Dir(), "services", "multipaas.json"))
	var service lab.Service
	if err == nil {
		err = json.Unmarshal(data, &service)
	}
	if err == nil {
		err = h.Stop(t.Context(), service.Name)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := h.Start(t.Context(), service); err != nil {
			t.Fatal(err)
		}
		d.partsReady(t, h)
	}
}
