package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/api"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

const (
	accept  = "/v1/session/invitations/accept"
	decline = "/v1/session/invitations/decline"
	planted = "cto@acme.example"
)

func answerTo(account, organization, code string) string {
	return fmt.Sprintf(`{"account":%q,"organization":%q,"code":%q}`, account, organization, code)
}

// offer gives a role that has to be accepted, and returns the code.
func (s *site) offer(by, path, body string) string {
	s.t.Helper()
	m := into[resource.Membership](s.t, s.want(http.StatusAccepted, by, "PUT", path, body))
	if m.Offer == nil || m.Offer.Code == "" || m.Offer.ExpiresAt.IsZero() {
		s.t.Fatalf("no offer: %+v", m)
	}
	return m.Offer.Code
}

// TestPlantedUser makes a user with an address of another account's people, who is
// then given a role there: he has none until he shows a code that only the right
// person was handed.
func TestPlantedUser(t *testing.T) {
	s := newSite(t)
	s.people()
	s.want(http.StatusCreated, rival, "POST", "/v1/users", `{"email":"`+planted+`","password":"`+password+`"}`)
	s.settle(planted)

	// Nobody hears from acme's side that he is there: what is refused, and what is
	// offered, is so for any address.
	for _, email := range []string{planted, nobody, rival, strings.ToUpper(planted)} {
		p := s.want(http.StatusForbidden, owner, "POST", "/v1/users", `{"email":"`+email+`","password":"`+password+`"}`).problem(t)
		if strings.Contains(p.Detail, "already") {
			t.Errorf("%s: %s", email, p.Detail)
		}
	}
	code := s.offer(admin, inWeb+"/members/"+planted, `{"role":"admin"}`)
	s.offer(admin, inWeb+"/members/not-there@acme.example", `{"role":"admin"}`)
	if got := s.want(http.StatusUnprocessableEntity, admin, "PUT", inWeb+"/members/nobody", `{"role":"admin"}`).body; !strings.Contains(got, "e-mail") {
		t.Error(got)
	}
	s.want(http.StatusNotFound, planted, "GET", inShop, "")

	// What he can see is that he is invited, and by whom.
	got := s.want(http.StatusOK, planted, "GET", "/v1/session/invitations", "").body
	if !strings.Contains(got, `"by":"`+admin+`"`) || strings.Contains(got, code) || strings.Contains(got, "codeHash") {
		t.Error(got)
	}
	for _, body := range []string{answerTo("acme", "web", ""), answerTo("acme", "web", code[1:]), answerTo("acme", "web", code+"A"), answerTo("acme", "", code),
		answerTo("acme", "spare", code), answerTo("rival", "web", code), answerTo("acme", "web/"+planted, code), answerTo("acme/web", "", code), answerTo("acme", "-", code)} {
		s.want(http.StatusNotFound, planted, "POST", accept, body)
	}
	for _, other := range []string{nobody, rival, dev, root} {
		s.want(http.StatusNotFound, other, "POST", accept, answerTo("acme", "web", code)) // it is not theirs
		s.want(http.StatusNotFound, other, "POST", decline, answerTo("acme", "web", ""))
	}
	s.want(http.StatusNotFound, planted, "GET", inShop, "")
	if list := s.want(http.StatusOK, admin, "GET", inWeb+"/members", "").body; strings.Contains(list, planted) {
		t.Errorf("he is a member: %s", list)
	}
	if list := s.want(http.StatusOK, admin, "GET", inAcme+"/invitations", "").body; !strings.Contains(list, planted) || strings.Contains(list, "codeHash") {
		t.Errorf("not shown as waiting: %s", list)
	}

	// With the code he is what was offered, once, and it is said where he comes from.
	s.want(http.StatusOK, planted, "POST", accept, answerTo("acme", "web", strings.ToLower(code)))
	s.want(http.StatusOK, planted, "GET", inShop, "")
	if list := s.want(http.StatusOK, dev, "GET", inWeb+"/members", "").body; !strings.Contains(list, `"userAccount":"rival","userBy":"`+rival+`"`) {
		t.Error(list)
	}
	s.want(http.StatusNotFound, planted, "POST", accept, answerTo("acme", "web", code))
	s.want(http.StatusNoContent, admin, "DELETE", inWeb+"/members/"+planted, "")
	s.want(http.StatusNotFound, planted, "POST", accept, answerTo("acme", "web", code))
	s.want(http.StatusNotFound, planted, "GET", inShop, "")
}

// TestInvitations ends offers in every way that there is: none of them can be
// accepted any more.
func TestInvitations(t *testing.T) {
	s := newSite(t)
	s.people()
	const member = inWeb + "/members/" + nobody
	const role = `{"role":"developer"}`
	refused := func(code string) {
		t.Helper()
		s.want(http.StatusNotFound, nobody, "POST", accept, answerTo("acme", "web", code))
		s.want(http.StatusNotFound, nobody, "GET", inShop, "")
		if got := s.want(http.StatusOK, nobody, "GET", "/v1/session/invitations", "").body; strings.Contains(got, `"web"`) {
			t.Errorf("still shown: %s", got)
		}
	}
	code := s.offer(admin, member, role)
	s.want(http.StatusNoContent, admin, "DELETE", member, "")
	refused(code)
	s.want(http.StatusNotFound, admin, "DELETE", member, "")

	code = s.offer(admin, member, role)
	s.want(http.StatusNoContent, nobody, "POST", decline, answerTo("acme", "web", ""))
	refused(code)

	first := s.offer(admin, member, `{"role":"admin"}`)
	code = s.offer(admin, member, role)
	s.want(http.StatusNotFound, nobody, "POST", accept, answerTo("acme", "web", first))
	s.want(http.StatusOK, nobody, "POST", accept, answerTo("acme", "web", code))
	s.want(http.StatusForbidden, nobody, "DELETE", inShop, "")

	// Given outright meanwhile, and taken: the offer went with it.
	s.things()
	s.want(http.StatusNoContent, admin, "DELETE", member, "")
	code = s.offer(admin, member, role)
	s.want(http.StatusCreated, root, "PUT", member, role)
	s.want(http.StatusNoContent, root, "DELETE", member, "")
	refused(code)

	// Its maker may not give it any more.
	code = s.offer(admin, member, role)
	s.want(http.StatusNoContent, owner, "DELETE", inWeb+"/members/"+admin, "")
	s.want(http.StatusNotFound, nobody, "POST", accept, answerTo("acme", "web", code))
	s.things()
	s.want(http.StatusNoContent, admin, "DELETE", member, "")

	// The place has gone.
	s.want(http.StatusCreated, owner, "PUT", inAcme+"/organizations/fresh", "{}")
	code = s.offer(owner, inAcme+"/organizations/fresh/members/"+nobody, role)
	s.want(http.StatusNoContent, owner, "DELETE", inAcme+"/organizations/fresh", "")
	s.want(http.StatusCreated, owner, "PUT", inAcme+"/organizations/fresh", "{}")
	s.want(http.StatusNotFound, nobody, "POST", accept, answerTo("acme", "fresh", code))
	s.want(http.StatusNoContent, owner, "DELETE", inAcme+"/organizations/fresh", "")

	// Nobody is made an owner of what he does not want.
	code = s.offer(owner, inAcme+"/owners/"+rival, "")
	s.want(http.StatusCreated, rival, "POST", "/v1/users", `{"email":"robot@rival.example","password":"`+password+`"}`)
	s.want(http.StatusNotFound, rival, "GET", inAcme, "")
	if got := s.want(http.StatusOK, admin, "GET", inAcme+"/invitations", "").body; strings.Contains(got, rival) {
		t.Errorf("an admin sees whom an owner asked: %s", got)
	}
	s.want(http.StatusOK, rival, "POST", accept, answerTo("acme", "", code))
	s.want(http.StatusOK, rival, "GET", inAcme, "")

	// A user who goes leaves no offer for who comes after him.
	s.want(http.StatusCreated, rival, "POST", "/v1/users", `{"email":"`+planted+`","password":"`+password+`","account":"rival"}`)
	code = s.offer(admin, inWeb+"/members/"+planted, role)
	s.want(http.StatusNoContent, root, "DELETE", "/v1/users/"+planted, "")
	s.want(http.StatusCreated, rival, "POST", "/v1/users", `{"email":"`+planted+`","password":"`+password+`","account":"rival"}`)
	s.settle(planted)
	s.want(http.StatusNotFound, planted, "POST", accept, answerTo("acme", "web", code))
}

// TestInvitationsAreBounded: an account can have so many waiting, and a user is
// shown so many; nobody's list keeps others from inviting him.
func TestInvitationsAreBounded(t *testing.T) {
	s := newSite(t)
	s.people()
	var made int
	for i := range 110 {
		got := s.do(owner, "PUT", fmt.Sprintf("%s/members/u%d@x.example", inWeb, i), `{"role":"developer"}`)
		if got.status == http.StatusAccepted {
			made++
		} else if got.status != http.StatusConflict || !strings.Contains(got.body, "Withdraw") {
			t.Fatalf("%d: %d %s", i, got.status, got.body)
		}
	}
	if made != 99 { // one was there
		t.Errorf("%d were made", made)
	}
	s.want(http.StatusAccepted, owner, "PUT", inWeb+"/members/u5@x.example", `{"role":"developer"}`) // in place of one
	s.want(http.StatusNoContent, owner, "DELETE", inWeb+"/members/u5@x.example", "")
	if _, err := store.Of[resource.Invitee](s.store).Get(t.Context(), "u5@x.example"); err == nil {
		t.Error("the list of somebody who is not invited is kept")
	}
	for i := range 30 {
		name := fmt.Sprintf("org%d", i)
		s.want(http.StatusCreated, rival, "PUT", "/v1/accounts/rival/organizations/"+name, "{}")
		code := s.offer(rival, "/v1/accounts/rival/organizations/"+name+"/members/"+nobody, `{"role":"developer"}`)
		if i == 0 {
			defer s.want(http.StatusOK, nobody, "POST", accept, answerTo("rival", name, code)) // not shown any more, and good
		}
	}
	if list := into[resource.List[resource.Invitation]](t, s.want(http.StatusOK, nobody, "GET", "/v1/session/invitations", "")); len(list.Items) != 20 || list.Items[19].Organization != "org29" {
		t.Errorf("%d are shown", len(list.Items))
	}
}

// TestReservedDomains: who has a domain has its addresses, and nobody else.
func TestReservedDomains(t *testing.T) {
	s := newSite(t, func(c *api.Config) { c.Limits.Users = 50 })
	s.people()
	user := func(email, account string) string {
		return fmt.Sprintf(`{"email":%q,"password":%q,"account":%q}`, email, password, account)
	}
	s.want(http.StatusForbidden, owner, "PATCH", inAcme, `{"spec":{"domains":["acme.example"]}}`)
	for _, wrong := range []string{"", "example", "acme..example", "-.example", "a@acme.example", "*.example", "acme.example.", "a b.example"} {
		s.want(http.StatusUnprocessableEntity, root, "PATCH", inAcme, fmt.Sprintf(`{"spec":{"domains":[%q]}}`, wrong))
	}
	if a := into[resource.Account](t, s.want(http.StatusOK, root, "PATCH", inAcme, `{"spec":{"domains":["Acme.Example","acme.org"]}}`)); strings.Join(a.Spec.Domains, " ") != "acme.example acme.org" {
		t.Errorf("%+v", a.Spec)
	}
	for _, taken := range []string{"acme.example", "mail.acme.example", "ACME.org"} {
		s.want(http.StatusConflict, root, "PATCH", "/v1/accounts/rival", fmt.Sprintf(`{"spec":{"domains":[%q]}}`, taken))
	}
	s.want(http.StatusOK, root, "PATCH", "/v1/accounts/rival", `{"spec":{"domains":["notacme.example"]}}`)
	for _, email := range []string{"x@acme.example", "X@ACME.EXAMPLE", " x@acme.example ", "x@mail.acme.example", "x@a.b.acme.org"} {
		s.want(http.StatusForbidden, rival, "POST", "/v1/users", user(email, "rival"))
		s.want(http.StatusForbidden, "", "POST", "/v1/register", fmt.Sprintf(`{"account":"third","email":%q,"password":%q}`, strings.TrimSpace(email), password))
	}
	s.want(http.StatusForbidden, root, "POST", "/v1/users", user("x@acme.example", "rival"))
	for _, email := range []string{"x@xacme.example", "x@acme.example.rival.example", "x@notacme.example"} {
		s.want(http.StatusCreated, rival, "POST", "/v1/users", user(email, "rival"))
	}
	s.want(http.StatusCreated, owner, "POST", "/v1/users", user("x@mail.acme.example", "acme"))
	s.want(http.StatusCreated, root, "POST", "/v1/users", user("y@acme.example", ""))
	if p := s.want(http.StatusNotFound, admin, "PUT", inWeb+"/members/nobody@acme.example", `{"role":"developer"}`).problem(t); !strings.Contains(p.Remedy, "users create") {
		t.Errorf("%+v", p) // of his own addresses he is told
	}
	s.want(http.StatusOK, root, "PATCH", inAcme, `{"spec":{"domains":[]}}`)
	s.want(http.StatusCreated, rival, "POST", "/v1/users", user("z@acme.example", "rival"))
}

// TestFirstPassword does every operation in the session of a user whose password
// somebody else chose, who would else be a sysadmin and an owner.
func TestFirstPassword(t *testing.T) {
	s := newSite(t)
	s.people()
	s.want(http.StatusCreated, root, "POST", "/v1/users", `{"email":"new@acme.example","password":"`+password+`","sysadmin":true}`)
	s.want(http.StatusCreated, root, "PUT", inAcme+"/owners/new@acme.example", "")
	login := into[resource.LoginResult](t, s.want(http.StatusOK, "", "POST", "/v1/login", `{"email":"new@acme.example","password":"`+password+`"}`))
	if !login.FirstPassword {
		t.Fatalf("%+v", login)
	}
	s.tokens["new@acme.example"] = login.Token
	for _, c := range samples() {
		rule, _ := access.Lookup(c.op)
		if c.op == "logout" || c.op == "password.change" {
			continue
		}
		if rule.Allow&access.Newcomer != 0 {
			s.want(c.status, "new@acme.example", c.method, c.path, c.body)
			continue
		}
		if p := s.want(http.StatusForbidden, "new@acme.example", c.method, c.path, c.body).problem(t); !strings.Contains(p.Remedy, "new-password-file") {
			t.Errorf("%s: %+v", c.op, p)
		}
	}
	s.want(http.StatusForbidden, "new@acme.example", "GET", "/metrics", "")
	change := func(status int, old, now string) {
		t.Helper()
		s.want(status, "new@acme.example", "PUT", "/v1/session/password", fmt.Sprintf(`{"oldPassword":%q,"newPassword":%q}`, old, now))
	}
	change(http.StatusForbidden, "wrong password", "a battery of my own")
	change(http.StatusUnprocessableEntity, password, password) // somebody else knows that one
	change(http.StatusNoContent, password, "a battery of my own")
	s.want(http.StatusOK, "new@acme.example", "GET", "/v1/nodes", "")

	// Set by another again, it is a first one again.
	s.want(http.StatusNoContent, root, "PUT", "/v1/users/new@acme.example/password", `{"password":"`+password+`"}`)
	s.want(http.StatusUnauthorized, "new@acme.example", "GET", "/v1/nodes", "")
	s.login("new@acme.example")
	s.want(http.StatusForbidden, "new@acme.example", "GET", "/v1/nodes", "")
	change(http.StatusNoContent, password, "a battery of my own")

	// Who sets his own is no other.
	s.want(http.StatusNoContent, root, "PUT", "/v1/users/"+root+"/password", `{"password":"`+password+`"}`)
	s.login(root)
	s.want(http.StatusOK, root, "GET", "/v1/nodes", "")

	// A sysadmin who registers an owner has chosen his password too; who registers
	// himself has not.
	s.want(http.StatusCreated, root, "POST", "/v1/register", `{"account":"third","email":"owner@third.example","password":"`+password+`"}`)
	s.login("owner@third.example")
	s.want(http.StatusForbidden, "owner@third.example", "GET", "/v1/accounts/third", "")
	s.want(http.StatusForbidden, "", "POST", "/v1/register", `{"account":"fourth","email":"owner@third.example","password":"`+password+`"}`)
	s.want(http.StatusCreated, "", "POST", "/v1/register", `{"account":"fifth","email":"owner@fifth.example","password":"`+password+`"}`)
	s.login("owner@fifth.example")
	s.want(http.StatusOK, "owner@fifth.example", "GET", "/v1/accounts/fifth", "")
}
