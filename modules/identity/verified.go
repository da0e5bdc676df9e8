package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"k8s.io/apimachinery/pkg/util/cache"
)

const (
	// verifiedFor is as long as a registry token is valid: whoever had a password
	// checked could do what it allows for so long anyway.
	verifiedFor = RegistryTokenLife
	maxVerified = 10_000 // x about 250 octets are 2.5 MB
)

// verified remembers which passwords were right a moment ago, and which sessions are. Clients of the
// registry show theirs with every push and pull, and 16 of them at once
// waited for half a second of argon2id.
//
// It keeps no password, but an HMAC of it with a key of this process, made
// together with the stored hash: with another password, or none, nothing is
// found. A wrong password is never in it, so guessing costs what it did, and is
// slowed down before anything is looked up here.
type verified struct {
	now   func() time.Time
	key   [sha256.Size]byte
	right *cache.LRUExpireCache
}

type digest [sha256.Size]byte

func newVerified(now func() time.Time) *verified {
	v := &verified{now: now, right: cache.NewLRUExpireCacheWithClock(maxVerified, timer(now))}
	rand.Read(v.key[:]) // never fails: the runtime ends the process if it would
	return v
}

// digest is the same for the same parts only.
func (v *verified) digest(parts ...string) digest {
	h := hmac.New(sha256.New, v.key[:])
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	var d digest
	h.Sum(d[:0])
	return d
}

// has says whether d was added a moment ago. How long it takes tells nothing:
// nobody outside knows which digest a guess has.
func (v *verified) has(d digest) bool {
	_, ok := v.right.Get(d)
	return ok
}

func (v *verified) add(d digest) { v.right.Add(d, true, verifiedFor) }

// session is the digest of a session by its name. Being here gives it no right, only that
// it doesn't count as a token that may be none, so it may be here until it ends.
func (v *verified) session(name string) digest { return v.digest("session", name) }

func (v *verified) addUntil(d digest, end time.Time) { v.right.Add(d, true, end.Sub(v.now())) }

func (v *verified) forget(d digest) { v.right.Remove(d) }
