package datacenter

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Attempts asks a pod to try addresses and returns what came of each: "open ..."
// or "closed ...".
func (d *Datacenter) Attempts(t testing.TB, kubeconfig, pod string, targets ...string) map[string]string {
	t.Helper()
	r := d.Kube(t, kubeconfig, "", append([]string{"exec", pod, "--", "/probe", "try"}, targets...)...)
	if r.Code != 0 {
		t.Fatal(r)
	}
	all := map[string]string{}
	for line := range strings.Lines(r.Out) {
		target, outcome, _ := strings.Cut(strings.TrimSpace(line), " ")
		all[target] = outcome
	}
	return all
}

// RegistryAddress is where the platform's registry answers.
func (d *Datacenter) RegistryAddress() string { return d.Server.Address().String() + ":5000" }

// ProbeImage is the image of the probe in the platform's registry.
func (d *Datacenter) ProbeImage(organization string) string { return d.Image(organization, "probe") }

// Image is the first version of a program's image in the platform's registry.
func (d *Datacenter) Image(organization, name string) string {
	return d.RegistryAddress() + "/" + organization + "/" + name + ":1"
}

// build makes an OCI layout, with the name as reference, of the program in
// folder source, and returns the folder of the layout.
func (d *Datacenter) build(t testing.TB, name, source string) (string, v1.Image) {
	t.Helper()
	dir := filepath.Join(d.Dir, name)
	binary := filepath.Join(dir, name)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", binary, source)
	cmd.Dir, cmd.Env = d.Root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", source, err, out)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	image, err := programImage(name, program)
	if err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(dir, "oci")
	if err := os.RemoveAll(oci); err != nil {
		t.Fatal(err)
	}
	path, err := layout.Write(oci, empty.Index)
	if err == nil {
		err = path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": name}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return oci, image
}

// programImage makes an image that holds the program as /NAME.
func programImage(name string, program []byte) (v1.Image, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err := errors.Join(
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}),
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
		Config: v1.Config{Entrypoint: []string{"/" + name}, User: "65532:65532"}})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Skopeo runs skopeo, which knows the platform's authority and the login that
// authfile holds.
func (d *Datacenter) Skopeo(t testing.TB, authfile string, args ...string) Result {
	t.Helper()
	certs := filepath.Join(d.Dir, "certs")
	if err := os.MkdirAll(certs, 0o755); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(d.CA)
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
	return Run(t, []string{"REGISTRY_AUTH_FILE=" + filepath.Join(d.Dir, authfile)}, "", append([]string{"skopeo"}, args...)...)
}

// Login logs skopeo in, as people do.
func (d *Datacenter) Login(t testing.TB, authfile, email, passwordFile string) {
	t.Helper()
	word, err := os.ReadFile(passwordFile)
	if err != nil {
		t.Fatal(err)
	}
	if r := d.Skopeo(t, authfile, "login", "--username", email, "--password", strings.TrimSpace(string(word)), d.RegistryAddress()); r.Code != 0 {
		t.Fatal(r)
	}
}

// PushProbe puts the probe in both accounts' repositories, once.
func (d *Datacenter) PushProbe(t testing.TB) {
	t.Helper()
	if d.Pushed {
		return
	}
	d.ProbeLayout, d.ProbeV1 = d.PushProgram(t, "probe", "./testing/e2e/probe")
	d.Pushed = true
}

// PushProgram builds the program in folder source, below the repository's
// root, makes the image NAME:1 that holds it as /NAME and pushes that to acme/web
// and beta/ops. It returns the OCI layout's folder and the image.
func (d *Datacenter) PushProgram(t testing.TB, name, source string) (string, v1.Image) {
	t.Helper()
	oci, image := d.build(t, name, source)
	d.Login(t, "auth-acme", "owner@acme.example", filepath.Join(d.Dir, "owner-password"))
	d.Login(t, "auth-beta", "owner@beta.example", filepath.Join(d.Dir, "password"))
	for auth, organization := range map[string]string{"auth-acme": "acme/web", "auth-beta": "beta/ops"} {
		if r := d.Skopeo(t, auth, "copy", "oci:"+oci+":"+name, "docker://"+d.Image(organization, name)); r.Code != 0 {
			t.Fatal(r)
		}
	}
	return oci, image
}

// Probe runs the probe on every machine of acme/web/shop, with a Service, and
// returns its pods.
func (d *Datacenter) Probe(t testing.TB) []Pod {
	t.Helper()
	d.PushProbe(t)
	d.Apply(t, ProbeManifest(d.ProbeImage("acme/web")))
	d.Kubectl(t, "rollout", "status", "daemonset/probe", "--timeout", "90s")
	var all []Pod
	for _, p := range d.Pods(t, "app=probe") {
		all = append(all, p)
	}
	if len(all) != 2 {
		t.Fatalf("the probe runs in %d pods, want 2", len(all))
	}
	return all
}

func ProbeManifest(image string) string {
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
