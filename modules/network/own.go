package network

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// OwnAddresses is the part that knows which addresses this host has besides the one on
// the platform's network: of a second network card, of a service that moves between
// hosts. Tenants on other hosts must reach none of them. It is safe for concurrent use.
type OwnAddresses struct {
	underlay netip.Addr
	log      *slog.Logger

	mu      sync.Mutex
	now     []netip.Addr
	changed []func()
}

// NewOwnAddresses reads the addresses; Run follows them. A nil log is none.
func NewOwnAddresses(underlay netip.Addr, log *slog.Logger) *OwnAddresses {
	o := &OwnAddresses{underlay: underlay, log: cmp.Or(log, slog.New(slog.DiscardHandler))}
	if _, err := o.read(); err != nil {
		o.log.Warn("read this host's addresses", "err", err) // Run tries again
	}
	return o
}

// List returns the addresses, sorted. Nobody else changes what it returns.
func (o *OwnAddresses) List() []netip.Addr {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.now)
}

// OnChange has fn called after each change, which must not block. All calls are made
// before Run.
func (o *OwnAddresses) OnChange(fn func()) { o.changed = append(o.changed, fn) }

// ownRetry is how long Run waits before it listens again when the kernel has told more
// than was read, or can't be asked.
const ownRetry = time.Second

// Run follows what the kernel says of the host's addresses until ctx is done.
func (o *OwnAddresses) Run(ctx context.Context, ready func()) error {
	ready()
	for {
		err := o.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		o.log.Warn("this host's addresses are not followed; trying again", "err", err, "in", ownRetry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(ownRetry): // not waiting for an event: pacing retries
		}
	}
}

// follow listens until the kernel's messages end.
func (o *OwnAddresses) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan netlink.AddrUpdate, 64)
	failed := make(chan error, 1)
	err := netlink.AddrSubscribeWithOptions(events, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}})
	if err != nil {
		return fmt.Errorf("listen for changes: %w", err)
	}
	defer func() { // who sends waits for a reader
		cancel()
		for range events {
		}
	}()
	for {
		// After listening has begun: what changes from here on is told.
		news, err := o.read()
		if err != nil {
			return err
		}
		if news {
			for _, fn := range o.changed {
				fn()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case _, open := <-events:
			if !open {
				return fmt.Errorf("the kernel's messages have ended")
			}
		}
		for len(events) > 0 { // one look for all that came at once
			<-events
		}
	}
}

// read says whether there was news.
func (o *OwnAddresses) read() (news bool, err error) {
	h := &host{link: &netlink.Handle{}}
	links, addresses, err := h.links()
	if err != nil {
		return false, err
	}
	var now []netip.Addr
	for _, a := range addresses {
		own, link := prefixOf(a.IPNet).Addr(), links[a.LinkIndex]
		// The workspaces' own ends are no place for services. A link that has come since is
		// followed by a message.
		if link != nil && !strings.HasPrefix(link.Name, uplinkPrefix) && own.IsGlobalUnicast() && own != o.underlay {
			now = append(now, own)
		}
	}
	slices.SortFunc(now, netip.Addr.Compare)
	now = slices.Compact(now)
	o.mu.Lock()
	defer o.mu.Unlock()
	news = !slices.Equal(now, o.now)
	if o.now = now; news {
		o.log.Info("this host's other addresses", "addresses", now)
	}
	return news, nil
}
