package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/reference"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// ErrNotFound is returned when there is no such repository, tag or digest.
var ErrNotFound = fmt.Errorf("no such image: %w", store.ErrNotFound)

// root is where distribution keeps its things below its root directory.
func (r *Registry) root() string { return filepath.Join(r.imagesDir(), "docker", "registry", "v2") }

// repositoryDir is for names that were checked, and "" for where all are.
func (r *Registry) repositoryDir(repository string) string {
	return filepath.Join(r.root(), "repositories", filepath.FromSlash(repository))
}

// repositories are the names of all repositories below a path of names, "" for
// all. A folder that holds no repository does not count, nor does one that is
// not there.
func (r *Registry) repositories(below string) ([]string, error) {
	found := map[string]bool{}
	err := filepath.WalkDir(r.repositoryDir(below), func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil || !d.IsDir() || !slices.Contains([]string{"_manifests", "_layers", "_uploads"}, d.Name()) {
			return err
		}
		name, err := filepath.Rel(r.repositoryDir(""), filepath.Dir(p))
		if err != nil {
			return err
		}
		found[name] = true
		return fs.SkipDir
	})
	if err != nil {
		return nil, fmt.Errorf("list repositories: %w", err)
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// List returns the repositories of an organization that hold an image, by name.
func (r *Registry) List(ctx context.Context, account, organization string) ([]resource.Image, error) {
	if err := checkOrganization(account, organization); err != nil {
		return nil, err
	}
	names, err := r.repositories(account + "/" + organization)
	if err != nil {
		return nil, err
	}
	out := []resource.Image{}
	for _, name := range names {
		image, err := r.image(ctx, name)
		if err != nil {
			return nil, err
		}
		if len(image.Tags) > 0 {
			out = append(out, image)
		}
	}
	return out, nil
}

func (r *Registry) image(ctx context.Context, repository string) (resource.Image, error) {
	image := resource.Image{Name: repository, Tags: []string{}}
	repo, _, err := r.open(ctx, repository)
	if err != nil {
		return image, err
	}
	tags, err := repo.Tags(ctx).All(ctx)
	if _, unknown := errors.AsType[distribution.ErrRepositoryUnknown](err); unknown {
		return image, nil
	}
	if err != nil {
		return image, fmt.Errorf("list tags of %s: %w", repository, err)
	}
	for _, tag := range tags {
		info, err := os.Stat(filepath.Join(r.repositoryDir(repository), "_manifests", "tags", tag, "current", "link"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return image, fmt.Errorf("read tag %s:%s: %w", repository, tag, err)
		}
		image.Tags = append(image.Tags, tag)
		if t := info.ModTime().UTC().Truncate(time.Second); t.After(image.UpdatedAt) {
			image.UpdatedAt = t
		}
	}
	slices.Sort(image.Tags)
	return image, nil
}

// Delete removes a tag, and its manifest if no other tag of the repository
// points to it; or, given a digest, the manifest with all its tags. The blobs, and
// what refers to the manifest, go with the next garbage collection. An empty ref
// removes the repository. ErrNotFound: there is none.
func (r *Registry) Delete(ctx context.Context, repository, ref string) error {
	if ref == "" {
		return r.removeRepository(repository)
	}
	if _, _, err := splitName(repository); err != nil {
		return err
	}
	r.gate.RLock()
	defer r.gate.RUnlock()
	defer r.deleted(accountOf(repository))
	named, canonical, err := r.lookUp(ctx, repository, ref)
	if errors.Is(err, ErrNotFound) && isTag(ref) && named != "" {
		err = nil // only the tag is there
	}
	if err != nil {
		return err
	}
	return r.deleteImage(ctx, repository, ref, canonical)
}

// removeRepository removes an image with all its tags.
func (r *Registry) removeRepository(repository string) error {
	if _, err := reference.WithName(repository); err != nil {
		return ErrNotFound
	}
	r.gate.RLock()
	defer r.gate.RUnlock()
	defer r.deleted(accountOf(repository))
	// Other repositories may stand below this one. What is its own begins with
	// "_", which no name does.
	own, err := filepath.Glob(filepath.Join(r.repositoryDir(repository), "_*"))
	if err != nil {
		return fmt.Errorf("remove image %s: %w", repository, err)
	}
	if len(own) == 0 {
		return ErrNotFound
	}
	for _, dir := range own {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove image %s: %w", repository, err)
		}
	}
	// And the folders above, of its organization and account, but only as long
	// as nothing else stands below them.
	for dir := repository; dir != "."; dir = path.Dir(dir) {
		if os.Remove(r.repositoryDir(dir)) != nil {
			break
		}
	}
	return nil
}

// RemoveAll removes all repositories of an organization. The blobs go
// with the next garbage collection. It is no error if there are none.
func (r *Registry) RemoveAll(ctx context.Context, account, organization string) error {
	if err := checkOrganization(account, organization); err != nil {
		return err
	}
	r.gate.RLock()
	defer r.gate.RUnlock()
	defer r.deleted(account)
	if err := os.RemoveAll(r.repositoryDir(account + "/" + organization)); err != nil {
		return fmt.Errorf("remove images of %s/%s: %w", account, organization, err)
	}
	_ = os.Remove(r.repositoryDir(account)) // only if it was the last
	return nil
}

func (r *Registry) open(ctx context.Context, repository string) (distribution.Repository, distribution.ManifestService, error) {
	name, err := reference.WithName(repository)
	if err != nil {
		return nil, nil, errName(repository)
	}
	repo, err := r.images.Repository(ctx, name)
	if err != nil {
		return nil, nil, fmt.Errorf("open repository %s: %w", repository, err)
	}
	manifests, err := repo.Manifests(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("open manifests of %s: %w", repository, err)
	}
	return repo, manifests, nil
}
