package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pushBlob uploads content under the digest.
func (a *asker) pushBlob(repository, content string, d digest.Digest) {
	a.t.Helper()
	status, header, body := a.do("POST", "/v2/"+repository+"/blobs/uploads/?digest="+url.QueryEscape(d.String()), strings.NewReader(content), "Content-Type", "application/octet-stream")
	if status != 201 || header.Get("Location") != "/v2/"+repository+"/blobs/"+d.String() || header.Get("Docker-Content-Digest") != d.String() {
		a.t.Fatalf("push %s: %d %v %s", d, status, header, body)
	}
}

// manifestOf is a manifest of an artifact with that subject, if any.
func manifestOf(artifactType string, config digest.Digest, subject digest.Digest, annotations string) string {
	m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[]`,
		ocispec.MediaTypeImageManifest, artifactType, config)
	if subject != "" {
		m += fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":1}`, ocispec.MediaTypeImageManifest, subject)
	}
	if annotations != "" {
		m += `,"annotations":{"a":"` + annotations + `"}`
	}
	return m + "}"
}

// pushManifest puts it under a tag, or its SHA-256 if that is "".
func (a *asker) pushManifest(repository, ref, manifest string) digest.Digest {
	a.t.Helper()
	d := digest.FromString(manifest)
	if ref == "" {
		ref = d.String()
	}
	status, _, body := a.do("PUT", "/v2/"+repository+"/manifests/"+ref, strings.NewReader(manifest), "Content-Type", ocispec.MediaTypeImageManifest)
	if status != 201 {
		a.t.Fatalf("push %s:%s: %d %s", repository, ref, status, body)
	}
	return d
}

// referrers lists what refers to a digest, page by page.
func (a *asker) referrers(repository string, subject digest.Digest, query string) (all []digest.Digest) {
	a.t.Helper()
	for next := "/v2/" + repository + "/referrers/" + subject.String() + query; next != ""; {
		status, header, body := a.do("GET", next, nil)
		var index ocispec.Index
		if err := json.Unmarshal([]byte(body), &index); err != nil || status != 200 || index.Manifests == nil || header.Get("Content-Type") != ocispec.MediaTypeImageIndex {
			a.t.Fatalf("%s: %d %s, %v", next, status, body, err)
		}
		for _, m := range index.Manifests {
			all = append(all, m.Digest)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(header.Get("Link"), "<"), ">")
	}
	return all
}

const emptyConfig = digest.Digest("sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a") // of {}

func TestReferrers(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, nil)
	const repo = "acme/web/app"
	ann := asUser(t, p, host, p.scope(repo, "pull", "push", "delete"))
	ann.pushBlob(repo, "{}", emptyConfig)
	ops := asUser(t, p, host, p.scope("acme/ops/app", "pull", "push", "delete"))
	ops.pushBlob("acme/ops/app", "{}", emptyConfig)

	image := manifestOf("", emptyConfig, "", "the image")
	subject := digest.FromString(image)
	// The signature may be there first.
	status, header, body := ann.do("PUT", "/v2/"+repo+"/manifests/sig", strings.NewReader(manifestOf("a/sig", emptyConfig, subject, "tagged")), "Content-Type", ocispec.MediaTypeImageManifest)
	if status != 201 || header.Get("Oci-Subject") != subject.String() {
		t.Fatalf("put a referrer: %d %v %s", status, header, body)
	}
	tagged := digest.FromString(manifestOf("a/sig", emptyConfig, subject, "tagged"))
	ann.pushManifest(repo, "1", image)
	bom := ann.pushManifest(repo, "", manifestOf("a/bom", emptyConfig, subject, ""))
	onBom := ann.pushManifest(repo, "", manifestOf("a/sig", emptyConfig, bom, "of the bom"))
	elsewhere := ann.pushManifest(repo, "", manifestOf("a/sig", emptyConfig, digest.FromString("in another repository"), ""))
	foreign := ops.pushManifest("acme/ops/app", "", manifestOf("a/sig", emptyConfig, subject, "of another organization"))

	same := func(what string, got []digest.Digest, want ...digest.Digest) {
		t.Helper()
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
	}
	same("all", ann.referrers(repo, subject, ""), tagged, bom)
	same("by pages", ann.referrers(repo, subject, "?n=1"), tagged, bom)
	same("of a type", ann.referrers(repo, subject, "?artifactType=a/bom"), bom)
	same("of a type, by pages", ann.referrers(repo, subject, "?n=1&artifactType=a/bom"), bom)
	same("of no type", ann.referrers(repo, subject, "?artifactType=x"))
	same("of another repository", ops.referrers("acme/ops/app", subject, ""), foreign)
	if _, header, _ := ann.do("GET", "/v2/"+repo+"/referrers/"+subject.String()+"?artifactType=a/bom", nil); header.Get("Oci-Filters-Applied") != "artifactType" {
		t.Errorf("the filter is not said: %v", header)
	}
	ops.want(401, "DENIED", "GET", "/v2/"+repo+"/referrers/"+subject.String())
	asNode(t, p, host, "node1", "acme/web/shop").want(200, bom.String(), "GET", "/v2/"+repo+"/referrers/"+subject.String())
	asNode(t, p, host, "node2", "umbrella/lab/virus").want(403, "own organization", "GET", "/v2/"+repo+"/referrers/"+subject.String())
	ann.want(400, "PAGINATION_NUMBER_INVALID", "GET", "/v2/"+repo+"/referrers/"+subject.String()+"?n=0")
	ann.want(400, "no digest", "GET", "/v2/"+repo+"/referrers/latest")
	ann.want(404, "UNSUPPORTED", "DELETE", "/v2/"+repo+"/referrers/"+subject.String())

	// The bounds.
	status, _, body = ann.do("PUT", "/v2/"+repo+"/manifests/big", strings.NewReader(manifestOf("a", emptyConfig, subject, strings.Repeat("x", maxDescriptor))), "Content-Type", ocispec.MediaTypeImageManifest)
	if status != 400 || !strings.Contains(body, "annotations") {
		t.Errorf("a referrer with large annotations: %d %s", status, body)
	}
	// One that is refused leaves nothing behind.
	invented, missing := digest.FromString("invented"), digest.FromString("missing")
	status, _, body = ann.do("PUT", "/v2/"+repo+"/manifests/refused", strings.NewReader(manifestOf("a", missing, invented, "")), "Content-Type", ocispec.MediaTypeImageManifest)
	if status != 400 && status != 404 || exists(r.referrersDir(repo, invented)) {
		t.Errorf("a referrer without its blobs: %d %s; the descriptor is there: %v", status, body, exists(r.referrersDir(repo, invented)))
	}
	crowded := digest.FromString("crowded")
	for i := range maxReferrers {
		file := filepath.Join(r.referrersDir(repo, crowded), referrer(digest.FromString(fmt.Sprint(i))))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte("{}"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	status, _, body = ann.do("PUT", "/v2/"+repo+"/manifests/more", strings.NewReader(manifestOf("a", emptyConfig, crowded, "")), "Content-Type", ocispec.MediaTypeImageManifest)
	if status != 403 || !strings.Contains(body, "1000 manifests refer") {
		t.Errorf("one referrer too many: %d %s", status, body)
	}
	same("entries without a manifest", ann.referrers(repo, crowded, ""))

	// What an older program took, or a kill cut off, is found by the collector.
	if err := os.RemoveAll(filepath.Join(r.repositoryDir(repo), referrers)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	same("after a collection", ann.referrers(repo, subject, ""), tagged, bom)

	// The subject goes, and comes again before the collector: nothing is lost.
	ann.want(202, "", "DELETE", "/v2/"+repo+"/manifests/"+subject.String())
	ann.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/"+repo+"/manifests/1")
	ann.pushManifest(repo, "1", image)
	age(t, r)
	if c, err := r.Collect(t.Context()); err != nil || c.Manifests != 0 {
		t.Errorf("after the subject came again: %+v %v", c, err)
	}
	// It goes for good: so does what refers to it, and what refers to that; not what has a
	// tag, what refers to what never was here, and what another organization has.
	if err := r.Delete(t.Context(), repo, "1"); err != nil {
		t.Fatal(err)
	}
	if c, err := r.Collect(t.Context()); err != nil || c.Manifests != 2 {
		t.Errorf("after the subject went: %+v %v, want 2 manifests", c, err)
	}
	for d, want := range map[digest.Digest]int{tagged: 200, bom: 404, onBom: 404, elsewhere: 200} {
		if status, _, _ := ann.do("GET", "/v2/"+repo+"/manifests/"+d.String(), nil); status != want {
			t.Errorf("%s after its subject went: %d, want %d", d, status, want)
		}
	}
	ops.want(200, "", "GET", "/v2/acme/ops/app/manifests/"+foreign.String())
	// Without its tag it goes, too.
	ann.want(202, "", "DELETE", "/v2/"+repo+"/manifests/sig")
	if c, err := r.Collect(t.Context()); err != nil || c.Manifests != 1 {
		t.Errorf("after the tag went: %+v %v, want 1 manifest", c, err)
	}
	ann.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/"+repo+"/manifests/"+tagged.String())
	if exists(r.referrersDir(repo, subject)) {
		t.Error("the order is still there")
	}
}

// TestOtherDigests: what is pushed by SHA-512 is served by it, and kept and deleted like
// all else; and a digest of another's content is of no use, whichever it is.
func TestOtherDigests(t *testing.T) {
	p := newPlatform(t)
	r, host := start(t, p, nil)
	const repo = "acme/web/app"
	token := p.sign(jwt.Claims{Subject: "ann"}, []map[string]any{
		{"type": "repository", "name": repo, "actions": []string{"pull", "push", "delete"}},
		{"type": "repository", "name": "acme/web/other", "actions": []string{"pull", "push", "delete"}},
	})
	ann := asUser(t, p, host, token)
	const content = "some content"
	d := digest.SHA512.FromString(content)
	ann.pushBlob(repo, content, d)
	blob := "/v2/" + repo + "/blobs/"
	status, header, body := ann.do("GET", blob+d.String(), nil)
	if status != 200 || body != content || header.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("GET by SHA-512: %d %v %q", status, header, body)
	}
	if _, _, body := ann.do("GET", blob+d.String(), nil, "Range", "bytes=5-6"); body != "co" {
		t.Errorf("a range: %q", body)
	}
	ann.want(200, content, "GET", blob+digest.FromString(content).String())
	ann.want(400, "DIGEST_INVALID", "GET", blob+"md5:0123456789abcdef0123456789abcdef")

	bob := asUser(t, p, host, p.scope("umbrella/lab/x", "pull", "push"))
	bob.want(404, "BLOB_UNKNOWN", "GET", "/v2/umbrella/lab/x/blobs/"+d.String())
	mount := "/blobs/uploads/?mount=" + url.QueryEscape(d.String()) + "&from=" + repo
	if status, _, body := bob.do("POST", "/v2/umbrella/lab/x"+mount, nil); status != 202 {
		t.Errorf("mount of a foreign blob by SHA-512: %d %s", status, body)
	}
	if status, header, body := ann.do("POST", "/v2/acme/web/other"+mount, nil); status != 201 || header.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("mount of an own blob by SHA-512: %d %v %s", status, header, body)
	}
	ann.want(200, content, "GET", "/v2/acme/web/other/blobs/"+d.String())
	ann.want(202, "", "DELETE", "/v2/acme/web/other/blobs/"+d.String())
	ann.want(404, "BLOB_UNKNOWN", "GET", "/v2/acme/web/other/blobs/"+d.String())
	ann.want(404, "BLOB_UNKNOWN", "GET", "/v2/acme/web/other/blobs/"+digest.FromString(content).String())

	// A manifest that names its part so, by its own SHA-512 and two tags.
	m := manifestOf("a", d, "", "")
	md := digest.SHA512.FromString(m)
	status, header, body = ann.do("PUT", "/v2/"+repo+"/manifests/"+md.String()+"?tag=1&tag=2", strings.NewReader(m), "Content-Type", ocispec.MediaTypeImageManifest)
	if status != 201 || header.Get("Oci-Tag") != "1, 2" || header.Get("Docker-Content-Digest") != md.String() {
		t.Fatalf("push by SHA-512: %d %v %s", status, header, body)
	}
	sig := ann.pushManifest(repo, "", manifestOf("a/sig", d, md, ""))
	age(t, r)
	if c, err := r.Collect(t.Context()); err != nil || c.Links != 1 || c.Manifests != 0 || c.Blobs != 0 {
		t.Errorf("Collect: %+v %v, want the one name that was deleted", c, err)
	}
	for _, ref := range []string{"1", "2", md.String(), digest.FromString(m).String()} {
		ann.want(200, `"artifactType":"a"`, "GET", "/v2/"+repo+"/manifests/"+ref)
		// Machines pull by the digest that all of them know.
		if got, err := r.Inspect(t.Context(), repo, ref); got.Digest != digest.FromString(m).String() {
			t.Errorf("Inspect %s: %v %v", ref, got, err)
		}
	}
	ann.want(200, content, "GET", blob+d.String())
	for _, wrong := range []string{digest.SHA512.FromString("else").String(), digest.FromString("else").String()} {
		if status, _, body := ann.do("PUT", "/v2/"+repo+"/manifests/"+wrong, strings.NewReader(m), "Content-Type", ocispec.MediaTypeImageManifest); status != 400 || !strings.Contains(body, "DIGEST_INVALID") {
			t.Errorf("push under a wrong digest: %d %s", status, body)
		}
	}
	// Deleted by one of its digests it is gone by all, with its tags and what refers to it.
	ann.want(202, "", "DELETE", "/v2/"+repo+"/manifests/"+digest.FromString(m).String())
	for _, ref := range []string{"1", "2", md.String(), digest.FromString(m).String()} {
		ann.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/"+repo+"/manifests/"+ref)
	}
	for range 2 { // the first finds that what names it goes
		if _, err := r.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		age(t, r)
	}
	ann.want(404, "MANIFEST_UNKNOWN", "GET", "/v2/"+repo+"/manifests/"+sig.String())
	if n := blobs(t, r); n != 0 {
		t.Errorf("%d blobs are left", n)
	}
}

// TestAsClientsAsk: what a dozen tools do beyond docker push.
func TestAsClientsAsk(t *testing.T) {
	p := newPlatform(t)
	var log lockedBuffer
	_, host := start(t, p, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	const repo = "acme/web/app"
	ann := asUser(t, p, host, p.scope(repo, "pull", "push", "delete"))
	ann.want(404, "", "HEAD", "/v2/"+repo+"/blobs/"+emptyConfig.String())
	if strings.Contains(log.String(), "ERROR") {
		t.Errorf("to look whether a blob is there is an error in the log: %s", log.String())
	}
	ann.pushBlob(repo, "{}", emptyConfig)
	long := strings.Repeat("x", 128)
	d := ann.pushManifest(repo, long, manifestOf("a", emptyConfig, "", ""))
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":1}]}`, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, d)
	if status, _, body := ann.do("PUT", "/v2/"+repo+"/manifests/index", strings.NewReader(index)); status != 201 {
		t.Errorf("an index without a Content-Type: %d %s", status, body)
	}
	// An image or an index of which a part is missing is refused.
	absent := digest.FromString("nobody has this")
	for mediaType, m := range map[string]string{
		ocispec.MediaTypeImageIndex:    strings.Replace(index, d.String(), absent.String(), 1),
		ocispec.MediaTypeImageManifest: manifestOf("a", absent, "", ""),
	} {
		if status, _, body := ann.do("PUT", "/v2/"+repo+"/manifests/sparse", strings.NewReader(m), "Content-Type", mediaType); status != 400 || !strings.Contains(body, "MANIFEST_BLOB_UNKNOWN") {
			t.Errorf("%s of what is not there: %d %s", mediaType, status, body)
		}
	}
	for _, accept := range []string{"", "*/*", "text/html", "application/vnd.docker.distribution.manifest.v2+json", "application/*, */*;q=0.1"} {
		for _, ref := range []string{long, "index"} {
			ann.header.Del("Accept")
			if accept != "" {
				ann.header.Set("Accept", accept)
			}
			ann.want(200, `"schemaVersion":2`, "GET", "/v2/"+repo+"/manifests/"+ref)
			ann.want(200, "", "HEAD", "/v2/"+repo+"/manifests/"+ref)
		}
	}
	if status, _, _ := ann.do("GET", "/v2/"+repo+"/manifests/"+long, nil, "If-None-Match", `"`+d.String()+`"`); status != http.StatusNotModified {
		t.Errorf("what the client has: %d, want 304", status)
	}
	for path, want := range map[string]string{
		repo + "/manifests/" + long + "x":         "TAG_INVALID",
		repo + "/manifests/-x":                    "TAG_INVALID",
		repo + "/manifests/sha256:0":              "DIGEST_INVALID",
		"acme/web/App/manifests/1":                "NAME_INVALID",
		"Acme/web/app/tags/list":                  "NAME_INVALID",
		repo + "/blobs/nonsense":                  "DIGEST_INVALID",
		repo + "/manifests/1?tag=" + long + "x":   "",
		"acme/web/app/manifests/none":             "MANIFEST_UNKNOWN",
		"acme/web/app/nothing/of/that/kind/there": "UNSUPPORTED",
	} {
		status, _, body := ann.do("GET", "/v2/"+path, nil)
		if status < 400 || status >= 500 || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d %s, want %s", path, status, body, want)
		}
	}
	// Chunks that don't follow each other.
	_, header, _ := ann.do("POST", "/v2/"+repo+"/blobs/uploads/", nil)
	status, header, body := ann.do("PATCH", header.Get("Location"), strings.NewReader("half"), "Content-Range", "0-3")
	if status != 202 || header.Get("Range") != "0-3" {
		t.Fatalf("the first chunk: %d %v %s", status, header, body)
	}
	at := header.Get("Location")
	for _, chunk := range []string{"0-3", "8-11", "3-6"} {
		if status, _, body := ann.do("PATCH", at, strings.NewReader("done"), "Content-Range", chunk); status != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("chunk %s after 0-3: %d %s, want 416", chunk, status, body)
		}
	}
	if status, _, body := ann.do("PUT", at+"&digest="+digest.FromString("halfdone").String(), strings.NewReader("done"), "Content-Range", "4-7"); status != 201 {
		t.Errorf("the last chunk: %d %s", status, body)
	}
	// Tags by pages.
	for i := range 5 {
		ann.pushManifest(repo, fmt.Sprint("t", i), manifestOf("a", emptyConfig, "", ""))
	}
	_, header, body = ann.do("GET", "/v2/"+repo+"/tags/list?n=3", nil)
	if !strings.Contains(header.Get("Link"), `rel="next"`) || strings.Count(body, ",") != 3 {
		t.Errorf("a page of tags: %v %s", header, body)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
