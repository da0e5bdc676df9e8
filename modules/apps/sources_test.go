package apps

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// pushed stands for the registry: repository:tag and digest.
type pushed map[string]string

func (p pushed) Inspect(_ context.Context, repository, ref string) (resource.ImageVersion, error) {
	if d := p[repository+":"+ref]; d != "" {
		return resource.ImageVersion{Digest: d}, nil
	}
	return resource.ImageVersion{}, fmt.Errorf("%s: no such image: %w", repository, store.ErrNotFound)
}

func (p pushed) InspectUpstream(ctx context.Context, _, upstream, repository, ref string) (resource.ImageVersion, error) {
	return p.Inspect(ctx, upstream+"/"+repository, ref)
}

func (p pushed) List(context.Context, string, string) ([]resource.Image, error) {
	return []resource.Image{{Name: "acme/web/api", Tags: []string{"1", "2"}}}, nil
}

func TestSources(t *testing.T) {
	s := &Sources{
		Registry:  []string{"192.0.2.10:5000", "registry.mp.example:5000"},
		Own:       pushed{"acme/web/api:1": "sha256:a", "acme/web/api:sha256:b": "sha256:b", "docker.io/library/nginx:1": "sha256:n"},
		Builtin:   "multipaas.internal",
		Upstreams: []string{"docker.io"},
		BuiltinDigest: func(name, tag string) (string, error) {
			if name+":"+tag == "hello:1" {
				return "sha256:h", nil
			}
			return "", store.ErrNotFound
		},
	}
	for ref, want := range map[string]string{
		"192.0.2.10:5000/acme/web/api:1":          "sha256:a",
		"registry.mp.example:5000/acme/web/api:1": "sha256:a",
		"192.0.2.10:5000/acme/web/api@sha256:b":   "sha256:b",
		"192.0.2.10:5000/acme/web/api:9":          "There is no image 192.0.2.10:5000/acme/web/api:9. There are api:1, api:2.",
		"multipaas.internal/hello:1":              "sha256:h",
		"multipaas.internal/hello:2":              "There is no image multipaas.internal/hello:2. Check its name and tag.",
		"docker.io/library/nginx:1":               "sha256:n",
		"docker.io/library/nginx:2":               "There is no image docker.io/library/nginx:2. Check its name and tag, and that this platform may pull it there.",
		"quay.io/x/y:1": "There is no image quay.io/x/y:1. This platform pulls nothing from quay.io: " +
			"push the image to 192.0.2.10:5000/acme/web, or ask the operator to name quay.io among his registry_upstreams.",
	} {
		found, err := s.Resolve(t.Context(), "acme/web/shop", ref)
		got := found.Digest
		if none, ok := errors.AsType[*NoImageError](err); ok {
			got = none.Error()
		} else if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", ref, got, want)
		}
	}
}
