package registry

import (
	"errors"
	"net/http"
	"path"
	"strings"

	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/reference"
	"github.com/gorilla/mux"

	"github.com/multipaas/multipaas/modules/resource"
)

// The actions: what a request does to a repository.
const (
	pull   = "pull"
	push   = "push"
	remove = "delete"
)

// target is what a request is about.
type target struct {
	route      string // one of v2.RouteName...
	repository string // "" for the base and the catalog
	reference  string // tag or digest of a manifest, digest of a blob
	action     string
}

// parse says what req is about; false if the registry has nothing of the kind.
// router is the table of distribution's own handler, so that what we allow is
// what is then done.
func (r *Registry) parse(req *http.Request) (target, bool) {
	// The handler behind would redirect a path that is not clean; we don't let
	// two readings of one path come up.
	if p := path.Clean(req.URL.Path); p != req.URL.Path && p+"/" != req.URL.Path {
		return target{}, false
	}
	var m mux.RouteMatch
	if !r.router.Match(req, &m) || m.Route == nil {
		return target{}, false
	}
	out := target{route: m.Route.GetName(), repository: m.Vars["name"]}
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		out.action = pull
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		out.action = push
	case http.MethodDelete:
		out.action = remove
	default:
		return target{}, false
	}
	switch out.route {
	case v2.RouteNameBase, v2.RouteNameCatalog:
		return out, out.action == pull && out.repository == ""
	case v2.RouteNameBlobUpload, v2.RouteNameBlobUploadChunk:
		out.action = push // also to ask how far an upload is, and to cancel it
	case v2.RouteNameManifest:
		out.reference = m.Vars["reference"]
	case v2.RouteNameBlob:
		out.reference = m.Vars["digest"]
	case v2.RouteNameTags:
	default:
		return target{}, false
	}
	return out, out.repository != ""
}

// splitName takes the name of a repository of this registry apart:
// ACCOUNT/ORGANIZATION/IMAGE, where IMAGE may have further parts.
func splitName(repository string) (account, organization string, err error) {
	parts := strings.SplitN(repository, "/", 3)
	_, err = reference.WithName(repository)
	if err != nil || len(parts) < 3 || checkOrganization(parts[0], parts[1]) != nil {
		return "", "", errName(repository)
	}
	return parts[0], parts[1], nil
}

func checkOrganization(account, organization string) error {
	return errors.Join(resource.CheckName("account", account), resource.CheckName("organization", organization))
}
