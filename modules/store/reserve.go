package store

import "context"

// Tighten says whether the datastore is so full that only its reserve is left: then
// nothing new is made, and the error is ErrFull, but by whoever has the reserve. What
// is there can still be changed and deleted.
func (s *Store) Tighten(tight bool) { s.tight.Store(tight) }

type reserveKey struct{}

// WithReserve lets what is committed with the returned context use the reserve: it is for
// those who make room.
func WithReserve(ctx context.Context) context.Context {
	return context.WithValue(ctx, reserveKey{}, true)
}

// full says whether nothing new may be made with ctx.
func (s *Store) full(ctx context.Context) bool {
	return s.tight.Load() && ctx.Value(reserveKey{}) == nil
}
