package registry

import (
	"container/list"
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
	"strings"
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

// The bounds on what is cached of all upstreams together, and of it for one account. It is
// the account whose machine asked first that a file counts for.
const (
	cacheMost  = 64 << 30 // or a quarter of the disk
	cacheShare = 4        // an account has one part of so many
	// cacheFloor is what a file counts at least: also what is known of it in memory.
	cacheFloor = 256 << 10
	maxTags    = 20_000
)

type manifest struct {
	mediaType string
	body      []byte
}

// cache keeps what came from one upstream: files named by their digest, and
// tags. Everything in it may vanish at any time.
//
//	blobs/HEX           content of manifests and blobs
//	blobs/HEX.type      media type of a manifest
//	owners/ACCOUNT/HEX  the same file as blobs/HEX: for whom it is here
//	tags/HEX            digest; HEX is of "REPOSITORY:TAG"
//	tmp/                downloads; emptied at start
type cache struct {
	dir  string
	disk disk // its floor is twice the registry's: who pushes still can when this is full
	of   int  // upstreams there are
	log  *slog.Logger

	mu           sync.Mutex
	downloads    map[digest.Digest]*download
	limit, share int64
	total        int64
	owners       map[string]*owner
	files        map[string]*list.Element // by HEX, each a *cached in its owner's list
	tags         int
}

// owner is an account that files count for, by its UID: who has its name next begins anew,
// on each server. What one that is gone had goes as any other's does. "" is for those of
// which it is not known.
type owner struct {
	bytes int64      // with what is on its way
	kept  int64      // without
	used  *list.List // the last used in front
}

// claim is room for a file that is on its way. c.mu guards it.
type claim struct {
	account string // for whom
	size    int64
}

type cached struct {
	hex, account string
	size         int64
}

func newCache(dir string, d disk, of int, log *slog.Logger) *cache {
	d.floor *= 2
	return &cache{dir: dir, disk: d, of: max(of, 1), log: log, downloads: map[digest.Digest]*download{}}
}

func (c *cache) open() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := os.RemoveAll(filepath.Join(c.dir, "tmp")); err != nil {
		return fmt.Errorf("clean cache: %w", err)
	}
	for _, d := range []string{"blobs", "owners", "tags", "tmp"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o700); err != nil {
			return fmt.Errorf("make cache: %w", err)
		}
	}
	s, err := (disk{dir: c.dir}).stat()
	if err != nil {
		return err
	}
	c.limit = min(cacheMost, int64(s.Blocks)*s.Bsize/4) / int64(c.of)
	c.share = c.limit / cacheShare
	c.total, c.owners, c.files = 0, map[string]*owner{}, map[string]*list.Element{}
	tags, _ := os.ReadDir(filepath.Join(c.dir, "tags"))
	c.tags = len(tags)

	of := map[string]string{}
	accounts, _ := os.ReadDir(filepath.Join(c.dir, "owners"))
	for _, a := range accounts {
		theirs, _ := os.ReadDir(filepath.Join(c.dir, "owners", a.Name()))
		for _, f := range theirs {
			of[f.Name()] = a.Name()
			if !exists(filepath.Join(c.dir, "blobs", f.Name())) {
				_ = os.Remove(filepath.Join(c.dir, "owners", a.Name(), f.Name()))
			}
		}
		_ = os.Remove(filepath.Join(c.dir, "owners", a.Name())) // if nothing is in it
	}
	entries, err := os.ReadDir(filepath.Join(c.dir, "blobs"))
	if err != nil {
		return fmt.Errorf("read cache: %w", err)
	}
	var infos []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && !strings.HasSuffix(e.Name(), ".type") {
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, info := range infos {
		account, size := of[info.Name()], max(info.Size(), cacheFloor)
		c.count(account, size)
		c.keep(info.Name(), account, size)
	}
	return nil
}

func (c *cache) owner(account string) *owner {
	o := c.owners[account]
	if o == nil {
		o = &owner{used: list.New()}
		c.owners[account] = o
	}
	return o
}

// count has size more bytes count for an account. The caller holds c.mu.
func (c *cache) count(account string, size int64) {
	c.owner(account).bytes += size
	c.total += size
}

// keep notes a file that counts already. The caller holds c.mu.
func (c *cache) keep(hex, account string, size int64) {
	o := c.owner(account)
	o.kept += size
	c.files[hex] = o.used.PushFront(&cached{hex, account, size})
}

// touch notes that a file was used.
func (c *cache) touch(hex string) {
	touchFile(filepath.Join(c.dir, "blobs", hex))
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.files[hex]; e != nil {
		c.owner(e.Value.(*cached).account).used.MoveToFront(e) //nolint:forcetypeassert // there is nothing else in it
	}
}

// evict removes what an account has not used for longest, and says whether there was
// anything. The caller holds c.mu.
func (c *cache) evict(account string) bool {
	o := c.owner(account)
	e := o.used.Back()
	if e == nil {
		return false
	}
	f := o.used.Remove(e).(*cached) //nolint:forcetypeassert // there is nothing else in it
	delete(c.files, f.hex)
	o.kept -= f.size
	c.count(account, -f.size)
	for _, name := range []string{"blobs/" + f.hex, "blobs/" + f.hex + ".type", "owners/" + account + "/" + f.hex} {
		_ = os.Remove(filepath.Join(c.dir, name))
	}
	return true
}

// largest is the account of whose files some can go and that has most. The caller holds c.mu.
func (c *cache) largest() (account string, ok bool) {
	most := int64(-1)
	for name, o := range c.owners {
		if o.used.Len() > 0 && o.bytes > most {
			account, most, ok = name, o.bytes, true
		}
	}
	return account, ok
}

// reserve makes room for a file of an account, which counts from now on: what that
// account has not used for longest goes first, and then what the one has that has most.
func (c *cache) reserve(account string, size int64) (*claim, error) {
	size = max(size, cacheFloor)
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.owner(account)
	if o.bytes-o.kept+size > c.share {
		return nil, refuse(http.StatusForbidden, "DENIED",
			"your account may have %d MiB cached of this upstream, and that would be more: try again when other pulls are through, "+
				"or push the image to this platform's registry", c.share>>20)
	}
	for o.bytes+size > c.share && c.evict(account) {
	}
	for c.total+size > c.limit || c.disk.check(size) != nil {
		largest, ok := c.largest()
		if !ok {
			break
		}
		c.evict(largest)
	}
	if err := c.disk.check(size); err != nil {
		return nil, err
	}
	c.count(account, size)
	return &claim{account, size}, nil
}

// release takes back what was reserved. The caller holds c.mu.
func (c *cache) release(claimed *claim) {
	c.count(claimed.account, -claimed.size)
}

// settle notes a file that is in its place now, for which room was reserved. The
// caller holds c.mu.
func (c *cache) settle(hex string, claimed *claim, size int64) {
	c.release(claimed)
	account := claimed.account
	if c.files[hex] != nil {
		return // by somebody else meanwhile
	}
	size = max(size, cacheFloor)
	if account != "" {
		dir := filepath.Join(c.dir, "owners", account)
		_ = os.MkdirAll(dir, 0o700)
		_ = os.Link(filepath.Join(c.dir, "blobs", hex), filepath.Join(dir, hex)) // or it is nobody's after a restart
	}
	c.count(account, size)
	c.keep(hex, account, size)
}

// trim removes files while less is free than is kept free. It returns how many.
func (c *cache) trim() (files int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.disk.check(0) != nil {
		largest, ok := c.largest()
		if !ok || !c.evict(largest) {
			break
		}
		files++
	}
	if files > 0 {
		c.log.Info("cache trimmed", "files", files)
	}
	return files
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
	c.mu.Lock()
	if !exists(file) {
		c.tags++
	}
	if c.tags > maxTags {
		c.forgetTags()
	}
	c.mu.Unlock()
	// Best effort: without it, the tag is only not known when the upstream is away.
	_ = atomicfile.Write(file, []byte(d), 0o600)
}

// forgetTags removes the older half of the tags. The caller holds c.mu.
func (c *cache) forgetTags() {
	var infos []fs.FileInfo
	entries, _ := os.ReadDir(filepath.Join(c.dir, "tags"))
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, info := range infos[:len(infos)/2] {
		_ = os.Remove(filepath.Join(c.dir, "tags", info.Name()))
	}
	c.tags = len(infos) - len(infos)/2
}

func (c *cache) manifest(d digest.Digest) (manifest, bool) {
	mediaType, err := os.ReadFile(c.blob(d) + ".type")
	if err != nil {
		return manifest{}, false
	}
	body, err := os.ReadFile(c.blob(d))
	if err != nil || d.Algorithm().FromBytes(body) != d {
		return manifest{}, false
	}
	c.touch(d.Encoded())
	return manifest{string(mediaType), body}, true
}

func (c *cache) putManifest(account string, d digest.Digest, m manifest) error {
	claimed, err := c.reserve(account, int64(len(m.body)))
	if err != nil {
		return err
	}
	err = atomicfile.Write(c.blob(d), m.body, 0o600)
	if err == nil {
		err = atomicfile.Write(c.blob(d)+".type", []byte(m.mediaType), 0o600)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.release(claimed)
		return err
	}
	c.settle(d.Encoded(), claimed, int64(len(m.body)))
	return nil
}

// download is a blob on its way from the upstream into the cache. Any number of
// clients read it while it grows.
type download struct {
	file  *os.File
	final string // the file's name after the download
	size  int64  // -1 if the upstream did not say
	stall *time.Timer

	claim *claim

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
func (u *upstream) serveBlob(w http.ResponseWriter, r *http.Request, a asked, d digest.Digest) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	if u.serveCached(w, r, d) {
		return nil
	}
	if r.Method == http.MethodHead {
		resp, err := u.get(r.Context(), http.MethodHead, a, "blobs/"+d.String())
		if err != nil {
			return err
		}
		resp.Body.Close()
		w.Header().Set("Content-Length", resp.Header.Get("Content-Length"))
		return nil
	}
	dl, err := u.download(r.Context(), a, d)
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
	var no *refusal
	switch {
	case err == nil:
		return nil
	case r.Context().Err() != nil: // who asked has gone
		return r.Context().Err()
	case errors.As(err, &no): // ours: there is no room
		return no
	}
	return u.broken("download "+d.String(), a, err)
}

func (u *upstream) serveCached(w http.ResponseWriter, r *http.Request, d digest.Digest) bool {
	f, err := os.Open(u.cache.blob(d))
	if err != nil {
		return false
	}
	defer f.Close()
	u.cache.touch(d.Encoded())
	http.ServeContent(w, r, "", time.Time{}, f)
	return true
}

// download returns the download of d that is under way, or begins it. Nil: it
// has just ended.
func (u *upstream) download(ctx context.Context, a asked, d digest.Digest) (*download, error) {
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
	resp, err := u.get(dlCtx, http.MethodGet, a, "blobs/"+d.String())
	stop()
	if err != nil {
		cancel()
		return nil, err
	}
	abandon := func() { resp.Body.Close(); cancel() }

	claimed, err := c.reserve(a.account, resp.ContentLength)
	if err != nil {
		abandon()
		return nil, err
	}
	give := func() { resp.Body.Close(); cancel(); c.release(claimed) }
	c.mu.Lock()
	defer c.mu.Unlock()
	if dl := c.downloads[d]; dl != nil {
		give()
		return dl, nil
	}
	if exists(c.blob(d)) {
		give()
		return nil, nil
	}
	f, err := os.CreateTemp(filepath.Join(c.dir, "tmp"), d.Encoded()+"-*")
	if err != nil {
		give()
		return nil, fmt.Errorf("cache %s: %w", d, err)
	}
	dl = &download{
		file: f, final: c.blob(d), size: resp.ContentLength, claim: claimed,
		changed: make(chan struct{}),
	}
	c.downloads[d] = dl
	go func() {
		defer abandon()
		err := c.receive(dl, d, resp.Body, cancel)
		if err != nil {
			u.log.Warn("download broke off", "repository", a.repository, "digest", d, "err", err)
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
	bounded := &guardedBody{ReadCloser: body, rooms: []room{c.disk.check}, left: c.share}
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
	if err == nil {
		c.settle(d.Encoded(), dl.claim, dl.written)
	} else {
		c.release(dl.claim)
		_ = os.Remove(dl.file.Name())
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

// errTooLarge is returned by readAll.
var errTooLarge = errors.New("it is too large")

func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: more than %d bytes", errTooLarge, limit)
	}
	return b, err
}
