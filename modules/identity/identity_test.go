package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/limiter"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

const (
	password = "correct horse battery"
	source   = "192.0.2.1:5000"
)

// clock is a clock that stands still where no test moves it: on a slow machine what was
// taken would be given back while it is taken.
type clock struct {
	begin  time.Time
	offset atomic.Int64
}

func newClock() *clock { return &clock{begin: time.Now()} }

func (c *clock) now() time.Time          { return c.begin.Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

func newIdentity(t *testing.T) (*Identity, *clock) {
	t.Helper()
	c := newClock()
	return New(Config{Store: storetest.New(t), Issuer: "https://mp.example:7443", RegistryService: "mp.example:5000", CAKeyHash: "cafe", Now: c.now}), c
}

func mustUser(t *testing.T, id *Identity, address string, spec resource.UserSpec) {
	t.Helper()
	if _, err := id.CreateUser(t.Context(), address, password, resource.User{Spec: spec}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestLogin(t *testing.T) {
	id, clock := newIdentity(t)
	ctx := t.Context()
	mustUser(t, id, "Ann@Acme.Example", resource.UserSpec{})
	if _, err := id.CreateUser(ctx, "ann@acme.example", password, resource.User{}, nil); !errors.Is(err, access.ErrExists) {
		t.Errorf("second user of that name: got %v, want ErrExists", err)
	}

	got, err := id.Login(ctx, " ANN@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got.Token, TokenPrefix) || got.User != "ann@acme.example" {
		t.Errorf("got %+v", got)
	}
	p, err := id.Authenticate(ctx, got.Token, source)
	if err != nil || p.User != "ann@acme.example" || p.Sysadmin {
		t.Fatalf("got %+v, %v", p, err)
	}
	// The token itself is nowhere in the store.
	if err := each(ctx, store.Of[resource.Session](id.store), "", func(s *resource.Session) error {
		if text, _ := json.Marshal(s); strings.Contains(string(text), got.Token[len(TokenPrefix):]) {
			t.Errorf("the store has the token: %s", text)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	var refusals []string
	for _, wrong := range [][2]string{{"ann@acme.example", "wrong password"}, {"bob@acme.example", password}, {"no address", password}, {"ann@acme.example", ""}, {"", ""}, {"a/b@c", password}, {"ann@acme.example", strings.Repeat("x", 5000)}} {
		_, err := id.Login(ctx, wrong[0], wrong[1], "192.0.2.77:1")
		if !errors.Is(err, access.ErrUnauthenticated) {
			t.Fatalf("login %q: got %v, want ErrUnauthenticated", wrong[0], err)
		}
		refusals = append(refusals, err.Error())
	}
	for _, r := range refusals {
		if r != refusals[0] {
			t.Errorf("refusals differ: %q and %q", r, refusals[0])
		}
	}

	for _, bad := range []string{"", "mps_", "mps_x", "Bearer x", strings.Repeat("mps_", 1000), "mps_../../users/x", "mps_a,b"} {
		if _, err := id.Authenticate(ctx, bad, source); !errors.Is(err, access.ErrUnauthenticated) {
			t.Errorf("token %.20q: got %v, want ErrUnauthenticated", bad, err)
		}
	}

	if err := id.Logout(ctx, p); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Authenticate(ctx, got.Token, source); !errors.Is(err, access.ErrUnauthenticated) {
		t.Errorf("after logout: got %v", err)
	}

	// Sessions end by themselves, and are swept.
	got, err = id.Login(ctx, "ann@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	clock.advance(SessionLife - time.Minute)
	if _, err := id.Authenticate(ctx, got.Token, source); err != nil {
		t.Errorf("before its end: %v", err)
	}
	clock.advance(2 * time.Minute)
	if _, err := id.Authenticate(ctx, got.Token, source); !errors.Is(err, access.ErrUnauthenticated) {
		t.Errorf("after its end: got %v", err)
	}
	if err := id.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if left, _, err := store.Of[resource.Session](id.store).List(ctx, "", "", 0); err != nil || len(left) != 0 {
		t.Errorf("after the sweep: %d sessions, %v", len(left), err)
	}
}

func TestPasswords(t *testing.T) {
	id, _ := newIdentity(t)
	ctx := t.Context()
	mustUser(t, id, "ann@acme.example", resource.UserSpec{})
	a, err := id.Login(ctx, "ann@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	b, err := id.Login(ctx, "ann@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	p, err := id.Authenticate(ctx, a.Token, source)
	if err != nil {
		t.Fatal(err)
	}
	if err := id.ChangePassword(ctx, p, "wrong", "another password", source); !errors.Is(err, access.ErrDenied) {
		t.Errorf("with a wrong password: got %v, want ErrDenied", err)
	}
	if err := id.ChangePassword(ctx, p, password, "short", source); !errors.Is(err, access.ErrInvalid) {
		t.Errorf("to a short password: got %v, want ErrInvalid", err)
	}
	if err := id.ChangePassword(ctx, p, password, "another password", source); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Authenticate(ctx, a.Token, source); err != nil {
		t.Errorf("own session: %v", err)
	}
	if _, err := id.Authenticate(ctx, b.Token, source); err == nil {
		t.Error("the other session goes on")
	}
	if _, err := id.Login(ctx, "ann@acme.example", password, source); err == nil {
		t.Error("the old password still works")
	}
	if _, err := id.Login(ctx, "ann@acme.example", "another password", source); err != nil {
		t.Errorf("the new password: %v", err)
	}

	if _, err := store.Of[resource.User](id.store).Modify(ctx, "ann@acme.example", func(u *resource.User) error { u.Spec.Disabled = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Authenticate(ctx, a.Token, source); err == nil {
		t.Error("a disabled user's session goes on")
	}
	if _, err := id.Login(ctx, "ann@acme.example", "another password", source); err == nil {
		t.Error("a disabled user can log in")
	}
}

func TestStoredHashes(t *testing.T) {
	phc := hashPassword(password)
	if !strings.HasPrefix(phc, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("got %s", phc)
	}
	for _, c := range []struct {
		phc  string
		want bool
		err  bool
	}{
		{phc, true, false},
		{hashPassword("other password"), false, false},
		{"", false, true},
		{"$argon2id$v=19$m=19456,t=2,p=1$AAAA", false, true},
		{"$argon2i$v=19$m=19456,t=2,p=1$AAAA$AAAA", false, true},
		{strings.Replace(phc, "m=19456", "m=1945600000", 1), false, true},
		{strings.Replace(phc, "p=1", "p=0", 1), false, true},
		{strings.Replace(phc, "v=19", "v=16", 1), false, true},
	} {
		got, err := comparePassword(c.phc, password)
		if got != c.want || (err != nil) != c.err {
			t.Errorf("%s: got %v, %v", c.phc, got, err)
		}
	}
}

func TestLoginFloodIsBounded(t *testing.T) {
	p := newPasswords()
	var wg sync.WaitGroup
	var refused atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for range 200 {
		wg.Go(func() {
			if _, err := p.matches(ctx, "", "x", source); errors.Is(err, access.ErrThrottled) {
				refused.Add(1)
			}
		})
	}
	// Who comes from elsewhere has his turn, behind what is under way.
	if _, err := p.matches(t.Context(), "", "x", "198.51.100.1:1"); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	wg.Wait()
	t.Logf("%d of 200 refused", refused.Load())
}

func TestThrottle(t *testing.T) {
	c := newClock()
	th := newThrottle(c.now)
	var err error
	for range userBurst {
		if _, err = th.attempt("ann", source); err != nil {
			t.Fatal(err)
		}
	}
	_, err = th.attempt("ann", source)
	var no *access.Refusal
	if !errors.As(err, &no) || !errors.Is(err, access.ErrThrottled) || no.RetryAfter <= 0 || no.RetryAfter > userRefill {
		t.Errorf("got %+v", err)
	}
	if _, err := th.attempt("ann", "192.0.2.2:1"); err != nil {
		t.Errorf("from another source: %v", err)
	}
	if _, err := th.attempt("bob", source); err != nil {
		t.Errorf("another user: %v", err)
	}
	c.advance(userRefill + time.Second)
	giveBack, err := th.attempt("ann", source)
	if err != nil {
		t.Fatalf("after a while: %v", err)
	}
	giveBack()
	for range userBurst {
		if _, err := th.attempt("ann", source); err != nil {
			t.Fatalf("after the right password: %v", err)
		}
	}
	// Names that are refused anyway push out nothing.
	for i := range 2 * maxBuckets {
		_, _ = th.attempt(fmt.Sprint(i), source)
	}
	c.advance(sourceRefill)
	if _, err := th.attempt("ann", source); err == nil {
		t.Error("made-up names have made ann's attempts forgotten")
	}
	for i := range 2 * maxBuckets {
		_, _ = th.attempt(fmt.Sprint(i), fmt.Sprintf("198.51.%d.%d:1", i/250%250, i%250))
	}
	if n := len(th.buckets.Keys()); n > maxBuckets+1 {
		t.Errorf("%d buckets", n)
	}
	if a, b := limiter.Network("[2001:db8::1]:1"), limiter.Network("[2001:db8::2]:2"); a != b {
		t.Errorf("one IPv6 host has two networks, %s and %s", a, b)
	}
}

func TestBootstrap(t *testing.T) {
	id, _ := newIdentity(t)
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "sysadmin.json")
	read := func() (c struct{ Email, Password string }) {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	// Killed between file and store: the file is there, the user is not.
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := id.Bootstrap(canceled, file, "admin@mp.example"); err == nil {
		t.Error("with a dead store: no error")
	}
	if err := os.WriteFile(file, []byte(`{"email":"admin@mp.example","password":"from a start that was killed"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := id.Bootstrap(ctx, file, "admin@mp.example"); err != nil {
		t.Fatal(err)
	}
	first := read()
	if info, err := os.Stat(file); err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	login, err := id.Login(ctx, first.Email, first.Password, source)
	if err != nil {
		t.Fatal(err)
	}
	p, err := id.Authenticate(ctx, login.Token, source)
	if err != nil || !p.Sysadmin || p.User != "admin@mp.example" {
		t.Errorf("got %+v, %v", p, err)
	}
	// Every later start leaves everything as it is.
	for _, domain := range []string{"mp.example", "other.example"} {
		if err := id.Bootstrap(ctx, file, "admin@"+domain); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(); got != first {
		t.Errorf("the file changed: %+v, was %+v", got, first)
	}
	if users, _, _ := store.Of[resource.User](id.store).List(ctx, "", "", 0); len(users) != 1 {
		t.Errorf("%d users", len(users))
	}
}

func TestRegister(t *testing.T) {
	id, _ := newIdentity(t)
	ctx := t.Context()
	r := resource.Register{Account: "acme", Email: "Ann@acme.example", Password: password}
	account, created, err := id.Register(ctx, nil, r, source)
	if err != nil || !created || account.Name != "acme" || account.UID == "" {
		t.Fatalf("got %+v, %v, %v", account, created, err)
	}
	if _, created, err = id.Register(ctx, nil, r, source); err != nil || created {
		t.Errorf("again: got %v, %v", created, err)
	}
	r.Account = "second"
	if _, created, err = id.Register(ctx, nil, r, source); err != nil || !created {
		t.Errorf("a second account: got %v, %v", created, err)
	}
	for want, r := range map[error]resource.Register{
		access.ErrExists:  {Account: "acme", Email: "bob@acme.example", Password: password},
		access.ErrInvalid: {Account: "Not_A_Name", Email: "bob@acme.example", Password: password},
	} {
		if _, _, err := id.Register(ctx, nil, r, source); !errors.Is(err, want) {
			t.Errorf("%+v: got %v, want %v", r, err, want)
		}
	}
	if _, _, err := id.Register(ctx, nil, resource.Register{Account: "third", Email: "ann@acme.example", Password: "wrong password"}, source); !errors.Is(err, access.ErrDenied) || strings.Contains(err.Error(), "already") {
		t.Errorf("with somebody else's address: got %v", err)
	}
	// What was refused left nothing.
	if users, _, _ := store.Of[resource.User](id.store).List(ctx, "", "", 0); len(users) != 1 {
		t.Errorf("%d users, want 1", len(users))
	}
	p := &access.Principal{User: "ann@acme.example"}
	if err := id.Admit(ctx, p, "organizations.put", "acme", ""); err != nil {
		t.Errorf("owner of acme: %v", err)
	}
	if err := id.Admit(ctx, &access.Principal{User: "bob@acme.example"}, "organizations.put", "acme", ""); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("a stranger: got %v", err)
	}
	// Two at once: one wins, whole.
	var wg sync.WaitGroup
	var won atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			_, created, err := id.Register(ctx, nil, resource.Register{Account: "raced", Email: fmt.Sprintf("u%d@x.example", i), Password: password}, fmt.Sprintf("192.0.2.%d:1", i))
			if created && err == nil {
				won.Add(1)
			} else if !errors.Is(err, access.ErrExists) {
				t.Errorf("got %v, want ErrExists", err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d won", won.Load())
	}
}

func TestDeleteUser(t *testing.T) {
	id, _ := newIdentity(t)
	ctx := t.Context()
	if _, _, err := id.Register(ctx, nil, resource.Register{Account: "acme", Email: "ann@acme.example", Password: password}, source); err != nil {
		t.Fatal(err)
	}
	user, err := store.Of[resource.User](id.store).Get(ctx, "ann@acme.example")
	if err != nil {
		t.Fatal(err)
	}
	if err := id.DeleteUser(ctx, user); !errors.Is(err, access.ErrExists) {
		t.Errorf("the last owner: got %v", err)
	}
	mustUser(t, id, "bob@acme.example", resource.UserSpec{})
	login, err := id.Login(ctx, "bob@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	// More invitations than his list shows.
	for i := range maxInvited + 3 {
		offer := resource.Invitation{Meta: resource.Meta{Name: "bob@acme.example"}, Account: fmt.Sprint("other", i), Role: resource.RoleOwner, By: "ann@acme.example"}
		if _, _, err := id.Invite(ctx, offer, func(context.Context) ([]store.Op, error) { return nil, nil }); err != nil {
			t.Fatal(err)
		}
	}
	if user, err = store.Of[resource.User](id.store).Get(ctx, "bob@acme.example"); err != nil {
		t.Fatal(err)
	}
	if err := id.DeleteUser(ctx, user); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Authenticate(ctx, login.Token, source); err == nil {
		t.Error("a deleted user's session goes on")
	}
	offers, err := store.Of[resource.Invitation](id.store).Keys(ctx, "")
	lists, err2 := store.Of[resource.Invitee](id.store).Keys(ctx, "")
	if err := errors.Join(err, err2); err != nil || len(offers)+len(lists) != 0 {
		t.Errorf("invitations of a user who is gone: %q, %q, %v", offers, lists, err)
	}
	// A new user of that name starts from nothing.
	mustUser(t, id, "bob@acme.example", resource.UserSpec{})
	if _, err := id.Authenticate(ctx, login.Token, source); err == nil {
		t.Error("the old session is the new user's")
	}
}

func TestJoinToken(t *testing.T) {
	id, clock := newIdentity(t)
	ctx := t.Context()
	create := func() string {
		t.Helper()
		text, token, err := id.CreateJoinToken(ctx, time.Hour, "root@mp.example")
		if err != nil {
			t.Fatal(err)
		}
		if parts := strings.Split(text, "."); len(parts) != 3 || parts[0] != token.Name || parts[2] != "cafe" || strings.Contains(token.SecretHash, parts[1]) {
			t.Fatalf("token %q of %+v", text, token)
		}
		return text
	}
	redeem := func(text, node string, want error) {
		t.Helper()
		err := id.Redeem(ctx, text, node, "")
		if !errors.Is(err, want) {
			t.Errorf("redeem for %s: got %v, want %v", node, err, want)
		}
	}
	first := create()
	redeem(first, "host1", nil)
	redeem(first, "host1", nil) // a join that died half-way
	redeem(first, "host2", access.ErrUsed)
	err := id.Redeem(ctx, first, "host2", "")
	if !strings.Contains(err.Error(), `"host1"`) {
		t.Errorf("by whom it was used is missing: %v", err)
	}
	spent := create()
	redeem(spent, "host1", nil)
	if _, err := store.Of[resource.JoinToken](id.store).Modify(ctx, strings.Split(spent, ".")[0], func(t *resource.JoinToken) error { t.Spent = true; return nil }); err != nil {
		t.Fatal(err)
	}
	redeem(spent, "host1", access.ErrUsed) // the node was removed
	clock.advance(completeWithin + time.Second)
	redeem(first, "host1", access.ErrUsed)
	// Without the CA's hash it works too; with another one it does not.
	redeem(strings.TrimSuffix(create(), ".cafe"), "host2", nil)
	redeem(strings.TrimSuffix(create(), ".cafe")+".beef", "host3", access.ErrInvalid)
	name, _, _ := strings.Cut(create(), ".")
	redeem(name+".wrong.cafe", "host4", access.ErrNotFound)
	redeem("nothere.wrong.cafe", "host5", access.ErrNotFound)
	for _, text := range []string{"", ".", "..", "a", "a/b.c", "a.b.c.d", strings.Repeat("a.", 200), "a,b.c"} {
		if err := id.Redeem(ctx, text, "host6", ""); !errors.Is(err, access.ErrInvalid) && !errors.Is(err, access.ErrNotFound) {
			t.Errorf("%q: got %v", text, err)
		}
	}
	redeem(create(), "Not_A_Name", access.ErrInvalid)
	late := create()
	clock.advance(time.Hour)
	redeem(late, "host7", access.ErrExpired)

	// Many at once: one node gets it.
	text := create()
	var wg sync.WaitGroup
	var won atomic.Int64
	for i := range 10 {
		wg.Go(func() {
			if err := id.Redeem(ctx, text, fmt.Sprintf("race%d", i), ""); err == nil {
				won.Add(1)
			} else if !errors.Is(err, access.ErrUsed) {
				t.Errorf("got %v, want ErrUsed", err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d nodes got the token", won.Load())
	}
	clock.advance(2 * keepJoinTokens)
	if err := id.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if left, _, _ := store.Of[resource.JoinToken](id.store).List(ctx, "", "", 0); len(left) != 0 {
		t.Errorf("%d tokens are left", len(left))
	}
}

// TestSessionsAreBounded: of the logins of one user the oldest ends when there are too
// many, whatever others do; and who logs in all the time is told to wait.
func TestSessionsAreBounded(t *testing.T) {
	id, clock := newIdentity(t)
	ctx := t.Context()
	mustUser(t, id, "ann@acme.example", resource.UserSpec{})
	mustUser(t, id, "bob@acme.example", resource.UserSpec{})
	bob, err := id.Login(ctx, "bob@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	var tokens []string
	for range maxSessions + 3 {
		clock.advance(loginRefill)
		login, err := id.Login(ctx, "ann@acme.example", password, source)
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, login.Token)
	}
	for i, token := range tokens {
		_, err := id.Authenticate(ctx, token, source)
		if ended := errors.Is(err, access.ErrUnauthenticated); ended != (i < 3) {
			t.Errorf("login %d of %d: %v", i, len(tokens), err)
		}
	}
	if _, err := id.Authenticate(ctx, bob.Token, source); err != nil {
		t.Errorf("another user's session: %v", err)
	}
	keys, err := store.Of[resource.Session](id.store).Keys(ctx, resource.SessionPrefix("ann@acme.example"))
	if err != nil || len(keys) != maxSessions {
		t.Errorf("%d sessions, %v, want %d", len(keys), err, maxSessions)
	}

	clock.advance(loginRefill)
	refused := 0
	for range 2 * loginBurst {
		_, err := id.Login(ctx, "ann@acme.example", password, source)
		if no, ok := errors.AsType[*access.Refusal](err); ok && errors.Is(err, access.ErrThrottled) && no.RetryAfter > 0 {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if refused != loginBurst {
		t.Errorf("%d of %d logins at once were refused", refused, 2*loginBurst)
	}
	if _, err := id.Login(ctx, "bob@acme.example", password, source); err != nil {
		t.Errorf("another user's login: %v", err)
	}
	if err := id.SetPassword(ctx, "ann@acme.example", password+"!", false); err != nil {
		t.Fatal(err)
	}
	if left, err := store.Of[resource.Session](id.store).Keys(ctx, resource.SessionPrefix("ann@acme.example")); err != nil || len(left) != 0 {
		t.Errorf("after a new password: %d sessions, %v", len(left), err)
	}
}

// TestLoginsWithTheReserve: when the datastore has only its reserve left, a sysadmin logs
// in as often as he has to, others once.
func TestLoginsWithTheReserve(t *testing.T) {
	id, _ := newIdentity(t)
	ctx := t.Context()
	mustUser(t, id, "root@mp.example", resource.UserSpec{Sysadmin: true})
	mustUser(t, id, "ann@acme.example", resource.UserSpec{})
	id.store.Tighten(true)
	for i := range 3 {
		if _, err := id.Login(ctx, "root@mp.example", password, source); err != nil {
			t.Errorf("the sysadmin: %v", err)
		}
		_, err := id.Login(ctx, "ann@acme.example", password, source)
		if full := errors.Is(err, store.ErrFull); full != (i > 0) || err != nil && !full {
			t.Errorf("login %d of another: %v", i, err)
		}
	}
}

// TestTokensThatAreNone: who shows many of them is told to wait before anything is read
// for him, and others behind his address go on with theirs.
func TestTokensThatAreNone(t *testing.T) {
	id, clock := newIdentity(t)
	ctx := t.Context()
	mustUser(t, id, "ann@acme.example", resource.UserSpec{})
	login, err := id.Login(ctx, "ann@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	id.strangers = limiter.NewRate[string](0.001, 20)
	if _, err := id.Authenticate(ctx, login.Token, source); err != nil {
		t.Fatal(err)
	}
	none := func(from string) error {
		_, err := id.Authenticate(ctx, TokenPrefix+resource.SessionPrefix("ann@acme.example")+randomText(tokenBytes), from)
		return err
	}
	for range 20 {
		if err := none(source); !errors.Is(err, access.ErrUnauthenticated) {
			t.Fatalf("a token that is none: %v", err)
		}
	}
	no, ok := errors.AsType[*access.Refusal](none(source))
	if !ok || !errors.Is(no, access.ErrThrottled) || no.RetryAfter < time.Second || !strings.Contains(no.Text, "from your address") {
		t.Errorf("one more: %+v", no)
	}
	if _, err := id.Authenticate(ctx, login.Token, source); err != nil {
		t.Errorf("whose token is known, behind the same address: %v", err)
	}
	later, err := id.Login(ctx, "ann@acme.example", password, source)
	if err != nil {
		t.Fatalf("a login behind the same address: %v", err)
	}
	clock.advance(SessionLife - time.Minute)
	for _, token := range []string{login.Token, later.Token} {
		if _, err := id.Authenticate(ctx, token, source); err != nil {
			t.Errorf("who logged in behind the same address, after some hours: %v", err)
		}
	}
	if err := none("198.51.100.9:1"); !errors.Is(err, access.ErrUnauthenticated) {
		t.Errorf("from another address: %v", err)
	}
	if _, err := id.registryPrincipal(ctx, "token", TokenPrefix+randomText(40), source); !errors.Is(err, access.ErrThrottled) {
		t.Errorf("by the registry's door: %v", err)
	}
}

// TestTokensThatHaveEnded: they are tokens that are none from then on, however they ended,
// so who shows one again and again is told to wait too.
func TestTokensThatHaveEnded(t *testing.T) {
	for how, end := range map[string]func(t *testing.T, id *Identity, c *clock, p *access.Principal) error{
		"logout": func(t *testing.T, id *Identity, _ *clock, p *access.Principal) error {
			return id.Logout(t.Context(), p)
		},
		"a new password": func(t *testing.T, id *Identity, _ *clock, p *access.Principal) error {
			return id.SetPassword(t.Context(), p.User, password+"!", false)
		},
		"its time": func(_ *testing.T, _ *Identity, c *clock, _ *access.Principal) error {
			c.advance(SessionLife)
			return nil
		},
		"at another server": func(t *testing.T, id *Identity, _ *clock, p *access.Principal) error {
			return store.Of[resource.Session](id.store).Delete(t.Context(), p.Session)
		},
		"its user was disabled": func(t *testing.T, id *Identity, _ *clock, p *access.Principal) error {
			_, err := store.Of[resource.User](id.store).Modify(t.Context(), p.User, func(u *resource.User) error { u.Spec.Disabled = true; return nil })
			return err
		},
		"too many others": func(t *testing.T, id *Identity, c *clock, p *access.Principal) error {
			for range maxSessions {
				c.advance(loginRefill)
				if _, err := id.Login(t.Context(), p.User, password, source); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(how, func(t *testing.T) {
			id, clock := newIdentity(t)
			mustUser(t, id, "ann@acme.example", resource.UserSpec{})
			login, err := id.Login(t.Context(), "ann@acme.example", password, source)
			if err != nil {
				t.Fatal(err)
			}
			id.strangers = limiter.NewRate[string](0.001, 5)
			var p *access.Principal
			for range 10 {
				if p, err = id.Authenticate(t.Context(), login.Token, source); err != nil {
					t.Fatalf("before its end: %v", err)
				}
			}
			if err := end(t, id, clock, p); err != nil {
				t.Fatal(err)
			}
			refused := 0
			for range 10 {
				_, err := id.Authenticate(t.Context(), login.Token, source)
				if errors.Is(err, access.ErrThrottled) {
					refused++
				} else if !errors.Is(err, access.ErrUnauthenticated) {
					t.Fatalf("after its end: %v", err)
				}
			}
			if refused < 4 {
				t.Errorf("%d of 10 were refused before anything was read", refused)
			}
		})
	}
}
