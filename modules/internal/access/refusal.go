package access

import (
	"errors"
	"time"
)

// The reasons of a Refusal.
var (
	// ErrUnauthenticated is returned when nobody, or nobody we know, is asking.
	ErrUnauthenticated = errors.New("not logged in")
	// ErrDenied is returned when the object may be seen but the operation is
	// not allowed.
	ErrDenied = errors.New("not allowed")
	// ErrNotFound is returned when the object does not exist, or does not for
	// the one who asks.
	ErrNotFound = errors.New("not found")
	// ErrExists is returned when there is one already.
	ErrExists = errors.New("exists already")
	// ErrInvalid is returned when what was given can't be right.
	ErrInvalid = errors.New("not valid")
	// ErrThrottled is returned when there were too many attempts.
	ErrThrottled = errors.New("too many attempts")
	// ErrUsed is returned for a join token that was used before.
	ErrUsed = errors.New("used already")
	// ErrExpired is returned for a join token after its time.
	ErrExpired = errors.New("expired")
)

// Refusal is a no that the one who asks may read.
type Refusal struct {
	Reason     error  // one of the Err values above
	Text       string // what is wrong, a sentence
	Remedy     string // what to do about it; may be empty
	RetryAfter time.Duration
}

// Error returns what is wrong and what to do about it.
func (r *Refusal) Error() string {
	if r.Remedy == "" {
		return r.Text
	}
	return r.Text + " " + r.Remedy
}

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Reason }
