package images

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// writeRootTar makes a small root archive as mmdebstrap's are: a link, an
// extended attribute, and times and owners' names from the machine it was made on.
func writeRootTar(t *testing.T, when time.Time, owner string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "root.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	out := tar.NewWriter(f)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "./bin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "./bin/ping", Mode: 0o755, Size: 4,
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "cap"}},
		{Typeflag: tar.TypeLink, Name: "./bin/ping4", Linkname: "./bin/ping"},
		{Typeflag: tar.TypeSymlink, Name: "./sbin", Linkname: "bin"},
		{Typeflag: tar.TypeReg, Name: "./shadow", Mode: 0o640, Gid: 42, Size: 4},
	} {
		h.ModTime, h.Uname, h.Gname, h.Format = when, owner, owner, tar.FormatPAX
		if err := out.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(out, "data")
		}
	}
	if err := errors.Join(out.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

func writeFileFor(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func spec(t *testing.T, when time.Time, owner string) Spec {
	return Spec{
		Name:    "multipaas.internal/test:1",
		RootTar: writeRootTar(t, when, owner),
		Files: []File{
			{Source: writeFileFor(t, "two"), Path: "/opt/z/two", Mode: 0o644},
			{Source: writeFileFor(t, "one"), Path: "/opt/a", Mode: 0o755},
		},
		Entrypoint: []string{"/opt/a"}, User: "65532:65532", Ports: []string{"80/tcp", "443/tcp"},
	}
}

// TestSameDigest makes an image twice, from the same contents that came
// about at other times and on other machines.
func TestSameDigest(t *testing.T) {
	dir := t.TempDir()
	first, err := Write(spec(t, time.Unix(1, 0), "root"), filepath.Join(dir, "first"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := Write(spec(t, time.Unix(99, 5), "alice"), filepath.Join(dir, "second"))
	if err != nil {
		t.Fatal(err)
	}
	if first != second {
		t.Errorf("digests %s and %s, want the same", first, second)
	}
	changed := spec(t, time.Unix(1, 0), "root")
	changed.Files[0].Mode = 0o600
	third, err := Write(changed, filepath.Join(dir, "first"))
	if err != nil {
		t.Fatal(err)
	}
	if third == first {
		t.Error("another mode gave the same digest")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".image-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func readImage(t *testing.T, dir string) v1.Image {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("%d images in the layout, want 1", len(manifest.Manifests))
	}
	if got := manifest.Manifests[0].Annotations[refNameAnnotation]; got != "multipaas.internal/test:1" {
		t.Errorf("name %q", got)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestContents(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := Write(spec(t, time.Now(), "root"), dir); err != nil {
		t.Fatal(err)
	}
	image := readImage(t, dir)
	// Fast: the full check knows gzip only. The layers are read below.
	if err := validate.Image(image, validate.Fast); err != nil {
		t.Error(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != "65532:65532" || !slices.Equal(config.Config.Entrypoint, []string{"/opt/a"}) || len(config.Config.ExposedPorts) != 2 {
		t.Errorf("config %+v", config.Config)
	}

	got := map[string]tar.Header{}
	in := tar.NewReader(mutate.Extract(image))
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got[strings.TrimSuffix(header.Name, "/")] = *header
		if header.Uname != "" || !header.ModTime.Equal(epoch) {
			t.Errorf("%s: owner %q, time %s", header.Name, header.Uname, header.ModTime)
		}
	}
	for path, mode := range map[string]int64{"bin/ping": 0o755, "shadow": 0o640, "opt": 0o755, "opt/a": 0o755, "opt/z/two": 0o644} {
		if h, ok := got[path]; !ok || h.Mode != mode {
			t.Errorf("%s: there %v, mode %o, want %o", path, ok, h.Mode, mode)
		}
	}
	if got["bin/ping"].PAXRecords["SCHILY.xattr.security.capability"] != "cap" {
		t.Error("the file capability of bin/ping is lost")
	}
	if got["bin/ping4"].Linkname != "bin/ping" || got["shadow"].Gid != 42 {
		t.Errorf("link to %q, group %d", got["bin/ping4"].Linkname, got["shadow"].Gid)
	}
}

func TestWriteRefuses(t *testing.T) {
	file := writeFileFor(t, "x")
	for _, test := range []struct {
		want string
		spec Spec
	}{
		{"neither", Spec{Name: "n"}},
		{"no such file", Spec{Name: "n", RootTar: "/none"}},
		{"not an absolute", Spec{Name: "n", Files: []File{{Source: file, Path: "a"}}}},
		{"not an absolute", Spec{Name: "n", Files: []File{{Source: file, Path: "/a/../b"}}}},
		{"named twice", Spec{Name: "n", Files: []File{{Source: file, Path: "/a"}, {Source: file, Path: "/a"}}}},
		{"not a regular", Spec{Name: "n", Files: []File{{Source: t.TempDir(), Path: "/a"}}}},
	} {
		dir := filepath.Join(t.TempDir(), "image")
		if _, err := Write(test.spec, dir); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.spec, err, test.want)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%+v: refused, yet there is something", test.spec)
		}
	}
}
