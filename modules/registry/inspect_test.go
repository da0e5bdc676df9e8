package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/multipaas/multipaas/modules/resource"
)

func TestFit(t *testing.T) {
	t.Parallel()
	stored := map[digest.Digest][]byte{}
	put := func(v any) ocispec.Descriptor {
		body, ok := v.([]byte)
		if !ok {
			body, _ = json.Marshal(v)
		}
		d := digest.FromBytes(body)
		stored[d] = body
		return ocispec.Descriptor{Digest: d, Size: int64(len(body))}
	}
	made := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	imageFor := func(os, architecture string) ocispec.Descriptor {
		config := put(ocispec.Image{Created: &made, Platform: ocispec.Platform{OS: os, Architecture: architecture}})
		config.MediaType = ocispec.MediaTypeImageConfig
		d := put(ocispec.Manifest{Config: config})
		if os != "" {
			d.Platform = &ocispec.Platform{OS: os, Architecture: architecture}
		}
		return d
	}
	index := func(of ...ocispec.Descriptor) ocispec.Descriptor { return put(ocispec.Index{Manifests: of}) }
	typed := func(mediaType string, size int64) ocispec.Descriptor {
		config := put([]byte("{}"))
		config.MediaType = mediaType
		if size > 0 {
			config.Size = size
		}
		return put(ocispec.Manifest{Config: config})
	}
	attestation := imageFor("unknown", "unknown")
	lying := imageFor("linux", "arm64") // says amd64 in the index and arm64 itself
	lying.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	const remedy = "Build it with --platform linux/amd64"
	for name, c := range map[string]struct {
		image ocispec.Descriptor
		want  string // in the refusal; "": fits
	}{
		"amd64":               {imageFor("linux", "amd64"), ""},
		"arm64":               {imageFor("linux", "arm64"), "built for linux/arm64, and the machines are linux/amd64. " + remedy},
		"windows":             {imageFor("windows", "amd64"), "built for windows/amd64"},
		"says nothing":        {imageFor("", ""), ""},
		"index":               {index(imageFor("linux", "arm64"), imageFor("linux", "amd64"), attestation), ""},
		"index without amd64": {index(imageFor("linux", "arm64"), imageFor("linux", "arm"), attestation), "built for linux/arm, linux/arm64, and"},
		"index of one":        {index(imageFor("linux", "s390x")), "built for linux/s390x"},
		"index that lies":     {index(lying), "built for linux/arm64"},
		"index of an index": {index(func() ocispec.Descriptor {
			d := index(imageFor("linux", "amd64"))
			d.Platform = lying.Platform
			return d
		}()), ""},
		"many":                      {index(imageFor("a", "1"), imageFor("b", "1"), imageFor("c", "1"), imageFor("d", "1"), imageFor("e", "1"), imageFor("f", "1")), "e/1, others"},
		"chart":                     {typed("application/vnd.cncf.helm.config.v1+json", 0), "no container image, but of type application/vnd.cncf.helm.config.v1+json"},
		"empty artifact":            {typed(ocispec.MediaTypeEmptyJSON, 0), "no container image"},
		"docker's type":             {typed("application/vnd.docker.container.image.v1+json", 0), ""},
		"configuration of a GiB":    {typed(ocispec.MediaTypeImageConfig, 1<<30), ""},
		"parts without digests":     {put(ocispec.Manifest{Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: "../../x"}}), "no digest"},
		"index without digests":     {index(ocispec.Descriptor{Digest: "x", Platform: lying.Platform}), "no digest"},
		"manifest that is not JSON": {put([]byte("manifest")), "not understood"},
	} {
		at, err := fit(c.image.Digest, content{
			manifest: func(d digest.Digest) ([]byte, error) {
				if stored[d] == nil {
					return nil, fmt.Errorf("%s is not there", d)
				}
				return stored[d], nil
			},
			config: func(d digest.Digest) ([]byte, error) { return stored[d], nil },
		})
		_, unfit := errors.AsType[*resource.UnfitImageError](err)
		if (err == nil) != (c.want == "") || err != nil && (!unfit || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if name == "index" && !at.Equal(made) {
			t.Errorf("made at %v, want %v", at, made)
		}
	}
}
