package identity

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// invited is an account with an owner, and somebody else who is invited to it.
func invited(t *testing.T, id *Identity) (p *access.Principal, code string) {
	t.Helper()
	ctx := t.Context()
	if _, _, err := id.Register(ctx, nil, resource.Register{Account: "acme", Email: "ann@acme.example", Password: password}, source); err != nil {
		t.Fatal(err)
	}
	if _, _, err := id.Register(ctx, nil, resource.Register{Account: "beta", Email: "bob@beta.example", Password: password}, source); err != nil {
		t.Fatal(err)
	}
	offer := resource.Invitation{Meta: resource.Meta{Name: "bob@beta.example"}, Account: "acme", Role: resource.RoleOwner, By: "ann@acme.example"}
	_, code, err := id.Invite(ctx, offer, func(context.Context) ([]store.Op, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	return &access.Principal{User: "bob@beta.example"}, code
}

func TestInvitationExpires(t *testing.T) {
	id, clock := newIdentity(t)
	p, code := invited(t, id)
	clock.advance(InvitationLife + time.Second)
	if _, err := id.Accept(t.Context(), p, "acme", "", code); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if list, err := id.Invitations(t.Context(), p); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if err := id.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, _, err := store.Of[resource.Invitation](id.store).List(t.Context(), "", "", 0)
	lists, _, err2 := store.Of[resource.Invitee](id.store).List(t.Context(), "", "", 0)
	if err != nil || err2 != nil || len(left)+len(lists) != 0 {
		t.Errorf("left are %v and %v; %v, %v", left, lists, err, err2)
	}
}

// TestInvitedWasAnother: whoever has the address later is not the one who was invited.
func TestInvitedWasAnother(t *testing.T) {
	id, _ := newIdentity(t)
	p, code := invited(t, id)
	users := store.Of[resource.User](id.store)
	bob, err := users.Get(t.Context(), p.User)
	if err != nil {
		t.Fatal(err)
	}
	if err := users.Delete(t.Context(), bob); err != nil {
		t.Fatal(err)
	}
	if err := users.Create(t.Context(), &resource.User{Meta: resource.Meta{Name: p.User}}); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Accept(t.Context(), p, "acme", "", code); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

// TestAcceptOnce accepts and withdraws at once: whoever took the offer away last,
// nothing of it is left, and the role is there if and only if it was accepted.
func TestAcceptOnce(t *testing.T) {
	id, _ := newIdentity(t)
	p, code := invited(t, id)
	var wg sync.WaitGroup
	var accepted, withdrawn atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			if i == 0 {
				if found, err := id.Withdraw(t.Context(), "acme/-/bob@beta.example"); err != nil {
					t.Error(err)
				} else if found {
					withdrawn.Add(1)
				}
				return
			}
			if _, err := id.Accept(t.Context(), p, "acme", "", code); err == nil {
				accepted.Add(1)
			} else if !errors.Is(err, access.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if accepted.Load()+withdrawn.Load() != 1 {
		t.Errorf("accepted %d times, withdrawn %d times", accepted.Load(), withdrawn.Load())
	}
	_, err := store.Of[resource.Membership](id.store).Get(t.Context(), "acme/-/bob@beta.example")
	if there := err == nil; there != (accepted.Load() == 1) {
		t.Errorf("accepted %d times, and the role: %v", accepted.Load(), err)
	}
}

// TestMakerGone: an offer is worth as much as who made it.
func TestMakerGone(t *testing.T) {
	id, _ := newIdentity(t)
	p, code := invited(t, id)
	if _, err := store.Of[resource.User](id.store).Modify(t.Context(), "ann@acme.example", func(u *resource.User) error { u.Spec.Disabled = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Accept(t.Context(), p, "acme", "", code); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

// TestFirstPasswordElsewhere: a password that somebody else chose is good for
// neither the registry nor a workspace, and neither is a session with it.
func TestFirstPasswordElsewhere(t *testing.T) {
	id, _ := newIdentity(t)
	ctx := t.Context()
	if _, err := id.CreateUser(ctx, "new@acme.example", password, resource.User{FirstPassword: true, Spec: resource.UserSpec{Sysadmin: true}}, nil); err != nil {
		t.Fatal(err)
	}
	login, err := id.Login(ctx, "new@acme.example", password, source)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(password string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "/token?service=mp.example:5000&scope=registry:catalog:*", nil)
		r.SetBasicAuth("new@acme.example", password)
		w := httptest.NewRecorder()
		id.ServeRegistryToken(w, r)
		return w
	}
	for _, word := range []string{password, login.Token} {
		if w := ask(word); w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), "new-password-file") {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	p, err := id.Authenticate(ctx, login.Token, "192.0.2.1:1")
	if err != nil || p.Sysadmin || !p.FirstPassword {
		t.Fatalf("%+v, %v", p, err)
	}
	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	if _, err := id.IssueKubeToken(ctx, p, ws); !errors.Is(err, access.ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	}
	if err := id.Admit(ctx, p, access.OpTaskGet, "", ""); !errors.Is(err, access.ErrDenied) {
		t.Errorf("got %v, want ErrDenied", err)
	}
	if err := id.ChangePassword(ctx, p, password, "a battery of my own", source); err != nil {
		t.Fatal(err)
	}
	if w := ask("a battery of my own"); w.Code != http.StatusOK {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestCheckBootstrap(t *testing.T) {
	id, clock := newIdentity(t)
	ctx, file, email := t.Context(), filepath.Join(t.TempDir(), "admin.json"), "admin@mp.example"
	if err := id.Bootstrap(ctx, file, email); err != nil {
		t.Fatal(err)
	}
	if err := id.CheckBootstrap(ctx, file, email); err != nil {
		t.Errorf("at once: %v", err)
	}
	clock.advance(25 * time.Hour)
	if err := id.CheckBootstrap(ctx, file, email); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("after a day: %v", err)
	}
	if err := id.SetPassword(ctx, email, "a battery of my own", false); err != nil {
		t.Fatal(err)
	}
	if err := id.CheckBootstrap(ctx, file, email); err != nil {
		t.Errorf("once it is another: %v", err)
	}
}
