package registry

import (
	"errors"
	"net/http"
	"path"
	"regexp"
	"strings"

	v2 "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/reference"
	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"

	"github.com/multipaas/multipaas/modules/resource"
)

// The actions: what a request does to a repository.
const (
	pull   = "pull"
	push   = "push"
	remove = "delete"
)

// routeReferrers is the one route that distribution does not have.
const routeReferrers = "referrers"

// newRouter is the table of distribution's own handler, so that what we allow is
// what is then done, and the route that only we have.
func newRouter() *mux.Router {
	router := v2.RouterWithPrefix("")
	name, subject := reference.NameRegexp.String(), digest.DigestRegexp.String()
	router.Path("/v2/{name:" + name + "}/referrers/{digest:" + subject + "}").Name(routeReferrers)
	return router
}

// misnamed finds what is wrong in a path for which there is no route.
var misnamed = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|referrers|tags)/([^/]+)/?$`)

// unknown says why there is no such request.
func unknown(req *http.Request) *refusal {
	m := misnamed.FindStringSubmatch(req.URL.Path)
	switch {
	case m == nil || req.URL.Path != path.Clean(req.URL.Path):
	case !wholeName.MatchString(m[1]):
		return errName(m[1])
	case m[2] != "tags" && (m[2] != "manifests" || strings.Contains(m[3], ":")) && digest.Digest(m[3]).Validate() != nil:
		return errDigest(m[3])
	case m[2] == "manifests" && !isTag(m[3]):
		return errTag(m[3])
	}
	return refuse(http.StatusNotFound, "UNSUPPORTED", "this registry has no %s %s", req.Method, req.URL.Path)
}

var wholeName = regexp.MustCompile("^" + reference.NameRegexp.String() + "$")

// target is what a request is about.
type target struct {
	route      string // one of v2.RouteName...
	repository string // "" for the base and the catalog
	reference  string // tag or digest of a manifest, digest of a blob, id of an upload
	action     string
}

// parse says what req is about; false if the registry has nothing of the kind.
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
		out.reference = m.Vars["uuid"]
	case v2.RouteNameManifest:
		out.reference = m.Vars["reference"]
	case v2.RouteNameBlob, routeReferrers:
		out.reference = m.Vars["digest"]
	case v2.RouteNameTags:
	default:
		return target{}, false
	}
	if (out.route == routeReferrers || out.route == v2.RouteNameTags) && out.action != pull {
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

// accountOf is the first part of a repository's name.
func accountOf(repository string) string {
	account, _, _ := strings.Cut(repository, "/")
	return account
}

func checkOrganization(account, organization string) error {
	return errors.Join(resource.CheckName("account", account), resource.CheckName("organization", organization))
}
