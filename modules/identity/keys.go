package identity

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// keepKey is how long a key is published after the next one signs: longer than
// any token lives (10 minutes), and clocks may differ.
const keepKey = time.Hour

// SigningKey is a key that tokens are signed with. Its name is a number, counted
// up with each rotation: two servers that make the next one at once make the
// same one, and one of them is refused by the store. No API operation returns
// one.
type SigningKey struct {
	resource.Meta
	// Private is the private key, PKCS 8.
	Private []byte `json:"private"`
	// From is when it begins to sign.
	From time.Time `json:"from"`
}

// Kind is "signingkeys".
func (*SigningKey) Kind() string { return "signingkeys" }

// signingKey is a SigningKey that was read.
type signingKey struct {
	stored *SigningKey
	number int
	public jose.JSONWebKey
	key    *ecdsa.PrivateKey
}

// signingKeys returns all keys, oldest first, and makes the first one if there
// is none.
func (id *Identity) signingKeys(ctx context.Context) ([]signingKey, error) {
	for {
		var keys []signingKey
		err := each(ctx, id.keys, "", func(stored *SigningKey) error {
			k, err := parseKey(stored)
			if err == nil {
				keys = append(keys, k)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read signing keys: %w", err)
		}
		if len(keys) > 0 {
			slices.SortFunc(keys, func(a, b signingKey) int { return cmp.Compare(a.number, b.number) })
			return keys, nil
		}
		if err := id.addKey(ctx, 1, id.now()); err != nil {
			return nil, err
		}
	}
}

func parseKey(stored *SigningKey) (signingKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(stored.Private)
	if err != nil {
		return signingKey{}, fmt.Errorf("signing key %s: %w", stored.Name, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	number, err := strconv.Atoi(stored.Name)
	if !ok || key.Curve != elliptic.P256() || err != nil {
		return signingKey{}, fmt.Errorf("signing key %s: not an ECDSA P-256 key with a number", stored.Name)
	}
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.ES256), Use: "sig"}
	thumb, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		return signingKey{}, fmt.Errorf("signing key %s: %w", stored.Name, err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(thumb)
	return signingKey{stored: stored, number: number, public: public, key: key}, nil
}

func (id *Identity) addKey(ctx context.Context, number int, from time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	err = id.keys.Create(ctx, &SigningKey{Meta: resource.Meta{Name: strconv.Itoa(number)}, Private: der, From: from})
	if err != nil && !errors.Is(err, store.ErrExists) {
		return fmt.Errorf("keep signing key: %w", err)
	}
	return nil // if it exists, another server has just done the same
}

func (id *Identity) sweepKeys(ctx context.Context) error {
	keys, err := id.signingKeys(ctx)
	if err != nil {
		return err
	}
	for i, k := range keys[:len(keys)-1] {
		if id.now().After(keys[i+1].stored.From.Add(keepKey)) {
			if err := ignoreConflict(id.keys.Delete(ctx, k.stored)); err != nil {
				return err
			}
		}
	}
	return nil
}

// PublicKeys are the keys with which what was signed here can be verified.
func (id *Identity) PublicKeys(ctx context.Context) (jose.JSONWebKeySet, error) {
	keys, err := id.signingKeys(ctx)
	if err != nil {
		return jose.JSONWebKeySet{}, err
	}
	var set jose.JSONWebKeySet
	for _, k := range keys {
		set.Keys = append(set.Keys, k.public)
	}
	return set, nil
}

// sign returns a compact JWT that is valid from now on, signed with the newest
// key whose time has come. own are its claims beyond the standard ones.
func (id *Identity) sign(
	ctx context.Context, issuer, user, audience string, life time.Duration, own any,
) (token string, now time.Time, err error) {
	now = id.now()
	keys, err := id.signingKeys(ctx)
	if err != nil {
		return "", now, err
	}
	k := keys[0]
	for _, next := range keys[1:] {
		if !now.Before(next.stored.From) {
			k = next
		}
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: k.key, KeyID: k.public.KeyID, Algorithm: string(jose.ES256)}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", now, err
	}
	token, err = jwt.Signed(signer).Claims(jwt.Claims{
		Issuer:    issuer,
		Subject:   user,
		Audience:  jwt.Audience{audience},
		IssuedAt:  jwt.NewNumericDate(now),
		NotBefore: jwt.NewNumericDate(now.Add(-clockSkew)),
		Expiry:    jwt.NewNumericDate(now.Add(life)),
		ID:        randomText(12),
	}).Claims(own).Serialize()
	return token, now, err
}
