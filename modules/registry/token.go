package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// TokenPath is where the registry sends clients for a token.
const TokenPath = "/token"

// Tokens says which tokens are taken: JSON Web Tokens signed with ES256, with
// the "access" claim of the Docker registry protocol.
type Tokens struct {
	// Issue answers who asks for one, at TokenPath of the registry's own host:
	// clients built on go-containerregistry refuse to log in at any other host
	// whose address is a private one.
	Issue   http.Handler
	Service string // must be in their audience
	Issuer  string // must be their issuer; empty: any that Keys verify
	// Keys are the public keys that verify them. It is called with every
	// request, should not block, and is safe for concurrent use.
	Keys func(ctx context.Context) (*jose.JSONWebKeySet, error)
	// Now is the clock, for tests. Nil is time.Now.
	Now func() time.Time
}

// claims is what a verified token says.
type claims struct {
	jwt.Claims
	Access []struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	} `json:"access"`
}

// allow says whether the token grants the action on that very name.
func (c *claims) allow(kind, name, action string) bool {
	for _, a := range c.Access {
		if a.Type == kind && a.Name == name && slices.Contains(a.Actions, action) {
			return true
		}
	}
	return false
}

// leeway is by how much clocks may differ; server and registry share one, so
// it covers only clients that keep a token to its last second.
const leeway = 5 * time.Second

func (t Tokens) verify(ctx context.Context, token string) (*claims, error) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("parse token: %w", err)
	}
	keys, err := t.Keys(ctx)
	if err != nil {
		return nil, fmt.Errorf("get the keys that verify tokens: %w", err)
	}
	var c claims
	if err := parsed.Claims(keys, &c); err != nil {
		return nil, fmt.Errorf("verify token: %w", err)
	}
	now := time.Now
	if t.Now != nil {
		now = t.Now
	}
	want := jwt.Expected{Issuer: t.Issuer, AnyAudience: jwt.Audience{t.Service}, Time: now()}
	if err := c.ValidateWithLeeway(want, leeway); err != nil {
		return nil, fmt.Errorf("verify token: %w", err)
	}
	if c.Expiry == nil {
		return nil, errors.New("verify token: it has no expiry")
	}
	return &c, nil
}
