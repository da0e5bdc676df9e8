package dctest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/testing/datacenter"
)

// RegistryAddress is where the platform's registry answers.
func (d *Datacenter) RegistryAddress() string { return d.Server.Address().String() + ":5000" }

// Image is the first version of a program's image in the platform's registry.
func (d *Datacenter) Image(organization, name string) string {
	return d.RegistryAddress() + "/" + organization + "/" + name + ":1"
}

// PushProgram builds the program in folder source, below the repository's
// root, makes the image NAME:1 that holds it as /NAME and pushes that to acme/web
// and beta/ops. It returns the OCI layout's folder and the image.
func (d *Datacenter) PushProgram(t testing.TB, name, source string) (string, v1.Image) {
	t.Helper()
	oci, image := d.build(t, name, source)
	d.Login(t, "auth-acme", datacenter.OwnerEmail, filepath.Join(d.Dir, datacenter.OwnerPassword))
	d.Login(t, "auth-beta", "owner@beta.example", filepath.Join(d.Dir, "password"))
	push := func(auth, organization string) Result {
		return d.Skopeo(t, auth, "copy", "--retry-times", "3", "oci:"+oci+":"+name, "docker://"+d.Image(organization, name))
	}
	var other Result
	var meanwhile sync.WaitGroup
	meanwhile.Go(func() { other = push("auth-beta", "beta/ops") })
	one := push("auth-acme", "acme/web")
	meanwhile.Wait()
	for _, r := range []Result{one, other} {
		if r.Code != 0 {
			t.Fatal(r)
		}
	}
	return oci, image
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
	if err := WriteLayout(oci, name, image); err != nil {
		t.Fatal(err)
	}
	return oci, image
}

// WriteLayout makes dir, anew, an OCI layout that holds the image by that name.
func WriteLayout(dir, name string, image v1.Image) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": name}))
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
		err = atomicfile.Write(filepath.Join(certs, "ca.crt"), ca, 0o644) // others may read it
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

// AgeRegistry makes everything in the server's registry look older: what no
// manifest names is garbage then, and a registry that starts collects it.
func (d *Datacenter) AgeRegistry(by time.Duration) error {
	at := time.Now().Add(-by)
	return filepath.WalkDir(d.Server.Data("registry"), func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Chtimes(name, at, at)
		}
		if errors.Is(err, fs.ErrNotExist) { // it went meanwhile
			return nil
		}
		return err
	})
}
