package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/distribution/v3"
	_ "github.com/distribution/distribution/v3/manifest/manifestlist" // the kinds of manifest that UnmarshalManifest knows
	_ "github.com/distribution/distribution/v3/manifest/ocischema"
	_ "github.com/distribution/distribution/v3/manifest/schema2"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
)

// Manifests are served here and not by distribution's handler, which knows neither
// subjects nor other digests than SHA-256, and refuses a client that doesn't list
// all types it takes. They are stored by distribution's services.
//
// Content is stored under its SHA-256. Who pushes it by another digest gets an alias
// beside: a link of that name to the first. An alias counts as long as the link of the
// repository that it stands for is there, so that no order of deletion leaves one behind.

// maxTagParams is how many tags a manifest may get in one push by digest; the
// specification asks for ten at least.
const maxTagParams = 16

// otherDigests are the algorithms, beside SHA-256, by which content may be named.
var otherDigests = []digest.Algorithm{digest.SHA384, digest.SHA512}

// link is where the repository says that it has d.
func (r *Registry) link(repository, kind string, d digest.Digest) string {
	return filepath.Join(r.repositoryDir(repository), kind, d.Algorithm().String(), d.Encoded(), "link")
}

// blob is where content is stored.
func (r *Registry) blob(d digest.Digest) string {
	return filepath.Join(r.root(), "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}

// canonical returns the SHA-256 digest under which the repository has d, which must be
// valid, and whether it has it.
func (r *Registry) canonical(repository, kind string, d digest.Digest) (digest.Digest, bool, error) {
	text, err := os.ReadFile(r.link(repository, kind, d))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	} else if err != nil {
		return "", false, fmt.Errorf("look up %s@%s: %w", repository, d, err)
	}
	to, err := digest.Parse(string(text))
	if err != nil {
		return "", false, fmt.Errorf("link of %s@%s says %q: %w", repository, d, text, err)
	}
	if to != d {
		if _, err := os.Stat(r.link(repository, kind, to)); err != nil {
			return "", false, nil //nolint:nilerr // what it stood for is gone
		}
	}
	if _, err := os.Stat(r.blob(to)); err != nil {
		return "", false, nil //nolint:nilerr // deleted
	}
	return to, true, nil
}

// writeLink has the repository name content, which is stored under its SHA-256, by d.
func (r *Registry) writeLink(repository, kind string, d, canonical digest.Digest) error {
	file := r.link(repository, kind, d)
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		err = atomicfile.Write(file, []byte(canonical), 0o600)
	}
	if err != nil {
		return fmt.Errorf("name %s@%s %s: %w", repository, canonical, d, err)
	}
	return nil
}

// dropAliases takes away the other names of a manifest, and returns all it had or could
// have had.
func (r *Registry) dropAliases(repository string, canonical digest.Digest, body []byte) ([]digest.Digest, error) {
	names := []digest.Digest{canonical}
	for _, a := range otherDigests {
		d := a.FromBytes(body)
		names = append(names, d)
		if err := os.RemoveAll(filepath.Dir(r.link(repository, revisions, d))); err != nil {
			return nil, fmt.Errorf("delete %s@%s: %w", repository, d, err)
		}
	}
	return names, nil
}

// lookUp finds what a tag or digest of the repository names: the digest it goes by
// and the one under which it is stored. ErrNotFound: there is none.
func (r *Registry) lookUp(ctx context.Context, repository, ref string) (named, canonical digest.Digest, err error) {
	named, err = digest.Parse(ref)
	if err != nil {
		if !isTag(ref) {
			return "", "", fmt.Errorf("%s: %q is neither a tag nor a digest: %w", repository, ref, ErrNotFound)
		}
		repo, _, err := r.open(ctx, repository)
		if err != nil {
			return "", "", err
		}
		desc, err := repo.Tags(ctx).Get(ctx, ref)
		_, noTag := errors.AsType[distribution.ErrTagUnknown](err)
		_, noRepo := errors.AsType[distribution.ErrRepositoryUnknown](err)
		if noTag || noRepo {
			return "", "", fmt.Errorf("%s:%s: %w", repository, ref, ErrNotFound)
		}
		if err != nil {
			return "", "", fmt.Errorf("look up %s:%s: %w", repository, ref, err)
		}
		named = desc.Digest
	}
	canonical, ok, err := r.canonical(repository, revisions, named)
	if err == nil && !ok {
		err = fmt.Errorf("%s@%s: %w", repository, named, ErrNotFound)
	}
	return named, canonical, err
}

var tagPattern = regexp.MustCompile("^" + reference.TagRegexp.String() + "$")

func isTag(s string) bool { return tagPattern.MatchString(s) }

// serveManifest answers a request for a manifest, or to put or delete one.
func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, t target) error {
	if strings.Contains(t.reference, ":") && digest.Digest(t.reference).Validate() != nil {
		return errDigest(t.reference)
	}
	if req.Method == http.MethodPut {
		return r.putManifest(w, req, t)
	}
	ctx := req.Context()
	named, canonical, err := r.lookUp(ctx, t.repository, t.reference)
	if req.Method == http.MethodDelete && isTag(t.reference) {
		// It goes also if what it names is gone.
		if err = r.untag(ctx, t.repository, t.reference); err == nil {
			w.WriteHeader(http.StatusAccepted)
		}
	}
	if errors.Is(err, ErrNotFound) {
		return refuse(http.StatusNotFound, "MANIFEST_UNKNOWN", "repository %s has no image %s", t.repository, t.reference)
	}
	if err != nil || req.Method == http.MethodDelete && isTag(t.reference) {
		return err
	}
	if req.Method == http.MethodDelete {
		if err := r.deleteImage(ctx, t.repository, t.reference, canonical); err != nil {
			return err
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	etag := strconv.Quote(named.String())
	w.Header().Set("Docker-Content-Digest", named.String())
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("Etag", etag)
	for _, have := range req.Header.Values("If-None-Match") {
		if have == etag || have == named.String() {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	_, manifests, err := r.open(ctx, t.repository)
	if err != nil {
		return err
	}
	m, err := manifests.Get(ctx, canonical)
	if err != nil {
		return fmt.Errorf("read %s@%s: %w", t.repository, canonical, err)
	}
	mediaType, body, err := m.Payload()
	if err != nil {
		return fmt.Errorf("read %s@%s: %w", t.repository, canonical, err)
	}
	// Whatever types the client lists: there is one form of it, and to refuse it would
	// say that there is no image.
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if req.Method == http.MethodGet {
		_, _ = w.Write(body)
	}
	return nil
}

// putManifest stores a manifest under its digest and its tags.
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, t target) error {
	ctx := req.Context()
	body, err := readAll(req.Body, maxManifest)
	if no, ok := errors.AsType[*refusal](err); ok {
		return no
	} else if err != nil {
		return refuse(http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "the manifest can't be read: %v", err)
	}
	subject, err := checkManifest(body)
	if err != nil {
		return err
	}
	mediaType, _, _ := mime.ParseMediaType(cmp.Or(req.Header.Get("Content-Type"), mediaTypeOf(body)))
	m, desc, err := distribution.UnmarshalManifest(mediaType, body)
	if err != nil {
		return refuse(http.StatusBadRequest, "MANIFEST_INVALID", "this is no manifest of type %q: %v", mediaType, err)
	}
	named, tags := desc.Digest, []string{t.reference}
	params := req.URL.Query()["tag"]
	if d, err := digest.Parse(t.reference); err == nil {
		if d.Algorithm().FromBytes(body) != d {
			return refuse(http.StatusBadRequest, "DIGEST_INVALID", "the manifest's digest is %s, not %s", desc.Digest, d)
		}
		named, tags = d, params
	}
	if len(tags) > maxTagParams {
		return refuse(http.StatusRequestURITooLong, "TAG_INVALID", "%d tags at once: at most %d", len(tags), maxTagParams)
	}
	for _, tag := range tags {
		if !isTag(tag) {
			return errTag(tag)
		}
	}
	repo, manifests, err := r.open(ctx, t.repository)
	if err != nil {
		return err
	}
	account, _, err := splitName(t.repository)
	if err != nil {
		return err
	}
	u, err := r.usageOf(account)
	if err != nil {
		return err
	}
	files := []string{r.link(t.repository, revisions, desc.Digest)}
	if named != desc.Digest {
		files = append(files, r.link(t.repository, revisions, named))
	}
	for _, tag := range tags {
		dir := filepath.Join(r.repositoryDir(t.repository), "_manifests", "tags", tag)
		files = append(files, filepath.Join(dir, "current"), filepath.Join(dir, "index", named.Algorithm().String(), named.Encoded()))
	}
	if subject != nil {
		files = append(files, filepath.Join(r.referrersDir(t.repository, subject.Digest), referrer(named)))
	}
	names := missing(files...) + r.newFolders(t.repository)
	known := subject != nil && exists(filepath.Join(r.referrersDir(t.repository, subject.Digest), referrer(named)))
	if subject != nil {
		if err := r.addReferrer(t.repository, subject.Digest, named, mediaType, body); err != nil {
			return err
		}
	}
	if _, err := manifests.Put(ctx, m); err != nil {
		if subject != nil && !known {
			err = errors.Join(err, r.dropReferrer(t.repository, []digest.Digest{named}, body))
		}
		return putRefused(t.repository, err)
	}
	if named != desc.Digest {
		if err := r.writeLink(t.repository, revisions, named, desc.Digest); err != nil {
			return err
		}
	}
	for _, tag := range tags {
		if err := repo.Tags(ctx).Tag(ctx, tag, ocispec.Descriptor{Digest: named}); err != nil {
			return fmt.Errorf("tag %s:%s: %w", t.repository, tag, err)
		}
	}
	if err := r.revive(t.repository, named, desc.Digest); err != nil {
		return err
	}
	u.add(desc.Digest, int64(len(body)), names)
	if len(params) > 0 {
		w.Header().Set("Oci-Tag", strings.Join(tags, ", "))
	}
	if subject != nil {
		w.Header().Set("Oci-Subject", subject.Digest.String())
	}
	w.Header().Set("Docker-Content-Digest", named.String())
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("Location", "/v2/"+t.repository+"/manifests/"+named.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// mediaTypeOf is what a manifest says of itself, for clients that don't.
func mediaTypeOf(body []byte) string {
	var m struct{ MediaType string }
	_ = json.Unmarshal(body, &m) // what is wrong with it is said later
	return m.MediaType
}

// putRefused says what keeps the storage from taking a manifest.
func putRefused(repository string, err error) error {
	all, ok := errors.AsType[distribution.ErrManifestVerification](err)
	if !ok {
		return fmt.Errorf("put a manifest into %s: %w", repository, err)
	}
	for _, one := range all {
		if missing, ok := errors.AsType[distribution.ErrManifestBlobUnknown](one); ok {
			return refuse(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN",
				"the manifest names %s, which %s does not have: push that first", missing.Digest, repository)
		}
	}
	return refuse(http.StatusBadRequest, "MANIFEST_INVALID", "the manifest is not taken: %v", err)
}

// checkManifest refuses a manifest that has something of another kind where a part
// is named, names one by what is no digest, or is of another version than the
// only one there is, and returns what it refers to. All else that may be wrong with
// it the storage says itself.
func checkManifest(body []byte) (subject *ocispec.Descriptor, err error) {
	type descriptor struct{ Digest *digest.Digest }
	var m struct {
		SchemaVersion     int
		Config, Subject   *descriptor
		Layers, Manifests []descriptor
	}
	err = json.NewDecoder(bytes.NewReader(body)).Decode(&m)
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		what, _, _ := strings.Cut(kind.Value, " ") // a number is followed by all its digits
		return nil, refuse(http.StatusBadRequest, "MANIFEST_INVALID",
			"%s of the manifest can't be of type %s", cmp.Or(kind.Field, "the whole"), what)
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "MANIFEST_INVALID", "the manifest is no JSON: %v", err)
	}
	if m.SchemaVersion != 2 {
		return nil, refuse(http.StatusBadRequest, "MANIFEST_INVALID", "the manifest's schemaVersion is %d, want 2", m.SchemaVersion)
	}
	all := append(m.Layers, m.Manifests...)
	for _, d := range []*descriptor{m.Config, m.Subject} {
		if d != nil {
			all = append(all, *d)
		}
	}
	for _, d := range all {
		if d.Digest == nil {
			return nil, refuse(http.StatusBadRequest, "MANIFEST_INVALID", "the manifest names a part without a digest")
		}
		if d.Digest.Validate() != nil {
			return nil, refuse(http.StatusBadRequest, "MANIFEST_INVALID", "the manifest names a part by %q, which is no digest", *d.Digest)
		}
	}
	if m.Subject == nil {
		return nil, nil
	}
	return &ocispec.Descriptor{Digest: *m.Subject.Digest}, nil
}

// untag removes a tag. ErrNotFound: there is none.
func (r *Registry) untag(ctx context.Context, repository, tag string) error {
	repo, _, err := r.open(ctx, repository)
	if err != nil {
		return err
	}
	if _, err := repo.Tags(ctx).Get(ctx, tag); err != nil {
		_, noTag := errors.AsType[distribution.ErrTagUnknown](err)
		if noTag {
			return ErrNotFound
		}
		return fmt.Errorf("look up %s:%s: %w", repository, tag, err)
	}
	if err := repo.Tags(ctx).Untag(ctx, tag); err != nil {
		return fmt.Errorf("delete tag %s:%s: %w", repository, tag, err)
	}
	return nil
}

// deleteImage removes a manifest with all its tags and other names, or a tag, and its
// manifest if no other tag names it. What refers to the manifest goes with the next
// collection. canonical is "" if the manifest of a tag is gone.
func (r *Registry) deleteImage(ctx context.Context, repository, ref string, canonical digest.Digest) error {
	byTag := isTag(ref)
	drop := func() error { return nil }
	tags := []string{ref}
	if canonical != "" {
		all, err := r.tagsOf(ctx, repository, canonical)
		if err != nil {
			return err
		}
		if !byTag {
			tags = all
		}
		if !byTag || !slices.ContainsFunc(all, func(tag string) bool { return tag != ref }) {
			drop = func() error { return r.dropManifest(ctx, repository, canonical) }
		}
	}
	untag := func() error {
		for _, tag := range tags {
			if err := r.untag(ctx, repository, tag); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		return nil
	}
	// What it is asked for by goes last. The other way round nobody found, after a
	// kill in between, the manifest of a tag that is gone, and its blobs stayed.
	steps := []func() error{untag, drop}
	if byTag {
		steps = []func() error{drop, untag}
	}
	if err := steps[0](); err != nil {
		return err
	}
	failpoint.Reach("image/delete/one-removed")
	return steps[1]()
}

// dropManifest removes a manifest that no tag names.
func (r *Registry) dropManifest(ctx context.Context, repository string, canonical digest.Digest) error {
	body, err := os.ReadFile(r.blob(canonical))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("delete %s@%s: %w", repository, canonical, err)
	}
	names, err := r.dropAliases(repository, canonical, body)
	if err != nil {
		return err
	}
	if err := r.orphan(repository, names); err != nil {
		return err
	}
	_, manifests, err := r.open(ctx, repository)
	if err != nil {
		return err
	}
	if there, err := manifests.Exists(ctx, canonical); err != nil {
		return fmt.Errorf("delete %s@%s: %w", repository, canonical, err)
	} else if there {
		if err := manifests.Delete(ctx, canonical); err != nil {
			return fmt.Errorf("delete %s@%s: %w", repository, canonical, err)
		}
	}
	return r.dropReferrer(repository, names, body)
}

// tagsOf are the tags that name a manifest, by whichever of its digests.
func (r *Registry) tagsOf(ctx context.Context, repository string, canonical digest.Digest) ([]string, error) {
	repo, _, err := r.open(ctx, repository)
	if err != nil {
		return nil, err
	}
	names := []digest.Digest{canonical}
	if body, err := os.ReadFile(r.blob(canonical)); err == nil {
		for _, a := range otherDigests {
			if d := a.FromBytes(body); exists(r.link(repository, revisions, d)) {
				names = append(names, d)
			}
		}
	}
	var all []string
	for _, d := range names {
		tags, err := repo.Tags(ctx).Lookup(ctx, ocispec.Descriptor{Digest: d})
		if err != nil {
			return nil, fmt.Errorf("look up tags of %s@%s: %w", repository, d, err)
		}
		all = append(all, tags...)
	}
	return all, nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
