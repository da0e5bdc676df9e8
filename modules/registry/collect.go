package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/opencontainers/go-digest"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/failpoint"
)

const (
	// collectEvery is well below the default Grace of 24 hours, so that what is
	// no longer used is gone after at most 30 hours.
	collectEvery = 6 * time.Hour
	// collectRetry is how long the collector waits for a moment in which
	// nobody writes.
	collectRetry = 30 * time.Second
	// collectPatience is how often it finds somebody writing before it has them wait.
	collectPatience = 5
	// collectFirst is how long after its start the registry collects: soon, for
	// a collection may have been cut off.
	collectFirst = 10 * time.Second
	// trimEvery is how often the pull-through caches make room.
	trimEvery = 10 * time.Minute
)

// Collected is what a garbage collection removed.
type Collected struct {
	Blobs, Links, Manifests, Uploads int
	Bytes                            int64
}

// ErrBusy is returned when garbage can't be collected since somebody writes.
var ErrBusy = errors.New("somebody is writing to the registry")

// collect removes garbage from time to time until ctx is done.
func (r *Registry) collect(ctx context.Context) {
	next, trim := time.NewTimer(collectFirst), time.NewTicker(trimEvery)
	defer next.Stop()
	defer trim.Stop()
	tries := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-trim.C:
			for _, u := range r.upstreams {
				u.cache.trim()
			}
			continue
		case <-next.C:
		}
		if tries++; tries > collectPatience {
			r.gate.Lock() // those who come now wait; nobody holds it for long
		} else if !r.gate.TryLock() {
			next.Reset(collectRetry)
			continue
		}
		tries = 0
		c, err := r.collectLocked(ctx)
		r.gate.Unlock()
		switch {
		case err != nil && ctx.Err() == nil:
			r.cfg.Log.Error("collect garbage", "err", err)
		case c != Collected{}:
			r.cfg.Log.Info("garbage collected",
				"blobs", c.Blobs, "links", c.Links, "manifests", c.Manifests, "uploads", c.Uploads, "bytes", c.Bytes)
		}
		next.Reset(collectEvery)
	}
}

// Collect removes blobs that no manifest names, links to them, and uploads that
// nobody goes on with; each only when older than Config.Grace. Manifests
// without a tag are kept: running apps are deployed by digest. Only what refers to a
// manifest that was deleted goes with it.
//
// Who wants to write meanwhile waits; pulls go on. ErrBusy: somebody is writing
// right now, nothing was done.
//
// distribution's own mark and sweep was not taken: it knows no age, so it
// removes the blobs of a push whose manifest is still to come, and it asks for a
// registry that is read-only.
func (r *Registry) Collect(ctx context.Context) (Collected, error) {
	if !r.gate.TryLock() {
		return Collected{}, ErrBusy
	}
	defer r.gate.Unlock()
	return r.collectLocked(ctx)
}

// collectLocked collects; the caller holds the gate.
func (r *Registry) collectLocked(ctx context.Context) (Collected, error) {
	defer r.countAnew()
	g := &collection{old: time.Now().Add(-r.cfg.Grace), used: map[digest.Digest]bool{}}
	names, err := r.repositories("")
	if err != nil {
		return Collected{}, err
	}
	for _, name := range names {
		if err := r.collectReferrers(ctx, g, name); err != nil {
			return Collected{}, err
		}
	}
	// Mark everything before anything is removed: an error here must leave all
	// as it is.
	for _, name := range names {
		if err := r.mark(ctx, g, name); err != nil {
			return Collected{}, fmt.Errorf("mark what %s uses: %w", name, err)
		}
	}
	// A blob is a file called data in blobs/ALGORITHM/HE/HEX.
	err = eachDigest(filepath.Join(r.root(), "blobs"), "data", func(d digest.Digest, path string, data fs.FileInfo) error {
		if !g.used[d] && !data.ModTime().After(g.old) {
			g.Blobs++
			g.Bytes += data.Size()
			g.remove = append(g.remove, path)
		}
		return ctx.Err()
	})
	if err != nil {
		return Collected{}, err
	}
	failpoint.Reach("image/collect/marked")
	for _, dir := range g.remove {
		if err := os.RemoveAll(dir); err != nil {
			return g.Collected, fmt.Errorf("remove garbage: %w", err)
		}
		failpoint.Reach("image/collect/one-removed")
	}
	prune(r.repositoryDir(""))
	return g.Collected, nil
}

// prune removes folders below dir in which there is no file: a deletion leaves them, and an
// upload that was given up. It says whether dir went, too.
func prune(dir string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	empty := true
	for _, e := range entries {
		if !e.IsDir() || !prune(filepath.Join(dir, e.Name())) {
			empty = false
		}
	}
	return empty && os.Remove(dir) == nil
}

// collection is one run of the collector.
type collection struct {
	Collected
	old    time.Time // what is older is garbage if unused
	used   map[digest.Digest]bool
	remove []string // folders
}

func (r *Registry) mark(ctx context.Context, g *collection, repository string) error {
	dir := r.repositoryDir(repository)
	here := map[digest.Digest]bool{} // used by this repository
	err := r.eachManifest(ctx, repository, func(canonical digest.Digest, m distribution.Manifest) error {
		g.used[canonical] = true
		for _, ref := range m.References() {
			here[ref.Digest] = true
			// Named by another digest it is stored under this one.
			if c, ok, err := r.canonical(repository, layers, ref.Digest); err != nil {
				return err
			} else if ok {
				here[c] = true
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, kind := range []string{layers, revisions} {
		err = eachDigest(filepath.Join(dir, kind), "link", func(d digest.Digest, path string, link fs.FileInfo) error {
			canonical, there, err := r.canonical(repository, kind, d)
			if err != nil {
				return err
			}
			switch {
			case kind == revisions && (there || d.Algorithm() == digest.Canonical):
				g.used[d] = true
			case kind == layers && (here[d] || link.ModTime().After(g.old)):
				// What a manifest names and the repository does not have keeps nothing.
				g.used[d], g.used[canonical] = true, true
			default:
				g.Links++
				g.remove = append(g.remove, path)
			}
			return ctx.Err()
		})
		if err != nil {
			return err
		}
	}
	uploads, err := os.ReadDir(filepath.Join(dir, "_uploads"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, u := range uploads {
		path := filepath.Join(dir, "_uploads", u.Name())
		if newest(path).Before(g.old) {
			g.Uploads++
			g.remove = append(g.remove, path)
		}
	}
	return nil
}

// eachManifest calls f for every manifest of a repository that can be read.
func (r *Registry) eachManifest(ctx context.Context, repository string,
	f func(canonical digest.Digest, m distribution.Manifest) error) error {
	_, manifests, err := r.open(ctx, repository)
	if err != nil {
		return err
	}
	dir := filepath.Join(r.repositoryDir(repository), revisions)
	return eachDigest(dir, "link", func(d digest.Digest, _ string, _ fs.FileInfo) error {
		if d.Algorithm() != digest.Canonical {
			return nil
		}
		m, err := manifests.Get(ctx, d)
		if _, gone := errors.AsType[distribution.ErrManifestUnknownRevision](err); gone {
			return nil
		}
		if err == nil {
			err = f(d, m)
		}
		return errors.Join(err, ctx.Err())
	})
}

// collectReferrers removes the manifests of a repository whose subject was deleted, unless a
// tag or an index names them, and puts in order what says which refers to which: a push or a
// deletion may have been cut off, or an older program may have taken the push.
func (r *Registry) collectReferrers(ctx context.Context, g *collection, repository string) error {
	named := map[digest.Digest]bool{} // by an index
	err := r.eachManifest(ctx, repository, func(canonical digest.Digest, m distribution.Manifest) error {
		mediaType, body, err := m.Payload()
		if err != nil {
			return err
		}
		for _, ref := range m.References() {
			named[ref.Digest] = true
		}
		subject, descriptor, err := describe(canonical, mediaType, body)
		if err != nil || subject.Validate() != nil {
			return nil //nolint:nilerr // it refers to nothing
		}
		dir := r.referrersDir(repository, subject)
		for _, a := range append(otherDigests, digest.Canonical) {
			if exists(filepath.Join(dir, referrer(a.FromBytes(body)))) {
				return nil
			}
		}
		err = os.MkdirAll(dir, 0o700)
		if err == nil {
			err = atomicfile.Write(filepath.Join(dir, referrer(canonical)), descriptor, 0o600)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("find what refers to what in %s: %w", repository, err)
	}
	// A subject whose order is carried out may have been what refers to another: until
	// nothing more comes, for the next collection is hours away.
	for again := true; again; {
		again = false
		err := r.eachSubject(repository, func(subject digest.Digest, dir string, entries []fs.DirEntry) error {
			order := isRemoved(entries)
			if order {
				if _, there, err := r.canonical(repository, revisions, subject); err != nil {
					return err
				} else if there {
					order = false // it was pushed again
					if err := r.revive(repository, subject); err != nil {
						return err
					}
				}
			}
			for _, e := range entries {
				d, ok := referrerOf(e.Name())
				if !ok {
					continue
				}
				file := filepath.Join(dir, e.Name())
				canonical, there, err := r.canonical(repository, revisions, d)
				if err != nil {
					return err
				}
				if !there {
					if info, err := e.Info(); err == nil && !info.ModTime().After(g.old) {
						_ = os.Remove(file)
					}
					continue
				}
				if !order || named[d] || named[canonical] {
					continue
				}
				if tags, err := r.tagsOf(ctx, repository, canonical); err != nil || len(tags) > 0 {
					return err
				}
				if err := r.dropManifest(ctx, repository, canonical); err != nil {
					return err
				}
				g.Manifests++
				again = true
			}
			if order {
				if left, err := os.ReadDir(dir); err == nil && len(left) == 1 {
					_ = os.Remove(filepath.Join(dir, removed))
				}
			}
			_ = os.Remove(dir) // only if it is empty
			return ctx.Err()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Below the folder of a repository, each digest in them has a folder
// ALGORITHM/HEX with a file called link.
const (
	layers    = "_layers"
	revisions = "_manifests/revisions"
)

// eachDigest calls f for every folder ALGORITHM/.../HEX below dir that has a file
// of that name. It is no error if there is no dir.
func eachDigest(dir, name string, f func(d digest.Digest, path string, file fs.FileInfo) error) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.IsDir() {
			return err
		}
		file, err := os.Stat(filepath.Join(path, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a folder above, or deleted
		}
		if err != nil {
			return err
		}
		algorithm, _, _ := strings.Cut(strings.TrimPrefix(path, dir+"/"), "/")
		if err := f(digest.NewDigestFromEncoded(digest.Algorithm(algorithm), e.Name()), path, file); err != nil {
			return err
		}
		return fs.SkipDir
	})
}

// newest is when anything in dir last changed.
func newest(dir string) time.Time {
	var t time.Time
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && info.ModTime().After(t) {
			t = info.ModTime()
		}
		return nil
	})
	return t
}
