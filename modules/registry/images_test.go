package registry

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/multipaas/multipaas/testing/parttest"
)

func TestListResolveDelete(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, nil)
	ctx := t.Context()
	if got, err := r.List(ctx, "acme", "web"); err != nil || got == nil || len(got) != 0 {
		t.Errorf("List of nothing: got %v %v, want an empty list", got, err)
	}
	dir, img := image(t, 1)
	for _, name := range []string{"hello:1", "hello:2", "a/b:1"} {
		if out, err := skopeo(t, p, "ann", "copy", "oci:"+dir+":x", "docker://"+host+"/acme/web/"+name); err != nil {
			t.Fatalf("push: %v\n%s", err, out)
		}
	}
	got, err := r.List(ctx, "acme", "web")
	if err != nil || len(got) != 2 || got[0].Name != "acme/web/a/b" || got[1].Name != "acme/web/hello" || !slices.Equal(got[1].Tags, []string{"1", "2"}) {
		t.Errorf("List: got %v %v", got, err)
	}
	if age := time.Since(got[1].UpdatedAt); age < 0 || age > time.Minute {
		t.Errorf("UpdatedAt: got %v, want now", got[1].UpdatedAt)
	}
	want := digestOf(t, img)
	for _, ref := range []string{"1", "2", want} {
		if d, err := r.Inspect(ctx, "acme/web/hello", ref); err != nil || d.Digest != want || time.Since(d.PushedAt) > time.Minute {
			t.Errorf("Inspect %s: got %v %v, want %s", ref, d, err, want)
		}
	}
	for _, ref := range []string{"3", "", "../1", "sha256:" + strings.Repeat("0", 64), strings.Repeat("x", 200)} {
		if d, err := r.Inspect(ctx, "acme/web/hello", ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("Inspect %q: got %v %v, want ErrNotFound", ref, d, err)
		}
	}
	for _, name := range []string{"acme/web/none", "acme/web/../web/hello"} {
		if d, err := r.Inspect(ctx, name, "1"); err == nil {
			t.Errorf("Inspect in %s: got %v, want an error", name, d)
		}
	}
	// A tag goes alone while another holds the manifest.
	if err := r.Delete(ctx, "acme/web/hello", "1"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Inspect(ctx, "acme/web/hello", want); err != nil {
		t.Errorf("Inspect after one of two tags went: %v", err)
	}
	if err := r.Delete(ctx, "acme/web/hello", "2"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Inspect(ctx, "acme/web/hello", want); !errors.Is(err, ErrNotFound) {
		t.Errorf("Inspect after the last tag went: got %v, want ErrNotFound", err)
	}
	if err := r.Delete(ctx, "acme/web/hello", "2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Delete again: got %v, want ErrNotFound", err)
	}
	// Cut off after its first step it can be asked again, for the tag is there.
	if out, err := skopeo(t, p, "ann", "copy", "oci:"+dir+":x", "docker://"+host+"/acme/web/cut:1"); err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	if err := os.RemoveAll(filepath.Join(r.repositoryDir("acme/web/cut"), "_manifests", "revisions")); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(ctx, "acme/web/cut", "1"); err != nil {
		t.Errorf("Delete of what a kill has cut: %v", err)
	}
	if _, err := r.Inspect(ctx, "acme/web/cut", "1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Inspect of what a kill has cut, after another Delete: %v, want ErrNotFound", err)
	}
	if err := r.Delete(ctx, "acme/web/cut", ""); err != nil {
		t.Error(err)
	}
	if err := r.Delete(ctx, "acme/web/a/b", want); err != nil {
		t.Errorf("Delete by digest: %v", err)
	}
	// All of an image, but not what stands below it.
	for _, name := range []string{"a:1", "a/b:1"} {
		if out, err := skopeo(t, p, "ann", "copy", "oci:"+dir+":x", "docker://"+host+"/acme/web/"+name); err != nil {
			t.Fatalf("push: %v\n%s", err, out)
		}
	}
	for i, wantErr := range []error{nil, ErrNotFound} {
		if err := r.Delete(ctx, "acme/web/a", ""); !errors.Is(err, wantErr) {
			t.Errorf("Delete of all, %d: got %v, want %v", i, err, wantErr)
		}
	}
	if got, err := r.List(ctx, "acme", "web"); err != nil || len(got) != 1 || got[0].Name != "acme/web/a/b" {
		t.Errorf("List after a went: got %v %v, want a/b", got, err)
	}
	for _, name := range []string{"acme/web/a/b", "acme/web/hello"} {
		if err := r.Delete(ctx, name, ""); err != nil {
			t.Errorf("Delete of all of %s: %v", name, err)
		}
	}
	if _, err := os.Stat(r.repositoryDir("acme")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("folders are left: %v", err)
	}
	if got, err := r.List(ctx, "acme", "web"); err != nil || len(got) != 0 {
		t.Errorf("List after all went: got %v %v", got, err)
	}
}

// blobs counts the blobs that are stored.
func blobs(t *testing.T, r *Registry) (n int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(r.root(), "blobs"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "data" {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// age makes everything that is stored look a week old.
func age(t *testing.T, r *Registry) {
	t.Helper()
	old := time.Now().Add(-7 * 24 * time.Hour)
	err := filepath.WalkDir(r.root(), func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(p, old, old)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCollect(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, nil)
	ctx := t.Context()
	img := push1(t, p, host, "ann", "acme/web/keep:1", 2) // 4 blobs: manifest, config, 2 layers
	push1(t, p, host, "ann", "acme/web/drop:1", 2)
	ann := asUser(t, p, host, p.scope("acme/web/keep", "pull", "push"))
	if status, _, body := ann.do("POST", "/v2/acme/web/keep/blobs/uploads/", nil); status != 202 {
		t.Fatalf("begin upload: %d %s", status, body)
	}
	if err := r.Delete(ctx, "acme/web/drop", "1"); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Collect(ctx); err != nil || c != (Collected{}) {
		t.Errorf("Collect of what is new: got %+v %v, want nothing", c, err)
	}
	age(t, r)
	// A client that pushes asks what is there: that must stay.
	layer := layersOf(t, img)[0]
	drop := asUser(t, p, host, p.scope("acme/web/drop", "pull", "push"))
	if status, _, _ := drop.do("HEAD", "/v2/acme/web/drop/blobs/"+layer, nil); status != 404 {
		t.Errorf("HEAD of a blob of another repository: got %d, want 404", status)
	}

	r.gate.RLock()
	if _, err := r.Collect(ctx); !errors.Is(err, ErrBusy) {
		t.Errorf("Collect while somebody writes: got %v, want ErrBusy", err)
	}
	r.gate.RUnlock()
	c, err := r.Collect(ctx)
	if err != nil || c.Blobs != 4 || c.Links != 3 || c.Uploads != 1 || c.Bytes < 128<<10 {
		t.Errorf("Collect: got %+v %v, want 4 blobs, 3 links, 1 upload", c, err)
	}
	if n := blobs(t, r); n != 4 {
		t.Errorf("blobs: got %d, want 4", n)
	}
	if out, err := skopeo(t, p, "ann", "copy", "docker://"+host+"/acme/web/keep:1", "oci:"+t.TempDir()+":x"); err != nil {
		t.Errorf("pull after Collect: %v\n%s", err, out)
	}
	// Untagged by a later push of the same tag: still there for who runs it by digest.
	push1(t, p, host, "ann", "acme/web/keep:1", 1)
	age(t, r)
	if _, err := r.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Inspect(ctx, "acme/web/keep", digestOf(t, img)); err != nil {
		t.Errorf("Inspect of an untagged manifest: %v", err)
	}
	// A push that finds its blobs there and comes after the collector.
	if err := r.Delete(ctx, "acme/web/keep", digestOf(t, img)); err != nil {
		t.Fatal(err)
	}
	age(t, r)
	if status, _, _ := ann.do("HEAD", "/v2/acme/web/keep/blobs/"+layer, nil); status != 200 {
		t.Errorf("HEAD of an own blob: got %d, want 200", status)
	}
	if _, err := r.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	ann.want(200, "", "GET", "/v2/acme/web/keep/blobs/"+layer)

	if err := r.RemoveAll(ctx, "acme", "web"); err != nil {
		t.Fatal(err)
	}
	age(t, r)
	if _, err := r.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	if n := blobs(t, r); n != 0 {
		t.Errorf("blobs after the organization went: got %d, want 0", n)
	}
}

func TestFullDiskAndLimits(t *testing.T) {
	p := newPlatform(t)
	_, host := start(t, p, func(c *Config) { c.MinFreeBytes = 1 << 60 })
	dir, _ := image(t, 1)
	out, err := skopeo(t, p, "ann", "copy", "oci:"+dir+":x", "docker://"+host+"/acme/web/hello:1")
	if err == nil || !strings.Contains(out, "disk is nearly full") {
		t.Errorf("push to a full disk: got %v %s, want a clear error", err, out)
	}
	_, host = start(t, p, func(c *Config) { c.MaxBlobBytes = 1000 })
	out, err = skopeo(t, p, "ann", "copy", "oci:"+dir+":x", "docker://"+host+"/acme/web/hello:1")
	if err == nil {
		t.Errorf("push of a layer above the limit: got %s, want an error", out)
	}
	ann := asUser(t, p, host, p.scope("acme/web/hello", "pull", "push"))
	status, header, _ := ann.do("POST", "/v2/acme/web/hello/blobs/uploads/", nil)
	if status != 202 {
		t.Fatalf("begin upload: %d", status)
	}
	if status, _, body := ann.do("PATCH", header.Get("Location"), strings.NewReader(strings.Repeat("x", 2000))); status != 413 || !strings.Contains(body, "at most") {
		t.Errorf("upload above the limit: got %d %s, want 413", status, body)
	}
}

func TestUploadSurvivesARestart(t *testing.T) {
	p := newPlatform(t)
	addr := freeAddr(t)
	dir := t.TempDir()
	again := func() *Registry {
		r, err := New(Config{Addr: addr, Dir: dir, TLS: p.tls(t), NodeRuns: p.Runs, HasOrganization: p.Exists, MinFreeBytes: 1,
			Tokens: Tokens{Service: "test-service", Issuer: "test-issuer", Keys: p.keys}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	stop := parttest.Run(t, again().Run)
	defer stop()
	ann := asUser(t, p, addr, p.scope("acme/web/hello", "pull", "push"))
	_, header, _ := ann.do("POST", "/v2/acme/web/hello/blobs/uploads/", nil)
	status, header, body := ann.do("PATCH", header.Get("Location"), strings.NewReader("half"))
	if status != 202 {
		t.Fatalf("first half: %d %s", status, body)
	}
	stop()
	ann.client.CloseIdleConnections()
	defer parttest.Run(t, again().Run)()
	sum := digest.FromString("half done").String()
	if status, _, body := ann.do("PUT", header.Get("Location")+"&digest="+sum, strings.NewReader(" done")); status != 201 {
		t.Errorf("second half: got %d %s, want 201", status, body)
	}
	if body := ann.want(200, "", "GET", "/v2/acme/web/hello/blobs/"+sum); body != "half done" {
		t.Errorf("blob: got %q", body)
	}
}

func TestAccountHasItsLimit(t *testing.T) {
	p := newPlatform(t)
	limit := int64(1 << 40)
	_, host := start(t, p, func(c *Config) {
		c.Limit = func(account string) int64 {
			if account == "acme" {
				return limit
			}
			return 0
		}
	})
	dir, _ := image(t, 1)
	push := func(name string) (string, error) {
		return skopeo(t, p, "ann", "copy", "oci:"+dir+":x", "docker://"+host+"/acme/web/"+name)
	}
	if out, err := push("hello:1"); err != nil {
		t.Fatal(out)
	}
	limit = 1 // what is there is more
	out, err := push("other:1")
	if err == nil || !strings.Contains(out, "account acme may keep") || !strings.Contains(out, "mp accounts set") {
		t.Errorf("push above the limit: got %v %s", err, out)
	}
}
