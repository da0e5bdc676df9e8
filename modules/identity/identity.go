// Package identity knows who is asking and what he may do. It promises that a
// password or token is stored nowhere, that what was revoked is gone with the
// next request, and that every decision is the one authorization table's.
//
// Parties: people, who log in with e-mail address and password and then carry a
// bearer token; nodes, which carry a certificate of the platform; workspaces'
// API servers and the registry, which trust the tokens signed here. The API and
// the registry reach it through interfaces of theirs; only appliance imports it.
package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Config is what the package needs to know.
type Config struct {
	Store *store.Store
	// Issuer is the URL of the OIDC issuer, https://HOST:PORT without a slash
	// behind it; workspaces' API servers compare it letter by letter.
	Issuer string
	// RegistryService is the audience of registry tokens, the registry's
	// host:port.
	RegistryService string
	// CAKeyHash pins the platform's CA in join tokens: the SHA-256 of its
	// SubjectPublicKeyInfo in hex.
	CAKeyHash string
	Log       *slog.Logger
	// Now is the clock; nil is the real one.
	Now func() time.Time
}

// Identity authenticates and authorizes. It is safe for concurrent use.
type Identity struct {
	cfg       Config
	store     *store.Store
	log       *slog.Logger
	passwords *passwords
	throttle  *throttle
	verified  *verified
	strangers *limiter.Rate[string] // tokens that may be none, by source
	checks    singleflight.Group    // of passwords, by digest
	keys      store.Kind[*SigningKey]
}

// New returns an Identity. It touches neither disk nor network.
func New(cfg Config) *Identity {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Identity{
		cfg:       cfg,
		store:     cfg.Store,
		log:       cfg.Log,
		passwords: newPasswords(),
		throttle:  newThrottle(cfg.Now),
		verified:  newVerified(cfg.Now),
		strangers: limiter.NewRate[string](tokensPerSecond, tokensAtOnce),
		keys:      store.Of[SigningKey](cfg.Store),
	}
}

func (id *Identity) now() time.Time { return id.cfg.Now().UTC() }

// timer is a clock, as caches want it.
type timer func() time.Time

func (t timer) Now() time.Time { return t() }

func oldSession(key string) bool { return !strings.Contains(key, "/") }

// sweepEvery is how often what has expired is removed: nothing waits for it,
// it only keeps the store small.
const sweepEvery = time.Hour

// Run removes expired sessions and join tokens until ctx is done. It is ready
// once there is a key to sign with.
func (id *Identity) Run(ctx context.Context, ready func()) error {
	if _, err := id.signingKeys(ctx); err != nil {
		return err
	}
	left := !id.endEarlier(ctx)
	if ctx.Err() != nil {
		return nil
	}
	ready()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := id.Sweep(ctx); err != nil && ctx.Err() == nil {
			id.log.Warn("expired sessions were not removed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		left = left && !id.endEarlier(ctx)
	}
}

// endEarlier ends the sessions of an earlier version, whose tokens don't say whose they
// are: who had one logs in again. It says whether all have.
func (id *Identity) endEarlier(ctx context.Context) bool {
	ended := func(*resource.Session) bool { return false }
	err := store.Of[resource.Session](id.store).Rehome(ctx, oldSession, ended)
	if err != nil && ctx.Err() == nil {
		id.log.Error("sessions of an earlier version stay for now", "err", err) // and are good for nothing
	}
	return err == nil
}

// Sweep removes what has expired: sessions at once, join tokens a week later,
// so that whoever comes with an old one still hears why it is refused, and
// signing keys that no valid token can refer to.
func (id *Identity) Sweep(ctx context.Context) error {
	now := id.now()
	return errors.Join(
		sweep(ctx, store.Of[resource.Session](id.store), func(s *resource.Session) bool { return !now.Before(s.ExpiresAt) }),
		sweep(ctx, store.Of[resource.JoinToken](id.store), func(t *resource.JoinToken) bool {
			return !now.Before(t.ExpiresAt.Add(keepJoinTokens))
		}),
		id.sweepInvitations(ctx),
		id.sweepKeys(ctx))
}

// sweep removes what is over.
func sweep[T resource.Object](ctx context.Context, kind store.Kind[T], over func(T) bool) error {
	return each(ctx, kind, "", func(item T) error {
		if !over(item) {
			return nil
		}
		return ignoreConflict(kind.Delete(ctx, item))
	})
}

// each calls fn for every object below prefix, page by page.
func each[T resource.Object](ctx context.Context, kind store.Kind[T], prefix string, fn func(T) error) error {
	after := ""
	for more := true; more; more = after != "" {
		items, next, err := kind.List(ctx, prefix, after, 500)
		if err != nil {
			return err
		}
		for _, item := range items {
			if err := fn(item); err != nil {
				return err
			}
		}
		after = next
	}
	return nil
}

// ignoreConflict is for deletions by a sweep: if somebody changed the object
// meanwhile, the next sweep looks at it again.
func ignoreConflict(err error) error {
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// email is what we take as an e-mail address. It is stricter than the standard,
// because it becomes one segment of a key ("/" must not be in it) and of a URL.
var email = regexp.MustCompile(`^[a-z0-9][a-z0-9._%+-]{0,63}@[a-z0-9]([a-z0-9.-]{0,180}[a-z0-9])?$`)

// Email returns address as the platform writes it, in lower case, or says what
// is wrong with it.
func Email(address string) (string, error) {
	lower := strings.ToLower(strings.TrimSpace(address))
	if !email.MatchString(lower) {
		return "", refuse(access.ErrInvalid, "Give one like name@example.com.", "%q is not an e-mail address.", clip(address, 80))
	}
	return lower, nil
}

// refuse makes a Refusal; its text is formatted.
func refuse(reason error, remedy, text string, args ...any) error {
	return &access.Refusal{Reason: reason, Text: fmt.Sprintf(text, args...), Remedy: remedy}
}

// clip keeps what a client sent from filling logs and answers.
func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
