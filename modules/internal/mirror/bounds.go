// Package mirror reads tenants' clusters into this process, which serves everybody,
// and keeps of them what the platform looks at. A tenant may make any number of
// objects, each as large as Kubernetes allows, and change them all the time.
//
// It promises that nothing of that is read, decoded or kept without a bound: Bounds
// on what one answer may have and on how many large ones one account has under way,
// Each for lists by pages of bounded bytes, and Mirror for what is followed: slim, of
// at most so many objects, with a word when there are more.
//
// Parties: modules/workspace makes the clients, for everybody; it, modules/apps and
// modules/balancer follow clusters by mirrors. Only modules import this package.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
)

const (
	// maxAnswer is the most that one answer may have, a page's aside. An object has
	// 1.5 MiB in the datastore, some times that as JSON; the names of 10,000 kinds are
	// 10 MiB.
	maxAnswer = 16 << 20
	// maxPage is the most that a page of a list may have: two of the largest objects.
	// Decoded it takes some times that.
	maxPage = 4 << 20
	// heavy is from where on an answer has to wait for a share: hardly any tenant's
	// ever does.
	heavy = 256 << 10
	// heavyEach is how many heavy answers one account may have under way, and heavyAll
	// everybody: with what they become when decoded, some 30 MiB each.
	heavyEach, heavyAll = 2, 16
)

// errTooLarge is returned for an answer that has more than it may.
var errTooLarge = errors.New("the answer is too large")

// Bounds are what all clients of tenants' clusters share. The zero value is ready;
// its methods are safe for concurrent use.
type Bounds struct {
	mu    sync.Mutex
	by    map[string]int // heavy answers under way, by account
	all   int
	freed chan struct{} // closed when one has ended
}

// Config returns a copy of cfg whose clients read within the bounds. account is
// whose cluster it is. Nobody else makes clients of tenants' clusters.
func (b *Bounds) Config(cfg *rest.Config, account string) *rest.Config {
	cfg = rest.CopyConfig(cfg)
	// It is a process on this host or on the next: packing costs more than it saves.
	cfg.DisableCompression = true
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper { return &transport{b, account, next} })
	return cfg
}

// enter waits for a share of the heavy answers.
func (b *Bounds) enter(ctx context.Context, account string) error {
	for {
		b.mu.Lock()
		if b.all < heavyAll && b.by[account] < heavyEach {
			if b.by == nil {
				b.by = map[string]int{}
			}
			b.all++
			b.by[account]++
			b.mu.Unlock()
			return nil
		}
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("too many large answers are being read: %w", ctx.Err())
		}
	}
}

func (b *Bounds) leave(account string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all--
	if b.by[account]--; b.by[account] == 0 {
		delete(b.by, account)
	}
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

type transport struct {
	*Bounds
	account string
	next    http.RoundTripper
}

// RoundTrip bounds the answer. A watch goes on for as long as it likes: client-go
// reads it event by event, and takes none above 16 MiB.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	if err != nil || req.URL.Query().Has("watch") {
		return resp, err
	}
	r := &reading{transport: t, ctx: req.Context(), body: resp.Body, most: maxAnswer, page: pageOf(req.Context())}
	if r.page != nil {
		r.most = maxPage
	}
	resp.Body = r
	return resp, nil
}

// WrappedRoundTripper is for client-go, which looks for the connections below.
func (t *transport) WrappedRoundTripper() http.RoundTripper { return t.next }

// reading is an answer's body while it is read.
type reading struct {
	*transport
	ctx  context.Context
	body io.ReadCloser
	read int64
	most int64
	page *page // if it is one

	leave func() // nil: it is not heavy
}

func (r *reading) Read(p []byte) (int, error) {
	if r.read > r.most {
		return 0, fmt.Errorf("%w: it has more than %d MiB", errTooLarge, r.most>>20)
	}
	if r.read > heavy && r.leave == nil {
		if err := r.enter(r.ctx, r.account); err != nil {
			return 0, err
		}
		r.leave = sync.OnceFunc(func() { r.Bounds.leave(r.account) })
		if r.page != nil {
			r.page.leave = append(r.page.leave, r.leave)
		}
	}
	n, err := r.body.Read(p[:min(int64(len(p)), r.most+1-r.read)])
	if r.read += int64(n); r.page != nil {
		r.page.read += int64(n)
	}
	return n, err
}

// Close gives the share back, but for a page's: that is still to be decoded.
func (r *reading) Close() error {
	if r.leave != nil && r.page == nil {
		r.leave()
	}
	return r.body.Close()
}

// page is a part of a list while it is read and looked at.
type page struct {
	read  int64 // bytes
	leave []func()
}

type pageKey struct{}

func (p *page) in(ctx context.Context) context.Context { return context.WithValue(ctx, pageKey{}, p) }

func pageOf(ctx context.Context) *page {
	p, _ := ctx.Value(pageKey{}).(*page)
	return p
}

func (p *page) done() {
	for _, leave := range p.leave {
		leave()
	}
}

// Cut returns at most n bytes of a tenant's text, as a copy that does not hold the
// rest in memory.
func Cut(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(strings.Clone(s[:n]), "")
	}
	return s
}
