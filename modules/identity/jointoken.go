package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

const (
	// completeWithin is how long the node that used a token may come back with
	// it: a join that died after the token was used must be completable. Whoever
	// repeats it can't join under another name, nor as a node that has reported
	// (the hub refuses) or was removed (the token is spent); of two in a race the
	// last is the node, and the other's certificate is worthless.
	completeWithin = 10 * time.Minute
	// keepJoinTokens is how long an expired token is kept to say why it is
	// refused.
	keepJoinTokens = 7 * 24 * time.Hour
)

// CreateJoinToken makes a token that lets one machine join within ttl. The text,
// ID.SECRET.CAHASH, is known only to the caller.
func (id *Identity) CreateJoinToken(
	ctx context.Context, ttl time.Duration, by string,
) (text string, token *resource.JoinToken, err error) {
	secret := randomText(32)
	token = &resource.JoinToken{
		Meta:       resource.Meta{Name: strings.ToLower(rand.Text()[:10])}, // 50 bits: a name, not a secret
		Role:       "node",
		ExpiresAt:  id.now().Add(ttl),
		SecretHash: hashText(secret),
		CreatedBy:  by,
	}
	if err := store.Of[resource.JoinToken](id.store).Create(ctx, token); err != nil {
		return "", nil, fmt.Errorf("keep join token: %w", err)
	}
	failpoint.Reach("token/create/committed")
	return token.Name + "." + secret + "." + id.cfg.CAKeyHash, token, nil
}

// Redeem spends a token for node, once. text is ID.SECRET, with or
// without the hash of the CA behind it. The same node may redeem it again within
// ten minutes. The Refusal says why: ErrNotFound, ErrUsed, ErrExpired or
// ErrInvalid. source is the address of the machine, which may try a few times;
// an empty one is not counted: the secret has 256 bits, and one limit for all
// would let anybody keep machines from joining.
func (id *Identity) Redeem(ctx context.Context, text, node, source string) error {
	giveBack := func() {}
	if source != "" {
		var err error
		if giveBack, err = id.throttle.attempt("join "+clip(node, 64), source); err != nil {
			return err
		}
	}
	const another = "Create another one with `multipaas token create --role node`."
	if err := resource.CheckName("node", node); err != nil {
		return refuse(access.ErrInvalid, "Set another name with --name.", "%s", sentence(err))
	}
	parts := strings.Split(strings.TrimSpace(text), ".")
	if len(parts) < 2 || len(parts) > 3 || len(text) > 256 || parts[0] == "" || strings.Contains(parts[0], "/") {
		return refuse(access.ErrInvalid, "Give it whole, as ID.SECRET.HASH; or c"+another[1:], "This is not a join token.")
	}
	if len(parts) == 3 && id.cfg.CAKeyHash != "" && parts[2] != id.cfg.CAKeyHash {
		return refuse(access.ErrInvalid, another, "This join token is of another platform.")
	}
	unknown := refuse(access.ErrNotFound, another, "This platform does not know this join token.")
	_, err := store.Of[resource.JoinToken](id.store).Modify(ctx, parts[0], func(t *resource.JoinToken) error {
		now := id.now()
		if subtle.ConstantTimeCompare([]byte(t.SecretHash), []byte(hashText(parts[1]))) != 1 {
			return unknown
		}
		if t.UsedBy != "" {
			if t.UsedBy == node && !t.Spent && t.UsedAt != nil && now.Before(t.UsedAt.Add(completeWithin)) {
				return store.ErrSkip
			}
			return refuse(access.ErrUsed, another, "This join token was used by node %q at %s.", t.UsedBy, t.UsedAt.Format(time.RFC3339))
		}
		if !now.Before(t.ExpiresAt) {
			return refuse(access.ErrExpired, another, "This join token expired at %s.", t.ExpiresAt.Format(time.RFC3339))
		}
		t.UsedBy, t.UsedAt = node, &now
		return nil
	})
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
		return unknown
	}
	if err != nil {
		return err
	}
	giveBack()
	return nil
}

// sentence makes a sentence of an error's text.
func sentence(err error) string {
	s := err.Error()
	return strings.ToUpper(s[:1]) + strings.TrimSuffix(s[1:], ".") + "."
}
