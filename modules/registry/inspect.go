package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/multipaas/multipaas/modules/resource"
)

// The platform's machines are of one kind.
const (
	machineOS           = "linux"
	machineArchitecture = "amd64"
)

// maxImageConfig bounds what is read of an image's configuration: some KiB, most of
// it how the image was built. A larger one is not looked at.
const maxImageConfig = 1 << 20

// Inspect returns what a tag or digest of a repository is now. ErrNotFound: there is
// none. resource.UnfitImageError: there is, and no machine can run it.
func (r *Registry) Inspect(ctx context.Context, repository, ref string) (resource.ImageVersion, error) {
	if _, _, err := splitName(repository); err != nil {
		return resource.ImageVersion{}, err
	}
	named, stored, err := r.lookUp(ctx, repository, ref)
	if err != nil {
		return resource.ImageVersion{}, err
	}
	found := resource.ImageVersion{Digest: stored.String()}
	link := r.link(repository, revisions, named)
	if isTag(ref) {
		link = filepath.Join(r.repositoryDir(repository), "_manifests", "tags", ref, "current", "link")
	}
	if info, err := os.Stat(link); err == nil {
		found.PushedAt = info.ModTime().UTC().Truncate(time.Second)
	}
	read := func(kind string, limit int64) func(digest.Digest) ([]byte, error) {
		return func(d digest.Digest) ([]byte, error) {
			stored, ok, err := r.canonical(repository, kind, d)
			if err == nil && !ok {
				err = ErrNotFound
			}
			if err != nil {
				return nil, err
			}
			f, err := os.Open(r.blob(stored))
			if err != nil {
				return nil, err
			}
			defer f.Close()
			return readAll(f, limit)
		}
	}
	found.MadeAt, err = fit(stored, content{manifest: read(revisions, maxManifest), config: read(layers, maxImageConfig)})
	if _, unfit := errors.AsType[*resource.UnfitImageError](err); err != nil && !unfit {
		return found, fmt.Errorf("look into %s:%s: %w", repository, ref, err)
	}
	return found, err
}

// InspectUpstream is Inspect for a repository of the upstream with this name, asked for
// an account, without when it was pushed. An upstream that doesn't answer is an error for users, unless
// it is known what the tag named last.
func (r *Registry) InspectUpstream(
	ctx context.Context, account, upstream, repository, ref string,
) (resource.ImageVersion, error) {
	u := r.upstreams[strings.ToLower(upstream)]
	if u == nil {
		return resource.ImageVersion{}, ErrNotFound
	}
	from := asked{account, u.repository(repository)}
	d, err := digest.Parse(ref)
	if err != nil {
		if d, err = u.resolve(ctx, from, ref); err != nil {
			if no, ok := errors.AsType[*refusal](err); ok && no.Status == http.StatusNotFound {
				return resource.ImageVersion{}, ErrNotFound
			}
			return resource.ImageVersion{}, err
		}
	}
	found := resource.ImageVersion{Digest: d.String()}
	found.MadeAt, err = fit(d, content{
		manifest: func(d digest.Digest) ([]byte, error) {
			m, ok := u.cache.manifest(d)
			if ok {
				return m.body, nil
			}
			m, err := u.fetchManifest(ctx, from, d.String())
			return m.body, err
		},
		config: func(d digest.Digest) ([]byte, error) {
			resp, err := u.get(ctx, http.MethodGet, from, "blobs/"+d.String())
			if err != nil {
				return nil, err
			}
			defer resp.Body.Close()
			return readAll(resp.Body, maxImageConfig)
		},
	})
	if _, unfit := errors.AsType[*resource.UnfitImageError](err); unfit {
		return found, err
	}
	return found, ctx.Err() // what can't be read now is found out by the machine that pulls it
}

// content reads what an image consists of.
type content struct {
	manifest, config func(digest.Digest) ([]byte, error)
}

// fit says when the image with this manifest was made, or why no machine can run it.
func fit(d digest.Digest, in content) (made time.Time, err error) { return fitBelow(d, in, 0) }

// fitBelow is fit for a manifest that so many indexes led to.
func fitBelow(d digest.Digest, in content, indexes int) (made time.Time, err error) {
	if d.Validate() != nil {
		return made, unfit("it names its parts by what is no digest")
	}
	body, err := in.manifest(d)
	if err != nil {
		return made, err
	}
	// An image's manifest or an index of them, of OCI or Docker: both write them alike.
	var m struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return made, unfit("its manifest is not understood")
	}
	if m.Config == nil {
		if indexes > 1 {
			return made, unfit("its manifest is an index of indexes of indexes")
		}
		var have []string
		for _, one := range m.Manifests {
			p := one.Platform
			switch {
			case p == nil || p.OS == "unknown": // attestations, say
			case p.OS == machineOS && p.Architecture == machineArchitecture:
				return fitBelow(one.Digest, in, indexes+1)
			default:
				have = append(have, platformName(p.OS, p.Architecture))
			}
		}
		if len(have) == 0 {
			// Without a word on platforms the first one that fits is taken, if any.
			return made, nil
		}
		return made, otherPlatform(have...)
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
	default:
		return made, unfit(fmt.Sprintf("it is no container image, but of type %.100s", m.Config.MediaType))
	}
	if m.Config.Size > maxImageConfig {
		return made, nil
	}
	if m.Config.Digest.Validate() != nil {
		return made, unfit("it names its configuration by what is no digest")
	}
	body, err = in.config(m.Config.Digest)
	if err != nil {
		return made, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(body, &config); err != nil {
		return made, unfit("its configuration is not understood")
	}
	if config.Created != nil {
		made = config.Created.UTC()
	}
	// What says nothing was made before there was anything but amd64.
	if (config.OS != "" && config.OS != machineOS) || (config.Architecture != "" && config.Architecture != machineArchitecture) {
		return made, otherPlatform(platformName(config.OS, config.Architecture))
	}
	return made, nil
}

func platformName(os, architecture string) string { return os + "/" + architecture }

func otherPlatform(have ...string) error {
	slices.Sort(have)
	have = slices.Compact(have)
	if len(have) > 5 {
		have = append(have[:5], "others")
	}
	wanted := platformName(machineOS, machineArchitecture)
	return unfit(fmt.Sprintf("it is built for %.200s, and the machines are %s. Build it with --platform %s and push it again",
		strings.Join(have, ", "), wanted, wanted))
}

func unfit(why string) error { return &resource.UnfitImageError{Why: why} }
