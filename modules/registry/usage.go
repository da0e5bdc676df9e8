package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// What an account keeps is a running total in memory: counted once, from the files, and
// kept by what is pushed after. A request costs the same whatever the account has. After
// each collection it is counted anew; after a deletion when it would refuse something,
// and then not all the time.
const (
	// blobFloor is what a blob counts at least, and nameCost what each name of one in a
	// repository, each tag and each folder counts: what they take of the disk's files
	// and blocks. Without them a million blobs of one byte were a megabyte.
	blobFloor = 32 << 10
	nameCost  = 16 << 10
	// maxUploads is how many uploads an organization may have under way. A client has
	// about five at once.
	maxUploads = 100
	// uploadIdle is after which time one that nobody goes on with makes room for another.
	uploadIdle = 10 * time.Minute
	// countRest is how many times as long as a count took there is none after it.
	countRest = 20
)

// usage is what one account keeps. Its methods are safe for concurrent use.
type usage struct {
	counting sync.Mutex // held by who counts

	mu      sync.Mutex
	counted bool // since the last collection
	changed bool // something was deleted since it was counted
	at      time.Time
	took    time.Duration
	tally
	// since is what came while somebody counts; nil if nobody does.
	since   *tally
	uploads map[string]*upload // by their id
}

// tally is what was found in files.
type tally struct {
	seed  maphash.Seed
	blobs map[uint64]struct{} // hashes of digests: eight bytes each, of which nobody can foresee two alike
	bytes int64
}

func newTally(seed maphash.Seed) tally { return tally{seed: seed, blobs: map[uint64]struct{}{}} }

func (t *tally) blob(d digest.Digest, size int64) {
	h := maphash.String(t.seed, string(d))
	if _, seen := t.blobs[h]; !seen {
		t.blobs[h] = struct{}{}
		t.bytes += max(size, blobFloor)
	}
}

// upload is one that is under way.
type upload struct {
	organization, dir string
	size              int64
	busy              int // requests that carry a part of it now
	last              time.Time
}

// usageOf returns what an account keeps, counted.
func (r *Registry) usageOf(account string) (*usage, error) {
	r.usagesMu.Lock()
	u := r.usages[account]
	if u == nil {
		seed := maphash.MakeSeed()
		u = &usage{tally: newTally(seed), uploads: map[string]*upload{}}
		r.usages[account] = u
	}
	r.usagesMu.Unlock()
	u.mu.Lock()
	counted := u.counted
	u.mu.Unlock()
	if counted {
		return u, nil
	}
	u.counting.Lock()
	defer u.counting.Unlock()
	u.mu.Lock()
	counted = u.counted
	u.mu.Unlock()
	if counted {
		return u, nil
	}
	return u, r.count(account, u)
}

// count counts what an account keeps. The caller holds u.counting.
func (r *Registry) count(account string, u *usage) error {
	u.mu.Lock()
	fresh, since := newTally(u.seed), newTally(u.seed)
	u.since, u.changed = &since, false
	u.mu.Unlock()
	began := time.Now()
	uploads, err := r.walk(account, &fresh)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.since = nil
	if err != nil {
		u.changed = true
		return fmt.Errorf("count what account %s keeps in the registry: %w", account, err)
	}
	for h := range since.blobs {
		fresh.blobs[h] = struct{}{}
	}
	fresh.bytes += since.bytes // what was found by both counts twice, until the next time
	for id, up := range uploads {
		if u.uploads[id] == nil && exists(up.dir) {
			u.uploads[id] = up
		}
	}
	u.tally, u.counted = fresh, true
	u.at, u.took = time.Now(), time.Since(began)
	return nil
}

// walk adds to t what the files of an account are, and returns its uploads.
func (r *Registry) walk(account string, t *tally) (map[string]*upload, error) {
	uploads := map[string]*upload{}
	top := r.repositoryDir(account)
	err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		if err != nil || path == top {
			return err
		}
		rel := strings.TrimPrefix(path, top+"/")
		if e.IsDir() {
			if filepath.Base(filepath.Dir(path)) == "_uploads" {
				organization, _, _ := strings.Cut(rel, "/")
				up := &upload{organization: organization, dir: path, last: newest(path)}
				if info, err := os.Stat(filepath.Join(path, "data")); err == nil {
					up.size = info.Size()
				}
				uploads[e.Name()] = up
				return fs.SkipDir
			}
			if !strings.Contains(rel, "/_") && !strings.HasPrefix(e.Name(), "_") {
				t.bytes += nameCost // a repository's, or one above
			}
			return nil
		}
		t.bytes += nameCost
		dir := filepath.Dir(path)
		if e.Name() != "link" || !strings.Contains(rel, "/"+layers+"/") && !strings.Contains(rel, "/"+revisions+"/") {
			return nil
		}
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(dir))), filepath.Base(dir))
		if d.Algorithm() != digest.Canonical || d.Validate() != nil {
			return nil // another name of what is counted
		}
		if data, err := os.Stat(r.blob(d)); err == nil { // else a link to a blob that went
			t.blob(d, data.Size())
		}
		return nil
	})
	return uploads, err
}

// used is how many bytes count.
func (u *usage) used() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.bytes
	for _, up := range u.uploads {
		n += max(up.size, blobFloor)
	}
	return n
}

// add notes what was pushed: a blob under its SHA-256, unless it is "", and names.
func (u *usage) add(d digest.Digest, size int64, names int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := []*tally{&u.tally}
	if u.since != nil {
		all = append(all, u.since)
	}
	for _, t := range all {
		if d != "" {
			t.blob(d, size)
		}
		t.bytes += int64(names) * nameCost
	}
}

// begin notes an upload, or refuses it since the organization has too many. What it
// returns is called with the id that it got, or "" if there is none after all. Of too many
// the one that has rested longest is removed, if it rests for long enough.
func (u *usage) begin(account, organization string) (known func(id, dir string), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	open, oldest := 0, ""
	for id, up := range u.uploads {
		if up.organization != organization {
			continue
		}
		open++
		if up.busy == 0 && (oldest == "" || up.last.Before(u.uploads[oldest].last)) {
			oldest = id
		}
	}
	if open >= maxUploads {
		if oldest == "" || time.Since(u.uploads[oldest].last) < uploadIdle {
			return nil, refuse(http.StatusTooManyRequests, "TOOMANYREQUESTS",
				"organization %s/%s has %d uploads under way: finish or cancel some; one that nobody goes on with ends after %d minutes",
				account, organization, open, int(uploadIdle.Minutes()))
		}
		if err := os.RemoveAll(u.uploads[oldest].dir); err != nil {
			return nil, fmt.Errorf("remove an upload that nobody goes on with: %w", err)
		}
		delete(u.uploads, oldest)
	}
	up := &upload{organization: organization, busy: 1, last: time.Now()}
	place := fmt.Sprintf("%p", up)
	u.uploads[place] = up
	return func(id, dir string) {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.uploads, place)
		if id != "" {
			up.busy, up.dir = 0, dir
			u.uploads[id] = up
		}
	}, nil
}

// carry notes that a request carries a part of an upload; grow is called with how much, and
// done when it is over, which looks whether the upload is.
func (u *usage) carry(id, organization, dir string) (grow func(n int), done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	up := u.uploads[id]
	if up == nil {
		if !exists(dir) {
			return nil, func() {}
		}
		up = &upload{organization: organization, dir: dir}
		u.uploads[id] = up
	} else if up.dir != dir {
		return nil, func() {} // of another repository: the library finds none
	}
	up.busy++
	grow = func(n int) {
		u.mu.Lock()
		defer u.mu.Unlock()
		up.size += int64(n)
	}
	return grow, func() {
		info, err := os.Stat(filepath.Join(dir, "data"))
		gone := !exists(filepath.Join(dir, "startedat"))
		if gone {
			// distribution writes how far its sum is once more after the upload has ended.
			_ = os.RemoveAll(dir)
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		up.busy--
		up.last = time.Now()
		if err == nil && up.busy == 0 {
			up.size = info.Size()
		}
		if gone && u.uploads[id] == up {
			delete(u.uploads, id)
		}
	}
}

// deleted notes that an account has less than before, and recount what it does have.
func (r *Registry) deleted(account string) {
	r.usagesMu.Lock()
	u := r.usages[account]
	r.usagesMu.Unlock()
	if u != nil {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.changed = true
	}
}

// countAnew has all accounts counted again at their next push.
func (r *Registry) countAnew() {
	r.usagesMu.Lock()
	defer r.usagesMu.Unlock()
	for _, u := range r.usages {
		u.mu.Lock()
		u.counted = false
		for id, up := range u.uploads {
			if up.busy == 0 && up.dir != "" && !exists(up.dir) {
				delete(u.uploads, id)
			}
		}
		u.mu.Unlock()
	}
}

// freshened counts u again if something was deleted since, and says whether it did.
func (r *Registry) freshened(account string, u *usage) (bool, error) {
	u.counting.Lock()
	defer u.counting.Unlock()
	u.mu.Lock()
	due := u.changed && time.Since(u.at) > countRest*u.took
	u.mu.Unlock()
	if !due {
		return false, nil
	}
	return true, r.count(account, u)
}

// roomOf is the room an account has left of what it may keep in the registry.
func (r *Registry) roomOf(account string) room {
	return func(size int64) error {
		limit := r.cfg.Limit(account)
		if limit <= 0 {
			return nil
		}
		u, err := r.usageOf(account)
		if err != nil {
			return err
		}
		fits := func() bool { return u.used()+max(size, 0) <= limit }
		if fits() {
			return nil
		}
		if again, err := r.freshened(account, u); err != nil {
			return err
		} else if again && fits() {
			return nil
		}
		return refuse(http.StatusForbidden, "DENIED",
			"account %s may keep %d MiB of images, has %d MiB and would get %d MiB more (a layer counts as %d KiB at least): "+
				"delete images you no longer need (their layers go within a day), or ask a sysadmin to raise the limit (`mp accounts set`)",
			account, limit>>20, u.used()>>20, max(size, 0)>>20, blobFloor>>10)
	}
}

// missing counts which of the files and folders are not there.
func missing(paths ...string) (n int) {
	for _, p := range paths {
		if !exists(p) {
			n++
		}
	}
	return n
}

// newFolders counts which folders of a repository, and above it, are not there.
func (r *Registry) newFolders(repository string) (n int) {
	for dir := repository; strings.Contains(dir, "/"); dir = filepath.Dir(dir) {
		if exists(r.repositoryDir(dir)) {
			break
		}
		n++
	}
	return n
}

// pushing is one request that writes: it has a share of the machine while something is done
// with what has come, none while it waits for more, and keeps the collector away from when
// all has come.
type pushing struct {
	r     *Registry
	ctx   context.Context
	share chan struct{} // of the account
	has   bool          // a part of the share
	gated bool
	leave func()
}

// maxPushes is how many requests that write an account may have waiting or under way.
const maxPushes = 256

// push begins a request that writes. end must be called.
func (r *Registry) push(ctx context.Context, account string) (*pushing, error) {
	if !r.pushes.Enter(account) {
		return nil, refuse(http.StatusTooManyRequests, "TOOMANYREQUESTS",
			"account %s pushes too much at once: try again in a moment", account)
	}
	r.usagesMu.Lock()
	share := r.shares[account]
	if share == nil {
		share = make(chan struct{}, r.share)
		r.shares[account] = share
	}
	r.usagesMu.Unlock()
	p := &pushing{r: r, ctx: ctx, share: share, leave: func() { r.pushes.Leave(account) }}
	if err := p.take(); err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

func (p *pushing) take() error {
	select {
	case p.share <- struct{}{}:
		p.has = true
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *pushing) give() {
	if p.has {
		<-p.share
		p.has = false
	}
}

// gate keeps the collector away until the end.
func (p *pushing) gate() {
	if !p.gated {
		p.r.gate.RLock()
		p.gated = true
	}
}

func (p *pushing) end() {
	if p.gated {
		p.r.gate.RUnlock()
	}
	p.give()
	p.leave()
}

// pushBody is what a client sends.
type pushBody struct {
	guardedBody
	p    *pushing
	grow func(n int) // may be nil
}

func (b *pushBody) Read(buf []byte) (int, error) {
	if b.p.gated {
		return b.guardedBody.Read(buf)
	}
	b.p.give()
	n, err := b.guardedBody.Read(buf)
	if b.grow != nil && n > 0 {
		b.grow(n)
	}
	if full := b.p.take(); full != nil {
		return n, cmp.Or(err, full)
	}
	if err != nil {
		b.p.gate() // what comes now is for good
	}
	return n, err
}
