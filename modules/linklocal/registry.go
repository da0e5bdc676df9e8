package linklocal

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/multipaas/multipaas/modules/wire"
)

// payloadImages serves a folder of OCI layouts, one for each repository, by the
// distribution API, for reading. Blobs are what their digests say, which
// clients check.
type payloadImages struct{ dir string }

var (
	repositoryName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)
	sha256Digest   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// maxManifest bounds an index or a manifest.
const maxManifest = 4 << 20

func (p payloadImages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		registryError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "the images of the platform can only be read")
		return
	}
	path := strings.Trim(strings.TrimPrefix(r.URL.Path, "/v2"), "/")
	if path == "" {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, "{}")
		return
	}
	f := strings.Split(path, "/")
	if len(f) != 3 || !repositoryName.MatchString(f[0]) {
		registryError(w, http.StatusNotFound, "NAME_UNKNOWN", "the platform has no such image")
		return
	}
	layout := filepath.Join(p.dir, f[0])
	switch f[1] {
	case "manifests":
		p.manifest(w, r, layout, f[2])
	case "blobs":
		p.blob(w, r, layout, f[2], "application/octet-stream", "BLOB_UNKNOWN")
	default:
		registryError(w, http.StatusNotFound, "UNSUPPORTED", "only manifests and blobs are served")
	}
}

func (p payloadImages) manifest(w http.ResponseWriter, r *http.Request, layout, reference string) {
	f, err := os.Open(filepath.Join(layout, "index.json"))
	if err != nil {
		registryError(w, http.StatusNotFound, "NAME_UNKNOWN", "the platform has no such image")
		return
	}
	defer f.Close()
	index, err := v1.ParseIndexManifest(io.LimitReader(f, maxManifest))
	if err != nil {
		registryError(w, http.StatusInternalServerError, "UNKNOWN", "the image's index is damaged")
		return
	}
	for _, m := range index.Manifests {
		// The reference is a whole name, NAME:TAG, or the tag, or not there: tag 1.
		name := m.Annotations["org.opencontainers.image.ref.name"]
		tag := name[strings.LastIndexByte(name, ':')+1:]
		if tag == "" || strings.Contains(tag, "/") {
			tag = "1"
		}
		if reference == tag || reference == m.Digest.String() {
			w.Header().Set("Docker-Content-Digest", m.Digest.String())
			p.blob(w, r, layout, m.Digest.String(), string(m.MediaType), "MANIFEST_UNKNOWN")
			return
		}
	}
	registryError(w, http.StatusNotFound, "MANIFEST_UNKNOWN", fmt.Sprintf("the image has no version %q", reference))
}

// blob serves a file by its digest: whole, in part, or only its size.
func (p payloadImages) blob(w http.ResponseWriter, r *http.Request, layout, digest, mediaType, unknown string) {
	if !sha256Digest.MatchString(digest) {
		registryError(w, http.StatusBadRequest, "DIGEST_INVALID", "want sha256: and 64 hex digits")
		return
	}
	f, err := os.Open(filepath.Join(layout, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:")))
	if err != nil {
		registryError(w, http.StatusNotFound, unknown, "the image has no such part")
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		registryError(w, http.StatusNotFound, unknown, "the image has no such part")
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Etag", `"`+digest+`"`)
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// pull takes what a machine asks for to the platform's registry, with the node's
// certificate and the name of the workspace that asks. The query parameter ns is
// the host that the machine was asked for.
func (e *Endpoints) pull(workspace string, log *slog.Logger) http.Handler {
	return &httputil.ReverseProxy{
		Transport: e.cfg.Transport,
		ErrorLog:  slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		Rewrite: func(r *httputil.ProxyRequest) {
			registry := e.state.Load().Registry
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "https", registry, registry
			r.Out.Body = nil // a pull has none
			r.Out.ContentLength = 0
			// Nothing a machine says about itself counts.
			r.Out.Header.Del("Authorization")
			r.Out.Header.Set(wire.WorkspaceHeader, workspace)
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			log.Warn("pull from the platform's registry", "path", r.URL.Path, "err", err)
			registryError(w, http.StatusServiceUnavailable, "UNAVAILABLE", "the platform's registry can't be reached from this node now")
		},
	}
}

// registryError answers in the form that clients of registries show.
func registryError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string][]map[string]string{"errors": {{"code": code, "message": message}}})
}
