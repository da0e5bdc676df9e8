package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// announce is how long a new key is published before it signs, so that whoever
// has fetched the keys fetches them again in between.
const announce = 10 * time.Minute

// RotateKeys makes the next signing key. It is published at once, signs after
// ten minutes, and the one before it is published for an hour more.
func (id *Identity) RotateKeys(ctx context.Context) error {
	keys, err := id.signingKeys(ctx)
	if err != nil {
		return err
	}
	return id.addKey(ctx, keys[len(keys)-1].number+1, id.now().Add(announce))
}

// RegistryClaims are what a verified registry token says.
type RegistryClaims struct {
	User   string
	Access []RegistryAccess
}

// Allows says whether the token allows action ("pull", "push", "delete") on the
// repository name.
func (c RegistryClaims) Allows(name, action string) bool {
	return slices.ContainsFunc(c.Access, func(a RegistryAccess) bool {
		return a.Type == "repository" && a.Name == name && slices.Contains(a.Actions, action)
	})
}

type registryClaims struct {
	Access []RegistryAccess `json:"access"`
}

// VerifyRegistryToken checks a registry token and returns what it allows.
func (id *Identity) VerifyRegistryToken(ctx context.Context, raw string) (RegistryClaims, error) {
	var std jwt.Claims
	var own registryClaims
	if err := id.verify(ctx, raw, &std, &own); err != nil {
		return RegistryClaims{}, err
	}
	if std.Expiry == nil {
		return RegistryClaims{}, errors.New("token: it does not expire")
	}
	err := std.ValidateWithLeeway(jwt.Expected{
		Issuer: id.RegistryIssuer(), AnyAudience: jwt.Audience{id.cfg.RegistryService}, Time: id.now(),
	}, clockSkew)
	if err != nil {
		return RegistryClaims{}, fmt.Errorf("token: %w", err)
	}
	return RegistryClaims{User: std.Subject, Access: own.Access}, nil
}

// verify checks the signature of raw and reads its claims into dest.
func (id *Identity) verify(ctx context.Context, raw string, dest ...any) error {
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	set, err := id.PublicKeys(ctx)
	if err != nil {
		return err
	}
	if len(token.Headers) != 1 {
		return errors.New("token: it must have one signature")
	}
	found := set.Key(token.Headers[0].KeyID)
	if len(found) != 1 {
		return errors.New("token: signed with a key we don't have")
	}
	return token.Claims(found[0].Key, dest...)
}
