package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// manifestTypes are the kinds of manifest we ask for.
var manifestTypes = []string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}

// trimSpares are files that were used so recently that a pull is probably
// under way.
const trimSpares = 15 * time.Minute

type manifest struct {
	mediaType string
	body      []byte
}

// cache keeps what came from one upstream: files named by their digest, and
// tags. Everything in it may vanish at any time.
//
//	blobs/HEX       content of manifests and blobs
//	blobs/HEX.type  media type of a manifest
//	tags/HEX        digest; HEX is of "REPOSITORY:TAG"
//	tmp/            downloads; emptied at start
type cache struct {
	dir  string
	disk disk
	log  *slog.Logger

	mu        sync.Mutex
	downloads map[digest.Digest]*download
}

func (c *cache) open() error {
	if err := os.RemoveAll(filepath.Join(c.dir, "tmp")); err != nil {
		return fmt.Errorf("clean cache: %w", err)
	}
	for _, d := range []string{"blobs", "tags", "tmp"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o700); err != nil {
			return fmt.Errorf("make cache: %w", err)
		}
	}
	return nil
}

// blob is where a digest is, or will be.
func (c *cache) blob(d digest.Digest) string { return filepath.Join(c.dir, "blobs", d.Encoded()) }

func (c *cache) tagFile(repository, tag string) string {
	return filepath.Join(c.dir, "tags", digest.FromString(repository+":"+tag).Encoded())
}

// tag returns what the tag pointed to last, if that manifest is here.
func (c *cache) tag(repository, tag string) (digest.Digest, bool) {
	data, err := os.ReadFile(c.tagFile(repository, tag))
	if err != nil {
		return "", false
	}
	d, err := digest.Parse(string(data))
	if err != nil {
		return "", false
	}
	_, ok := c.manifest(d)
	return d, ok
}

func (c *cache) setTag(repository, tag string, d digest.Digest) {
	file := c.tagFile(repository, tag)
	if old, err := os.ReadFile(file); err == nil && string(old) == d.String() {
		return
	}
	// Best effort: without it, the tag is only not known when the upstream is away.
	atomicfile.Write(file, []byte(d), 0o600)
}

func (c *cache) manifest(d digest.Digest) (manifest, bool) {
	if d.Algorithm() != digest.SHA256 {
		return manifest{}, false
	}
	mediaType, err := os.ReadFile(c.blob(d) + ".type")
	if err != nil {
		return manifest{}, false
	}
	body, err := os.ReadFile(c.blob(d))
	if err != nil || digest.FromBytes(body) != d {
		return manifest{}, false
	}
	touchFile(c.blob(d))
	return manifest{string(mediaType), body}, true
}

func (c *cache) putManifest(d digest.Digest, m manifest) error {
	if err := c.room(int64(len(m.body))); err != nil {
		return err
	}
	if err := atomicfile.Write(c.blob(d), m.body, 0o600); err != nil {
		return err
	}
	return atomicfile.Write(c.blob(d)+".type", []byte(m.mediaType), 0o600)
}

// room makes sure that size more bytes fit.
func (c *cache) room(size int64) error {
	if c.disk.check(size) != nil {
		c.trim()
	}
	return c.disk.check(size)
}

// trim removes what was not used for longest while less than twice the floor
// is free. It returns how many files it removed.
func (c *cache) trim() (files int) {
	want := 2 * c.disk.floor
	free, err := c.disk.free()
	if err != nil || free >= want {
		return 0
	}
	entries, _ := os.ReadDir(filepath.Join(c.dir, "blobs"))
	var infos []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	var size int64
	for _, info := range infos {
		if free+size >= want || time.Since(info.ModTime()) < trimSpares {
			break
		}
		if os.Remove(filepath.Join(c.dir, "blobs", info.Name())) == nil {
			files++
			size += info.Size()
		}
	}
	if files > 0 {
		c.log.Info("cache trimmed", "files", files, "bytes", size)
	}
	return files
}

// download is a blob on its way from the upstream into the cache. Any number of
// clients read it while it grows.
type download struct {
	file  *os.File
	final string // the file's name after the download
	size  int64  // -1 if the upstream did not say
	stall *time.Timer

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when something below changes
	written int64
	done    bool
	err     error
}

func (d *download) advance(n int, done bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written += int64(n)
	d.done, d.err = done, err
	close(d.changed)
	d.changed = make(chan struct{})
}

// Write takes in what has come from the upstream.
func (d *download) Write(p []byte) (int, error) {
	n, err := d.file.Write(p)
	d.stall.Reset(upstreamStall)
	d.advance(n, false, nil)
	return n, err
}

// grown waits until a client who has the first sent bytes can have more, or the
// download has ended. The last byte is held back until the digest was found right.
func (d *download) grown(ctx context.Context, sent int64) (until int64, done bool, err error) {
	for {
		d.mu.Lock()
		changed, until, done, err := d.changed, d.written, d.done, d.err
		d.mu.Unlock()
		if !done {
			until--
		}
		if done || until > sent {
			return until, done, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, false, ctx.Err()
		}
	}
}

// serveBlob answers from the cache, from a download under way, or begins one.
func (u *upstream) serveBlob(w http.ResponseWriter, r *http.Request, repository string, d digest.Digest) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	if u.serveCached(w, r, d) {
		return nil
	}
	if r.Method == http.MethodHead {
		resp, err := u.get(r.Context(), http.MethodHead, repository, "blobs/"+d.String())
		if err != nil {
			return err
		}
		resp.Body.Close()
		w.Header().Set("Content-Length", resp.Header.Get("Content-Length"))
		return nil
	}
	dl, err := u.download(r.Context(), repository, d)
	if err != nil {
		return err
	}
	if dl != nil && r.Header.Get("Range") == "" {
		if dl.size >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(dl.size, 10))
		}
		if dl.copy(r.Context(), w) != nil {
			// The status is sent: only a broken connection tells the client.
			panic(http.ErrAbortHandler)
		}
		return nil
	}
	if dl != nil {
		_, _, err = dl.grown(r.Context(), math.MaxInt64)
	}
	if err == nil && !u.serveCached(w, r, d) {
		err = errors.New("it is not in the cache")
	}
	if err != nil {
		return u.broken("download "+d.String(), err)
	}
	return nil
}

func (u *upstream) serveCached(w http.ResponseWriter, r *http.Request, d digest.Digest) bool {
	f, err := os.Open(u.cache.blob(d))
	if err != nil {
		return false
	}
	defer f.Close()
	touchFile(f.Name())
	http.ServeContent(w, r, "", time.Time{}, f)
	return true
}

// download returns the download of d that is under way, or begins it. Nil: it
// has just ended.
func (u *upstream) download(ctx context.Context, repository string, d digest.Digest) (*download, error) {
	c := u.cache
	c.mu.Lock()
	dl := c.downloads[d]
	c.mu.Unlock()
	if dl != nil {
		return dl, nil
	}
	// It outlives the client that asked first: others may be reading.
	dlCtx, cancel := context.WithCancel(u.ctx)
	stop := context.AfterFunc(ctx, cancel) // until the answer is there
	resp, err := u.get(dlCtx, http.MethodGet, repository, "blobs/"+d.String())
	stop()
	if err != nil {
		cancel()
		return nil, err
	}
	abandon := func() { resp.Body.Close(); cancel() }

	c.mu.Lock()
	defer c.mu.Unlock()
	if dl := c.downloads[d]; dl != nil {
		abandon()
		return dl, nil
	}
	if _, err := os.Stat(c.blob(d)); err == nil {
		abandon()
		return nil, nil
	}
	if err := c.room(resp.ContentLength); err != nil {
		abandon()
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Join(c.dir, "tmp"), d.Encoded()+"-*")
	if err != nil {
		abandon()
		return nil, fmt.Errorf("cache %s: %w", d, err)
	}
	dl = &download{file: f, final: c.blob(d), size: resp.ContentLength, changed: make(chan struct{})}
	c.downloads[d] = dl
	go func() {
		defer abandon()
		err := c.receive(dl, d, resp.Body, cancel)
		if err != nil {
			u.log.Warn("download broke off", "repository", repository, "digest", d, "err", err)
		}
	}()
	return dl, nil
}

// receive writes body to the download's file and, if it has the right digest,
// puts the file in its place. A body that stands still is given up by cancel.
func (c *cache) receive(dl *download, d digest.Digest, body io.ReadCloser, cancel func()) error {
	dl.stall = time.AfterFunc(upstreamStall, cancel)
	defer dl.stall.Stop()
	verifier := d.Verifier()
	bounded := &guardedBody{ReadCloser: body, rooms: []room{c.disk.check}, left: math.MaxInt64}
	_, err := io.CopyBuffer(io.MultiWriter(verifier, dl), bounded, make([]byte, 256<<10))
	if err == nil && !verifier.Verified() {
		err = errors.New("content has another digest")
	}
	if err == nil {
		err = dl.file.Sync()
	}
	dl.file.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		err = os.Rename(dl.file.Name(), c.blob(d))
	}
	if err != nil {
		os.Remove(dl.file.Name())
	}
	delete(c.downloads, d)
	dl.advance(0, true, err)
	return err
}

// copy sends the download to w as it grows. It returns nil only if all of it
// was sent and the digest was right.
func (d *download) copy(ctx context.Context, w io.Writer) error {
	f, err := os.Open(d.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(d.final) // it has just ended
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for sent, done := int64(0), false; !done; {
		var until int64
		if until, done, err = d.grown(ctx, sent); err != nil {
			return err
		}
		n, err := io.CopyN(w, f, until-sent)
		if err != nil {
			return err
		}
		sent += n
	}
	return nil
}

func touchFile(file string) {
	now := time.Now()
	os.Chtimes(file, now, now)
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return b, err
}
