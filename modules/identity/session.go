package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

const (
	// TokenPrefix begins every bearer token, so that a leaked one can be found.
	TokenPrefix = "mps_"
	// SessionLife is absolute: a working day with breaks. A token that lives as
	// long as it is used was rejected, because a stolen one would live for ever.
	SessionLife = 12 * time.Hour
	// maxSessions is how many logins of one user there are at most: the oldest ends when
	// there is one more. 50 are for a robot whose jobs all log in and none out; what
	// they take of the datastore is 25 KiB.
	maxSessions = 50
	// tokenBytes are what can't be guessed of a token.
	tokenBytes = 32
	// sessionPrefix is the length of what tells whose a token is.
	sessionPrefix = 12
)

// Login exchanges a password for a bearer token. source is the address the
// request came from, for throttling. Every refusal for a wrong name or password
// is the same.
func (id *Identity) Login(ctx context.Context, address, password, source string) (resource.LoginResult, error) {
	user, err := id.CheckPassword(ctx, address, password, source)
	if err != nil {
		return resource.LoginResult{}, err
	}
	if err := id.throttle.login(user.Name); err != nil {
		return resource.LoginResult{}, err
	}
	token := TokenPrefix + resource.SessionPrefix(user.Name) + randomText(tokenBytes)
	session := &resource.Session{
		Meta:      resource.Meta{Name: hashText(token)},
		User:      user.Name,
		ExpiresAt: id.now().Add(SessionLife),
	}
	sessions := store.Of[resource.Session](id.store)
	ops := []store.Op{sessions.CreateOp(session)}
	others, _, err := sessions.List(ctx, resource.SessionPrefix(user.Name), "", 0)
	if err != nil {
		return resource.LoginResult{}, err
	}
	slices.SortFunc(others, func(a, b *resource.Session) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	// Two logins at once leave one too many, which the next one ends.
	for _, old := range others[:min(max(len(others)-maxSessions+1, 0), maxSessions)] {
		old.Revision = 0 // whatever is there, and nothing is no error
		id.verified.forget(id.verified.session(old.Name))
		ops = append(ops, sessions.DeleteOp(old))
	}
	if user.Spec.Sysadmin || len(others) == 0 {
		ctx = store.WithReserve(ctx) // he may be who makes room
	}
	if err := id.store.Commit(ctx, ops...); err != nil {
		return resource.LoginResult{}, fmt.Errorf("keep session: %w", err)
	}
	id.verified.addUntil(id.verified.session(session.Name), session.ExpiresAt)
	return resource.LoginResult{Token: token, User: user.Name, ExpiresAt: session.ExpiresAt, FirstPassword: user.FirstPassword}, nil
}

// CheckPassword returns the user if password is his, and counts the attempt.
// The same attempt made several times at once, as the clients of a registry do,
// counts once and is checked once.
func (id *Identity) CheckPassword(ctx context.Context, address, password, source string) (*resource.User, error) {
	address = strings.ToLower(strings.TrimSpace(address))
	same := id.verified.digest(address, limiter.Network(source), password)
	done := id.checks.DoChan(string(same[:]), func() (any, error) {
		// Whose request was first may go away: the others still wait.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		return id.checkPassword(ctx, address, password, source)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		user := *r.Val.(*resource.User)
		return &user, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// checkTimeout is for a turn at argon2id, some reads and some room.
const checkTimeout = argonWait + 5*time.Second

func (id *Identity) checkPassword(ctx context.Context, address, password, source string) (*resource.User, error) {
	wrong := refuse(access.ErrUnauthenticated, "", "The e-mail address or the password is wrong.")
	giveBack, err := id.throttle.attempt(clip(address, 320), source)
	if err != nil {
		return nil, err
	}
	var user *resource.User
	hash := ""
	if email.MatchString(address) {
		if user, err = store.Of[resource.User](id.store).Get(ctx, address); err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		c, err := store.Of[resource.Credential](id.store).Get(ctx, address)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if err == nil {
			hash = c.Hash
		}
	}
	right := id.verified.digest(address, hash, password)
	if hash == "" || !id.verified.has(right) {
		same, err := id.passwords.matches(ctx, hash, password, source)
		if err != nil {
			return nil, err
		}
		if !same {
			return nil, wrong
		}
		id.verified.add(right)
	}
	if user == nil || user.Spec.Disabled || user.Deleting() {
		return nil, wrong
	}
	giveBack()
	return user, nil
}

// Authenticate returns who carries token. The error is a Refusal with
// ErrUnauthenticated if nobody does any more, with ErrThrottled if too many came from
// that address that nobody may carry: those cost no read.
//
// Who shows many of those holds up nobody else behind his address who has logged in at
// this server, or has shown his token to it, since it started: such a token is known
// until it ends. Logging in takes from other buckets. Whose token it has yet to see (the
// server was started again, or he logged in at another) shares tokensPerSecond with him
// until one request has passed, or logs in again. A mark in the token that only the
// platform can make was rejected: whoever has a token may show it after it has ended, so
// the rate is needed anyway.
func (id *Identity) Authenticate(ctx context.Context, token, source string) (*access.Principal, error) {
	ended := refuse(access.ErrUnauthenticated, "Log in again with `mp login`.", "Your session has ended.")
	if !strings.HasPrefix(token, TokenPrefix) || len(token) > 100 {
		return nil, refuse(access.ErrUnauthenticated, "Log in with `mp login`.", "This is not a token of the platform.")
	}
	prefix := strings.TrimPrefix(token, TokenPrefix)
	if len(prefix) <= sessionPrefix || strings.ContainsAny(prefix[:sessionPrefix], "/,") {
		return nil, ended
	}
	name := hashText(token)
	seen := id.verified.session(name)
	if !id.verified.has(seen) {
		if wait := id.strangers.Take(limiter.Network(source), 1); wait > 0 {
			wait = max(wait.Round(time.Second), time.Second)
			return nil, &access.Refusal{
				Reason:     access.ErrThrottled,
				Text:       "There are too many tokens from your address that are not known.",
				Remedy:     fmt.Sprintf("Try again in %s.", wait),
				RetryAfter: wait,
			}
		}
	}
	session, err := store.Of[resource.Session](id.store).Get(ctx, prefix[:sessionPrefix]+"/"+name)
	if errors.Is(err, store.ErrNotFound) || err == nil && !id.now().Before(session.ExpiresAt) {
		id.verified.forget(seen)
		return nil, ended
	}
	if err != nil {
		return nil, err
	}
	user, err := store.Of[resource.User](id.store).Get(ctx, session.User)
	if errors.Is(err, store.ErrNotFound) || err == nil && (user.Spec.Disabled || user.Deleting()) {
		id.verified.forget(seen)
		return nil, ended
	}
	if err != nil {
		return nil, err
	}
	id.verified.addUntil(seen, session.ExpiresAt)
	p := principal(user)
	p.Session = session
	return p, nil
}

// principal is a user who has proven to be one.
func principal(user *resource.User) *access.Principal {
	return &access.Principal{
		User:          user.Name,
		Account:       user.Account,
		Sysadmin:      user.Spec.Sysadmin && !user.FirstPassword,
		FirstPassword: user.FirstPassword,
	}
}

// Logout ends the session of p. It is no error if it has ended.
func (id *Identity) Logout(ctx context.Context, p *access.Principal) error {
	if p == nil || p.Session == nil {
		return access.Unauthenticated()
	}
	session := *p.Session
	session.Revision = 0 // whatever is there, and nothing is no error
	id.verified.forget(id.verified.session(session.Name))
	return store.Of[resource.Session](id.store).Delete(ctx, &session)
}

// endSessions ends all sessions of user but keep, which may be nil.
func (id *Identity) endSessions(ctx context.Context, user string, keep *resource.Session) error {
	return each(ctx, store.Of[resource.Session](id.store), resource.SessionPrefix(user), func(s *resource.Session) error {
		if s.User != user || keep != nil && s.Name == keep.Name {
			return nil
		}
		s.Revision = 0
		id.verified.forget(id.verified.session(s.Name))
		return store.Of[resource.Session](id.store).Delete(ctx, s)
	})
}

// randomText returns n random octets as text that is safe in URLs.
func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: the runtime ends the process if it would
	return base64.RawURLEncoding.EncodeToString(b)
}

// hashText needs no salt and no slowness: what it hashes has 256 random bits.
func hashText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
