package apps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Images knows the images that apps can be made of. Sources is the server.s.
type Images interface {
	// Resolve returns what the image ref, which names its registry and a tag or
	// digest, is now, for an app of the workspace with that key. It is called
	// concurrently, and not often. NoImageError: there is none.
	// resource.UnfitImageError: no machine can run it.
	Resolve(ctx context.Context, workspace, ref string) (resource.ImageVersion, error)
}

// NoImageError says that there is no such image, and what there is instead.
type NoImageError struct {
	Ref    string
	Have   []string // "hello:1"; may be empty
	Remedy string   // what to do if Have is empty; empty: to push it
}

func (e *NoImageError) Error() string {
	switch n := len(e.Have); {
	case n == 0:
		return fmt.Sprintf("There is no image %s. %s", e.Ref, cmp.Or(e.Remedy, "Push it first."))
	case n > 10:
		return fmt.Sprintf("There is no image %s. There are %s and %d more.", e.Ref, strings.Join(e.Have[:10], ", "), n-10)
	default:
		return fmt.Sprintf("There is no image %s. There are %s.", e.Ref, strings.Join(e.Have, ", "))
	}
}

// fullReference says which image is meant: "hello:1" is the organization's own,
// as is "ACCOUNT/ORGANIZATION/hello:1"; a reference that names a registry is
// what it is. What names no registry can't name another tenant's image: it is
// looked for below the organization. aliases are other names of registry.
func fullReference(registry string, aliases []string, account, organization, image string) (string, error) {
	own := account + "/" + organization + "/"
	host, path := splitHost(image)
	if slices.Contains(aliases, host) {
		host = registry
	}
	if host == "" {
		host = registry
		if !strings.HasPrefix(path, own) {
			path = own + path
		}
	}
	full := host + "/" + path
	parsed, err := reference.Parse(full)
	if err != nil {
		return "", fmt.Errorf("%q is not an image that this app can use: %w", image, err)
	}
	if host == registry && !strings.HasPrefix(path, own) {
		return "", fmt.Errorf("%q is not an image that this app can use: it belongs to another organization", image)
	}
	_, tagged := parsed.(reference.Tagged)
	exact, digested := parsed.(reference.Digested)
	switch {
	case tagged && digested: // the digest decides, as in Kubernetes
		if named, ok := parsed.(reference.Named); ok {
			full = named.Name() + "@" + exact.Digest().String()
		}
	case !tagged && !digested:
		full += ":latest"
	}
	return full, nil
}

// splitHost takes what is in front of the first "/" for a host if it can be no
// name of an account: it has a dot, a port or is "localhost".
func splitHost(image string) (host, path string) {
	first, rest, nested := strings.Cut(image, "/")
	if nested && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return first, rest
	}
	return "", image
}

// pinned is ref with its digest, so that all instances run the same bytes.
func pinned(ref, digest string) string {
	if digest == "" || strings.Contains(ref, "@") {
		return ref
	}
	return ref + "@" + digest
}

// Repositories are those of the platform's registry. Implemented by
// modules/registry.
type Repositories interface {
	// Inspect returns what a tag or digest of a repository is now.
	// store.ErrNotFound: there is none. resource.UnfitImageError: no machine can
	// run it.
	Inspect(ctx context.Context, repository, ref string) (resource.ImageVersion, error)
	// InspectUpstream is the same of a repository of an upstream with this name, for an
	// account.
	// Other errors say that it doesn't answer, in words for users.
	InspectUpstream(ctx context.Context, account, upstream, repository, ref string) (resource.ImageVersion, error)
	// List returns the repositories of an organization.
	List(ctx context.Context, account, organization string) ([]resource.Image, error)
}

// Sources are where images come from, by the host in their references. It is
// the Images of a server.
type Sources struct {
	Registry  []string     // names of the platform's registry, host:port
	Own       Repositories // what stands there
	Builtin   string       // host of the images that every machine has
	Upstreams []string     // hosts of other registries that machines may pull from
	// BuiltinDigest returns the digest of an image that every machine has.
	// store.ErrNotFound: there is none.
	BuiltinDigest func(name, tag string) (string, error)
}

// Resolve returns what an image that an app is made of is now.
func (s *Sources) Resolve(ctx context.Context, workspace, ref string) (found resource.ImageVersion, err error) {
	host, rest, _ := strings.Cut(ref, "/")
	repository, tag := rest, ""
	if r, d, ok := strings.Cut(rest, "@"); ok {
		repository, tag = r, d
	} else if j := strings.LastIndex(rest, ":"); j >= 0 {
		repository, tag = rest[:j], rest[j+1:]
	}
	none := &NoImageError{Ref: ref}
	switch {
	case host == s.Builtin:
		none.Remedy = "Check its name and tag."
		found.Digest, err = s.BuiltinDigest(repository, tag)
	case slices.Contains(s.Registry, host):
		if found, err = s.Own.Inspect(ctx, repository, tag); errors.Is(err, store.ErrNotFound) {
			var listErr error
			if none.Have, listErr = s.tags(ctx, workspace); listErr != nil {
				return found, listErr
			}
		}
	case slices.Contains(s.Upstreams, host):
		account, _, _ := strings.Cut(workspace, "/")
		found, err = s.Own.InspectUpstream(ctx, account, host, repository, tag)
		none.Remedy = "Check its name and tag, and that this platform may pull it there."
	default:
		account, rest, _ := strings.Cut(workspace, "/")
		organization, _, _ := strings.Cut(rest, "/")
		none.Remedy = fmt.Sprintf("This platform pulls nothing from %s: push the image to %s/%s/%s, "+
			"or ask the operator to name %s among his registry_upstreams.", host, s.Registry[0], account, organization, host)
		return found, none
	}
	if errors.Is(err, store.ErrNotFound) {
		return found, none
	}
	return found, err
}

// tags lists what the organization of a workspace has pushed.
func (s *Sources) tags(ctx context.Context, workspace string) (out []string, err error) {
	parts := strings.Split(workspace, "/")
	list, err := s.Own.List(ctx, parts[0], parts[1])
	for _, image := range list {
		for _, tag := range image.Tags {
			out = append(out, strings.TrimPrefix(image.Name, parts[0]+"/"+parts[1]+"/")+":"+tag)
		}
	}
	return out, err
}
