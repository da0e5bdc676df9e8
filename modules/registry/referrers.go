package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// What refers to a manifest by its field "subject", signatures and bills of materials
// for the most part, is found by a folder of the repository:
//
//	_manifests/referrers/ALGORITHM/HEX              of the subject, whether it is there or not
//	_manifests/referrers/ALGORITHM/HEX/ALGORITHM-HEX  the descriptor of what refers to it
//	_manifests/referrers/ALGORITHM/HEX/removed        the subject was deleted: what refers to it goes, too
//
// A descriptor is written before its manifest and removed after it; who lists looks
// whether the manifest is there.
const (
	referrers = "_manifests/referrers"
	removed   = "removed"
)

// The bounds on what may refer to one subject, and on an answer that lists it.
const (
	maxReferrers   = 1000
	maxDescriptor  = nameCost // as it counts
	referrersPage  = 200
	referrersBytes = 2 << 20 // clients read 4 MiB
)

func (r *Registry) referrersDir(repository string, subject digest.Digest) string {
	return filepath.Join(r.repositoryDir(repository), referrers, subject.Algorithm().String(), subject.Encoded())
}

// referrer is the name of a descriptor's file.
func referrer(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// referrerOf is the digest that a descriptor's file is named by.
func referrerOf(name string) (digest.Digest, bool) {
	algorithm, hex, ok := strings.Cut(name, "-")
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)
	return d, ok && d.Validate() == nil
}

// describe is how a manifest stands in the list of what refers to its subject.
func describe(named digest.Digest, mediaType string, body []byte) (subject digest.Digest, descriptor []byte, err error) {
	var m struct {
		ArtifactType string
		Config       struct{ MediaType string }
		Annotations  map[string]string
		Subject      struct{ Digest digest.Digest }
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return "", nil, refuse(http.StatusBadRequest, "MANIFEST_INVALID", "the manifest can't be read: %v", err)
	}
	if m.ArtifactType == "" {
		m.ArtifactType = m.Config.MediaType
	}
	descriptor, err = json.Marshal(ocispec.Descriptor{
		MediaType: mediaType, Digest: named, Size: int64(len(body)), ArtifactType: m.ArtifactType, Annotations: m.Annotations,
	})
	if err == nil && len(descriptor) > maxDescriptor {
		err = refuse(http.StatusBadRequest, "MANIFEST_INVALID",
			"a manifest with a subject may have %d KiB of annotations, this one has more: put them into a layer", maxDescriptor>>10)
	}
	return m.Subject.Digest, descriptor, err
}

// addReferrer writes down that a manifest, which is about to be stored, refers to a subject.
func (r *Registry) addReferrer(repository string, subject, named digest.Digest, mediaType string, body []byte) error {
	_, descriptor, err := describe(named, mediaType, body)
	if err != nil {
		return err
	}
	dir := r.referrersDir(repository, subject)
	file := filepath.Join(dir, referrer(named))
	if entries, err := os.ReadDir(dir); err == nil && len(entries) >= maxReferrers && !exists(file) {
		return refuse(http.StatusForbidden, "DENIED",
			"%d manifests refer to %s already: delete those that are no longer needed", len(entries), subject)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("refer to %s@%s: %w", repository, subject, err)
	}
	if err := atomicfile.Write(file, descriptor, 0o600); err != nil {
		return fmt.Errorf("refer to %s@%s: %w", repository, subject, err)
	}
	return nil
}

// dropReferrer forgets that a manifest, which is gone, referred to its subject.
func (r *Registry) dropReferrer(repository string, names []digest.Digest, body []byte) error {
	var m struct {
		Subject struct{ Digest digest.Digest }
	}
	if json.Unmarshal(body, &m) != nil || m.Subject.Digest.Validate() != nil {
		return nil
	}
	dir := r.referrersDir(repository, m.Subject.Digest)
	for _, d := range names {
		if err := os.Remove(filepath.Join(dir, referrer(d))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what referred to %s@%s: %w", repository, m.Subject.Digest, err)
		}
	}
	_ = os.Remove(dir) // only if it was the last
	return nil
}

// orphan gives order that what refers to a manifest goes, which is about to be deleted. It is
// the only such order: what refers to what never was here stays.
func (r *Registry) orphan(repository string, names []digest.Digest) error {
	for _, d := range names {
		dir := r.referrersDir(repository, d)
		if !exists(dir) {
			continue
		}
		if err := atomicfile.Write(filepath.Join(dir, removed), nil, 0o600); err != nil {
			return fmt.Errorf("give up what refers to %s@%s: %w", repository, d, err)
		}
	}
	return nil
}

// revive takes that order back: the manifest was pushed again.
func (r *Registry) revive(repository string, names ...digest.Digest) error {
	for _, d := range names {
		err := os.Remove(filepath.Join(r.referrersDir(repository, d), removed))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("keep what refers to %s@%s: %w", repository, d, err)
		}
	}
	return nil
}

// serveReferrers lists what refers to a digest, by pages.
func (r *Registry) serveReferrers(w http.ResponseWriter, req *http.Request, t target) error {
	subject, err := digest.Parse(t.reference)
	if err != nil {
		return errDigest(t.reference)
	}
	q := req.URL.Query()
	want, last := q.Get("artifactType"), q.Get("last")
	limit := referrersPage
	if n := q.Get("n"); n != "" {
		asked, err := strconv.Atoi(n)
		if err != nil || asked < 1 {
			return refuse(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "%q is no number of entries", n)
		}
		limit = min(limit, asked)
	}
	dir := r.referrersDir(t.repository, subject)
	entries, err := os.ReadDir(dir) // by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list what refers to %s@%s: %w", t.repository, subject, err)
	}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
	size, more := 0, ""
	for _, e := range entries {
		d, ok := referrerOf(e.Name())
		if !ok || e.Name() <= last {
			continue
		}
		if _, there, err := r.canonical(t.repository, revisions, d); err != nil {
			return err
		} else if !there {
			continue // a push that was cut off, or a deletion
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		} else if err != nil {
			return fmt.Errorf("list what refers to %s@%s: %w", t.repository, subject, err)
		}
		var one ocispec.Descriptor
		if err := json.Unmarshal(text, &one); err != nil {
			return fmt.Errorf("read %s of what refers to %s@%s: %w", e.Name(), t.repository, subject, err)
		}
		if want != "" && one.ArtifactType != want {
			continue
		}
		if len(index.Manifests) == limit || size+len(text) > referrersBytes {
			more = referrer(index.Manifests[len(index.Manifests)-1].Digest)
			break
		}
		size += len(text)
		index.Manifests = append(index.Manifests, one)
	}
	h := w.Header()
	h.Set("Content-Type", ocispec.MediaTypeImageIndex)
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	if want != "" {
		h.Set("Oci-Filters-Applied", "artifactType")
	}
	if more != "" {
		next := url.Values{"last": {more}, "n": {strconv.Itoa(limit)}}
		if want != "" {
			next.Set("artifactType", want)
		}
		h.Set("Link", fmt.Sprintf(`</v2/%s/referrers/%s?%s>; rel="next"`, t.repository, subject, next.Encode()))
	}
	body, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("list what refers to %s@%s: %w", t.repository, subject, err)
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if req.Method == http.MethodGet {
		_, _ = w.Write(body)
	}
	return nil
}

// eachSubject calls f for every subject that something in the repository refers to.
func (r *Registry) eachSubject(repository string, f func(subject digest.Digest, dir string, entries []fs.DirEntry) error) error {
	base := filepath.Join(r.repositoryDir(repository), referrers)
	algorithms, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, a := range algorithms {
		var subjects []fs.DirEntry
		if err == nil {
			subjects, err = os.ReadDir(filepath.Join(base, a.Name()))
		}
		for _, s := range subjects {
			d := digest.NewDigestFromEncoded(digest.Algorithm(a.Name()), s.Name())
			if err != nil || d.Validate() != nil {
				break
			}
			dir := filepath.Join(base, a.Name(), s.Name())
			var entries []fs.DirEntry
			if entries, err = os.ReadDir(dir); err == nil {
				err = f(d, dir, entries)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("what refers to what in %s: %w", repository, err)
	}
	return nil
}

// isRemoved says whether the order was given that what refers to the subject goes.
func isRemoved(entries []fs.DirEntry) bool {
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == removed })
}
