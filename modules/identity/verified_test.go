package identity

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// TestVerified: a right password is hashed once in a while, a wrong one always,
// and what was remembered is worth nothing once the password is another.
func TestVerified(t *testing.T) {
	// A clock that stands still between its moves: on a slow machine attempts
	// would be given back while they are made.
	var passed atomic.Int64
	begin := time.Now()
	id := New(Config{Store: storetest.New(t), Issuer: "https://mp.example:7443", RegistryService: "mp.example:5000", CAKeyHash: "cafe",
		Now: func() time.Time { return begin.Add(time.Duration(passed.Load())) }})
	ctx := t.Context()
	const ann = "ann@acme.example"
	mustUser(t, id, ann, resource.UserSpec{})
	check := func(password, source string) error {
		_, err := id.CheckPassword(ctx, ann, password, source)
		return err
	}
	// hashed says whether a check needs argon2id: with all turns taken it waits.
	hashed := func(password, source string) bool {
		var leave []func()
		for i := range argonParallel {
			done, err := id.passwords.slots.Take(ctx, fmt.Sprint(i))
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, done)
		}
		done := make(chan error, 1)
		go func() { done <- check(password, source) }()
		waits := false
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("check: %v", err)
			}
		case <-time.After(time.Second):
			waits = true
		}
		for _, leave := range leave {
			leave()
		}
		if waits {
			<-done
		}
		return waits
	}

	// 16 clients at once are more than one source has attempts; they are one.
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if err := check(password, source); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if hashed(password, source) || hashed(password, "192.0.2.2:1") {
		t.Error("a right password was hashed again at once")
	}
	if !hashed("wrong password", source) {
		t.Error("a wrong password was not hashed")
	}
	passed.Store(int64(verifiedFor + time.Second))
	if !hashed(password, source) {
		t.Error("a password is remembered for longer than it should be")
	}

	if err := check(password, source); err != nil {
		t.Fatal(err)
	}
	if err := id.SetPassword(ctx, ann, password+" 2", false); err != nil {
		t.Fatal(err)
	}
	if err := check(password, source); !errors.Is(err, access.ErrUnauthenticated) {
		t.Errorf("the old password: got %v", err)
	}
	if err := check(password+" 2", source); err != nil {
		t.Errorf("the new password: got %v", err)
	}

	// Whoever guesses is slowed down, and does not even hear of a right guess.
	for i := range userBurst {
		if err := check(fmt.Sprint("guess number ", i), "192.0.2.66:1"); !errors.Is(err, access.ErrUnauthenticated) {
			t.Fatalf("guess %d: got %v", i, err)
		}
	}
	if err := check(password+" 2", "192.0.2.66:2"); !errors.Is(err, access.ErrThrottled) {
		t.Errorf("a right guess after %d wrong ones: got %v, want ErrThrottled", userBurst, err)
	}

	if _, err := store.Of[resource.User](id.store).Modify(ctx, ann, func(u *resource.User) error { u.Spec.Disabled = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := check(password+" 2", source); !errors.Is(err, access.ErrUnauthenticated) {
		t.Errorf("a user who was disabled: got %v", err)
	}
}

func TestVerifiedIsBounded(t *testing.T) {
	now := time.Now()
	v := newVerified(func() time.Time { return now })
	for i := range maxVerified + 10 {
		v.add(v.digest(fmt.Sprint(i)))
	}
	if n := len(v.right.Keys()); n > maxVerified {
		t.Errorf("%d are remembered, want %d at most", n, maxVerified)
	}
	if v.digest("a", "bc") == v.digest("ab", "c") || v.digest("a") == newVerified(time.Now).digest("a") {
		t.Error("digests of different parts or keys are the same")
	}
}
