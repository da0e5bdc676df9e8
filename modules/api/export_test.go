package api

import (
	"context"
	"sync/atomic"

	"github.com/multipaas/multipaas/modules/internal/access"
)

// CompleteVolume is what a change of a volume goes through.
var CompleteVolume = completeVolume

// Share gives each one so much of the API from now on.
func (a *API) Share(perSecond float64, atOnce int) { a.shares = newShares(perSecond, atOnce) }

// Authentications counts from now on how often the API asks who carries a token.
func (a *API) Authentications() *atomic.Int64 {
	c := &counted{Identity: a.id}
	a.id = c
	return &c.n
}

type counted struct {
	Identity
	n atomic.Int64
}

func (c *counted) Authenticate(ctx context.Context, token, source string) (*access.Principal, error) {
	c.n.Add(1)
	return c.Identity.Authenticate(ctx, token, source)
}
