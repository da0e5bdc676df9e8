package registry

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/distribution/distribution/v3"
	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// serveBlob answers a request for a blob, or to delete one. distribution's handler is
// asked only for what is there, for it takes a client who looks first for an error.
func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, t target, who principal) error {
	d, err := digest.Parse(t.reference)
	if err != nil {
		return errDigest(t.reference)
	}
	canonical, there, err := r.canonical(t.repository, layers, d)
	if err != nil {
		return err
	}
	if !there {
		return refuse(http.StatusNotFound, "BLOB_UNKNOWN", "repository %s has no %s", t.repository, d)
	}
	if req.Method == http.MethodHead && who.allows(t.repository, push) {
		// Before a push, clients ask which blobs are there and leave those out.
		// So what was asked for counts as new to the collector.
		for _, name := range []digest.Digest{d, canonical} {
			touchFile(r.link(t.repository, layers, name))
		}
	}
	r.app.ServeHTTP(named(w, d, canonical, ""), replaced(req, "/v2/"+t.repository+"/blobs/"+canonical.String()))
	return nil
}

// replaced is a request for another path.
func replaced(req *http.Request, path string) *http.Request {
	if req.URL.Path == path {
		return req
	}
	req = req.Clone(req.Context())
	req.URL.Path, req.URL.RawPath = path, ""
	return req
}

// named is an answer about content that is stored under its SHA-256, and was asked for by
// another digest.
func named(w http.ResponseWriter, d, canonical digest.Digest, location string) http.ResponseWriter {
	if d == canonical {
		return w
	}
	return &namedAnswer{ResponseWriter: w, d: d, location: location}
}

type namedAnswer struct {
	http.ResponseWriter
	d        digest.Digest
	location string
}

func (a *namedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *namedAnswer) WriteHeader(status int) {
	if h := a.Header(); status < 400 && h.Get("Docker-Content-Digest") != "" {
		h.Set("Docker-Content-Digest", a.d.String())
		if h.Get("Etag") != "" {
			h.Set("Etag", fmt.Sprintf("%q", a.d))
		}
		if a.location != "" {
			h.Set("Location", a.location)
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

// serveUpload answers a step of an upload.
func (r *Registry) serveUpload(w *pushAnswer, req *http.Request, t target) error {
	account, organization, err := splitName(t.repository)
	if err != nil {
		return err
	}
	u, err := r.usageOf(account)
	if err != nil {
		return err
	}
	q := req.URL.Query()
	d, err := digest.Parse(q.Get("digest"))
	if q.Has("digest") && err != nil && req.Method != http.MethodGet {
		return errDigest(q.Get("digest"))
	}
	created := func(d digest.Digest) {
		w.Header().Set("Docker-Content-Digest", d.String())
		w.Header().Set("Location", "/v2/"+t.repository+"/blobs/"+d.String())
		w.WriteHeader(http.StatusCreated)
	}
	if t.route == v2.RouteNameBlobUploadChunk {
		names := r.newNames(t.repository, d)
		var answer http.ResponseWriter = w
		if d != "" && d.Algorithm() != digest.Canonical {
			answer = named(w, d, "", "/v2/"+t.repository+"/blobs/"+d.String())
		}
		r.app.ServeHTTP(answer, req)
		if w.status == http.StatusCreated {
			r.added(u, t.repository, d, names)
		}
		return nil
	}
	folders := r.newFolders(t.repository)
	if from, mount := q.Get("from"), q.Get("mount"); from != "" && mount != "" {
		// checkMount has let it pass.
		if d, err := digest.Parse(mount); err == nil {
			if names, done, err := r.mount(t.repository, from, d); err != nil {
				return err
			} else if done {
				r.added(u, t.repository, d, folders+names)
				created(d)
				return nil
			}
		}
		q.Del("from")
		q.Del("mount")
		req.URL.RawQuery = q.Encode()
	}
	known, err := u.begin(account, organization)
	if err != nil {
		return err
	}
	if d != "" && brings(req, d) {
		names := r.newNames(t.repository, d)
		err := r.putBlob(req, t.repository, d)
		known("", "")
		if err == nil {
			r.added(u, t.repository, d, folders+names)
			created(d)
		}
		return err
	}
	defer func() {
		id := w.Header().Get("Docker-Upload-Uuid")
		known(id, filepath.Join(r.repositoryDir(t.repository), "_uploads", id))
		u.add("", 0, folders)
	}()
	r.app.ServeHTTP(w, req)
	return nil
}

// newNames is how many names of a blob in a repository come with an upload: by another
// digest there are two. That it had the content by one of them is seen by the next count.
func (r *Registry) newNames(repository string, d digest.Digest) int {
	switch {
	case d == "" || missing(r.link(repository, layers, d)) == 0:
		return 0
	case d.Algorithm() == digest.Canonical:
		return 1
	}
	return 2
}

// added notes that a repository has a blob now.
func (r *Registry) added(u *usage, repository string, d digest.Digest, names int) {
	canonical, there, err := r.canonical(repository, layers, d)
	if err != nil || !there {
		return // gone again; who counts next sees it
	}
	if data, err := os.Stat(r.blob(canonical)); err == nil {
		u.add(canonical, data.Size(), names)
	}
}

// brings says whether a request to begin an upload brings all of it.
func brings(req *http.Request, d digest.Digest) bool {
	return req.ContentLength > 0 ||
		req.ContentLength == 0 && req.Header.Get("Content-Type") == "application/octet-stream" && d == d.Algorithm().FromBytes(nil)
}

// mount has a repository name a blob of another one, if that has it, and says by how many
// names that it did not have.
func (r *Registry) mount(repository, from string, d digest.Digest) (names int, done bool, err error) {
	canonical, there, err := r.canonical(from, layers, d)
	if err != nil || !there {
		return 0, false, err
	}
	for _, name := range slices.Compact([]digest.Digest{canonical, d}) {
		names += missing(r.link(repository, layers, name))
		if err := r.writeLink(repository, layers, name, canonical); err != nil {
			return 0, false, err
		}
	}
	return names, true, nil
}

// putBlob takes in a blob that comes in one request.
func (r *Registry) putBlob(req *http.Request, repository string, d digest.Digest) error {
	ctx := req.Context()
	repo, _, err := r.open(ctx, repository)
	if err != nil {
		return err
	}
	upload, err := repo.Blobs(ctx).Create(ctx)
	if err != nil {
		return fmt.Errorf("begin an upload to %s: %w", repository, err)
	}
	if _, err = upload.ReadFrom(req.Body); err == nil {
		_, err = upload.Commit(ctx, ocispec.Descriptor{Digest: d})
	}
	if err == nil {
		return nil
	}
	_ = upload.Cancel(ctx) // or the collector does
	if _, wrong := errors.AsType[distribution.ErrBlobInvalidDigest](err); wrong {
		return refuse(http.StatusBadRequest, "DIGEST_INVALID", "what came is not %s", d)
	}
	if no, ok := errors.AsType[*refusal](err); ok {
		return no
	}
	if ctx.Err() != nil {
		return refuse(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the upload was cut off")
	}
	return fmt.Errorf("upload to %s: %w", repository, err)
}
