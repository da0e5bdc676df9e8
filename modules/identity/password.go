package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/internal/access"
)

const (
	// argon2id with these takes about 30 ms of one core, and the memory that
	// makes guessing dear on graphics cards.
	argonMemoryKiB = 19 * 1024
	argonTime      = 2
	argonThreads   = 1
	argonKeyBytes  = 32
	argonSaltBytes = 16

	// argonParallel bounds what a flood of logins can take: 4 x 19 MiB.
	argonParallel = 4
	// argonWait is how long a login waits for its turn: 5 s / 30 ms x 4 are some
	// 600 logins ahead of it.
	argonWait = 5 * time.Second

	// MinPassword and MaxPassword are the lengths of passwords in octets.
	MinPassword = 10
	MaxPassword = 256
)

// passwords hashes and compares, a few at a time.
type passwords struct {
	slots *limiter.Turns[string] // by where they come from
	// dummy is compared with when there is no such user, so that the time it
	// takes does not tell.
	dummy string
}

func newPasswords() *passwords {
	return &passwords{slots: limiter.NewTurns[string](argonParallel/2, argonParallel), dummy: hashPassword(rand.Text())}
}

func (p *passwords) turn(ctx context.Context, from string) (done func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, argonWait)
	defer cancel()
	done, err = p.slots.Take(ctx, from)
	if err != nil {
		return nil, &access.Refusal{
			Reason:     access.ErrThrottled,
			Text:       "Too many people are logging in at this moment.",
			Remedy:     "Try again in some seconds.",
			RetryAfter: argonWait,
		}
	}
	return done, nil
}

// hash returns the PHC string of password. who is for whom it works: each has a turn.
func (p *passwords) hash(ctx context.Context, who, password string) (string, error) {
	if err := checkPassword(password); err != nil {
		return "", err
	}
	done, err := p.turn(ctx, who)
	if err != nil {
		return "", err
	}
	defer done()
	return hashPassword(password), nil
}

// matches compares password with a PHC string; an empty one takes as long as
// any other and never matches. source is where it comes from.
func (p *passwords) matches(ctx context.Context, phc, password, source string) (bool, error) {
	done, err := p.turn(ctx, limiter.Network(source))
	if err != nil {
		return false, err
	}
	defer done()
	known := phc != ""
	if !known {
		phc = p.dummy
	}
	if len(password) > MaxPassword {
		password = password[:MaxPassword]
		known = false
	}
	same, err := comparePassword(phc, password)
	return same && known, err
}

func checkPassword(password string) error {
	if n := len(password); n < MinPassword || n > MaxPassword {
		return refuse(access.ErrInvalid, "Take a longer one: a few words are easier to keep in mind than signs.",
			"A password must have %d to %d characters.", MinPassword, MaxPassword)
	}
	return nil
}

func hashPassword(password string) string {
	salt := make([]byte, argonSaltBytes)
	rand.Read(salt) // never fails: the runtime ends the process if it would
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemoryKiB, argonThreads, argonKeyBytes)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemoryKiB, argonTime, argonThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key))
}

// comparePassword reads the parameters from the PHC string, so that hashes made
// with older ones keep working.
func comparePassword(phc, password string) (bool, error) {
	var version, memory, passes, threads int
	fields := strings.Split(phc, "$")
	if len(fields) != 6 || fields[0] != "" || fields[1] != "argon2id" {
		return false, errors.New("stored password hash: not an argon2id PHC string")
	}
	if _, err := fmt.Sscanf(fields[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false, fmt.Errorf("stored password hash: version %q", fields[2])
	}
	if _, err := fmt.Sscanf(fields[3], "m=%d,t=%d,p=%d", &memory, &passes, &threads); err != nil {
		return false, fmt.Errorf("stored password hash: parameters %q", fields[3])
	}
	// A hash that was tampered with must not take the memory of the server.
	if memory < 8 || memory > 256*1024 || passes < 1 || passes > 16 || threads < 1 || threads > 16 {
		return false, fmt.Errorf("stored password hash: parameters %q are out of bounds", fields[3])
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(fields[4])
	want, err2 := base64.RawStdEncoding.DecodeString(fields[5])
	if err := errors.Join(err1, err2); err != nil || len(want) < 16 || len(want) > 64 {
		return false, errors.New("stored password hash: salt or key is damaged")
	}
	got := argon2.IDKey([]byte(password), salt, uint32(passes), uint32(memory), uint8(threads), uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}
