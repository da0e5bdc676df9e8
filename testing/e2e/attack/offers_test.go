package attack

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// guild is a domain of e-mail addresses that is reserved for B's account.
const guild = "guild.example"

// guildAddresses are those in it, as they may be written.
var guildAddresses = []string{
	"cto@" + guild, "CTO@GUILD.EXAMPLE", "cto@Guild.Example", "cto@mail." + guild, "cto@a.b.c." + guild, "cto@" + guild + ".", "cto@.." + guild, " cto@" + guild + " ", "\"c t o\"@" + guild, "a@b@" + guild,
	"cto+x@" + guild, "cto@ｇuild.example", "cto@guild。example", "cto@guild.example\x00.beta.example", "cto@guild.example\n", "<cto@" + guild + ">", "CTO <cto@" + guild + ">", "cto@guild\u00adexample", "cto@GUİLD.example",
}

// testOffers goes after people: A makes users who look like B's, answers what was
// offered to others, and works with passwords that others were given first.
func testOffers(t *testing.T, s *suite) {
	a := s.people(t)
	admin := a.admin(t)
	domains := func(list string) {
		if got := a.bearer(t, admin, http.MethodPatch, s.URL()+"/v1/accounts/acme", `{"spec":{"domains":[`+list+`]}}`); got.status != http.StatusOK {
			t.Fatal(got)
		}
	}
	domains(`"` + guild + `"`)
	defer domains("")
	a.planted(t)
	a.offered(t)
	a.chosen(t, admin)
}

// planted makes users in what is reserved for B.
func (a *asker) planted(t *testing.T) {
	user := func(address string) string {
		data, err := json.Marshal(map[string]string{"email": address, "password": "correct horse battery", "account": "beta"})
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	var err error
	if got := a.ask(t, ownerA, http.MethodPost, "/v1/users", user("plain@beta.example")); got.status != http.StatusCreated {
		err = errors.New(got.String())
	}
	if !a.s.control(t, "A makes a user of its own", err) {
		return
	}
	for _, address := range guildAddresses {
		got := a.ask(t, ownerA, http.MethodPost, "/v1/users", user(address))
		a.s.record(t, attempt{What: fmt.Sprintf("make a user %q, whose domain is reserved", address), From: ownerA, Want: "403 or 422", Got: got.String(), Blocked: got.refused(http.StatusForbidden, http.StatusUnprocessableEntity)})
	}
	for _, address := range []string{ownerB, devB} {
		there, free := a.ask(t, ownerA, http.MethodPost, "/v1/users", user(address)), a.ask(t, ownerA, http.MethodPost, "/v1/users", user("cto@"+guild))
		a.s.record(t, attempt{What: "find out by making " + address + " whether he is there", From: ownerA, Want: "403, as for an address that nobody has", Got: there.String() + " | " + free.String(),
			Blocked: there.refused(http.StatusForbidden) && plain(strings.ReplaceAll(there.body, address, "X"), "") == plain(strings.ReplaceAll(free.body, "cto@"+guild, "X"), "")})
	}
}

// offered answers an offer of B's with everything but the right code from the right
// person, and tries the ways around it.
func (a *asker) offered(t *testing.T) {
	const organization, mine = "/v1/accounts/acme/organizations/web", "/v1/session/invitations"
	const seen = "/v1/accounts/acme/organizations/web/workspaces/shop"
	offer := func(who string) string {
		got := a.ask(t, ownerB, http.MethodPut, organization+"/members/"+who, `{"role":"developer"}`)
		var m struct{ Offer struct{ Code string } }
		if err := json.Unmarshal([]byte(got.body), &m); got.status != http.StatusAccepted || err != nil || m.Offer.Code == "" {
			t.Fatalf("B offers a role to %s: %s", who, got)
		}
		return m.Offer.Code
	}
	answer := func(account, organization, code string) string {
		data, err := json.Marshal(map[string]string{"account": account, "organization": organization, "code": code})
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	code := offer(devA)
	old := code
	code = offer(devA) // made anew: the first is worth nothing
	for what, body := range map[string]string{
		"no code": answer("acme", "web", ""), "the code that another took the place of": answer("acme", "web", old), "all but its first letter": answer("acme", "web", code[1:]), "a letter more": answer("acme", "web", code+"A"),
		"another letter": answer("acme", "web", strings.Map(rot, code)), "the whole account": answer("acme", "", code), "another organization": answer("acme", "ops", code), "A's account": answer("beta", "web", code),
		"a path for the account": answer("acme/web", "", code), "a path for the organization": answer("acme", "web/"+devA, code), "the name of memberships": answer("acme", "-", code), "capital letters": answer("ACME", "web", code),
		"a wildcard": answer("acme", "web", "*"), "a pattern": answer("acme", "web", "%"), "a NUL behind": answer("acme", "web", code+"\x00"), "a code as a list": `{"account":"acme","organization":"web","code":["` + code + `"]}`,
		"a code that is true": `{"account":"acme","organization":"web","code":true}`, "a role beside": `{"account":"acme","organization":"web","code":"` + code + `","role":"owner"}`, "a user beside": `{"account":"acme","organization":"web","code":"` + old + `","user":"` + devB + `"}`,
	} {
		got := a.ask(t, devA, http.MethodPost, mine+"/accept", body)
		in := a.ask(t, devA, http.MethodGet, seen, "")
		a.s.record(t, attempt{What: "accept a role with B with " + what, From: devA, Want: "404 or 422, and no role", Got: got.String() + " | then " + in.String(), Blocked: got.refused(http.StatusNotFound, http.StatusUnprocessableEntity) && in.refused(http.StatusNotFound)})
	}
	for _, who := range []string{ownerA, ""} {
		for _, verb := range []string{"accept", "decline"} {
			got := a.ask(t, who, http.MethodPost, mine+"/"+verb, answer("acme", "web", code))
			a.s.record(t, attempt{What: verb + " with the code what was offered to another", From: orNobody(who), Want: "401 or 404", Got: got.String(), Blocked: got.refused(http.StatusUnauthorized, http.StatusNotFound)})
		}
	}
	for _, who := range []string{devA, ownerA, devB} {
		for _, path := range []string{mine, "/v1/accounts/acme/invitations", organization + "/members"} {
			got := a.ask(t, who, http.MethodGet, path, "")
			a.s.record(t, attempt{What: "find a code in " + path, From: who, Want: "no code in it", Got: got.String(), Blocked: got.status != 0 && !strings.Contains(strings.ToUpper(got.body), strings.ToUpper(code)) && !strings.Contains(got.body, "codeHash")})
		}
	}
	// The right one: then it is his, once.
	var err error
	if got := a.ask(t, devA, http.MethodPost, mine+"/accept", answer("acme", "web", code)); got.status != http.StatusOK {
		err = errors.New(got.String())
	} else if got := a.ask(t, devA, http.MethodGet, seen, ""); got.status != http.StatusOK {
		err = errors.New(got.String())
	}
	a.s.control(t, "who was offered a role has it, with the code", err)
	if got := a.ask(t, ownerB, http.MethodDelete, organization+"/members/"+devA, ""); got.status != http.StatusNoContent {
		t.Fatal(got)
	}
	after := func(what, code string) {
		got := a.ask(t, devA, http.MethodPost, mine+"/accept", answer("acme", "web", code))
		in := a.ask(t, devA, http.MethodGet, seen, "")
		a.s.record(t, attempt{What: "accept " + what, From: devA, Want: "404, and no role", Got: got.String() + " | then " + in.String(), Blocked: got.refused(http.StatusNotFound) && in.refused(http.StatusNotFound)})
	}
	after("what was accepted before", code)
	code = offer(devA)
	if got := a.ask(t, ownerB, http.MethodDelete, organization+"/members/"+devA, ""); got.status != http.StatusNoContent {
		t.Fatal(got)
	}
	after("what was withdrawn", code)
	// A may not take what it gives: an offer of A's makes nobody of B's a member.
	for _, who := range []string{ownerB, devB} {
		got := a.ask(t, ownerA, http.MethodPut, "/v1/accounts/beta/organizations/ops/members/"+who, `{"role":"admin"}`)
		free := a.ask(t, ownerA, http.MethodPut, "/v1/accounts/beta/organizations/ops/members/nobody@guild.example", `{"role":"admin"}`)
		in := a.ask(t, who, http.MethodGet, "/v1/session", "")
		a.s.record(t, attempt{What: "give a role to " + who + ", who did not ask for it", From: ownerA, Want: "an offer, as to an address that nobody has", Got: got.String() + " | " + free.String() + " | " + in.String(),
			Blocked: got.status == http.StatusAccepted && free.status == got.status && !strings.Contains(in.body, "beta")})
		for _, invited := range []string{who, "nobody@guild.example"} {
			a.ask(t, ownerA, http.MethodDelete, "/v1/accounts/beta/organizations/ops/members/"+invited, "")
		}
	}
}

// chosen does everything in the session of a user whose password somebody else
// knows, and who would else be an owner of B's account.
func (a *asker) chosen(t *testing.T, admin string) {
	const fresh, word = "fresh@acme.example", "correct horse battery"
	if got := a.bearer(t, admin, http.MethodPost, a.s.URL()+"/v1/users", `{"email":"`+fresh+`","password":"`+word+`","account":"acme"}`); got.status != http.StatusCreated {
		t.Fatal(got)
	}
	defer a.bearer(t, admin, http.MethodDelete, a.s.URL()+"/v1/users/"+fresh, "")
	if got := a.bearer(t, admin, http.MethodPut, a.s.URL()+"/v1/accounts/acme/owners/"+fresh, ""); got.status != http.StatusCreated {
		t.Fatal(got)
	}
	token := a.login(t, fresh, word)
	names := map[string]string{"account": "acme", "organization": "web", "workspace": "shop", "app": "hello", "image": "tool", "tag": "1", "reference": "1", "task": "acme-1",
		"user": devB, "node": a.s.Nodes[0].Name(), "token": "x", "namespace": "default", "machine": "shop-1"}
	before := a.view(t)
	for _, op := range a.operations(t) {
		if slices.Contains(op.roles, "newcomer") || slices.Contains(op.roles, "anonymous") {
			continue
		}
		payload := ""
		if op.method != http.MethodGet && op.method != http.MethodDelete {
			payload = body
		}
		got := a.bearer(t, token, op.method, a.s.URL()+fill(op.path, names), payload)
		a.s.record(t, attempt{What: op.id + " " + op.method + " " + fill(op.path, names), From: "an owner of B's whose password another chose", Want: "403", Got: got.String(), Blocked: got.refused(http.StatusForbidden)})
	}
	after := a.view(t)
	a.s.record(t, attempt{What: "change anything of B's by all of that", From: "the same", Want: "all is as before", Got: fmt.Sprintf("%d and %d octets", len(before), len(after)), Blocked: before == after})
	r := a.s.Skopeo(t, "auth-fresh", "login", "--username", fresh, "--password", word, a.s.RegistryAddress())
	a.s.record(t, attempt{What: "log in to the registry", From: "the same", Want: "refused", Got: r.String(), Blocked: r.Code != 0})
	p := a.s.plane(t, a, ownerB, "acme/web/shop")
	got := a.plane(t, p, token, http.MethodGet, "/api/v1/namespaces", "")
	a.s.record(t, attempt{What: "B's cluster with the session's token", From: "the same", Want: "401", Got: got.String(), Blocked: got.refused(http.StatusUnauthorized)})
	var err error
	a.settle(t, fresh, word, "a battery of my own")
	if got := a.bearer(t, a.login(t, fresh, "a battery of my own"), http.MethodGet, a.s.URL()+"/v1/accounts/acme", ""); got.status != http.StatusOK {
		err = errors.New(got.String())
	}
	a.s.control(t, "with a password of his own he is the owner", err)
	for what, token := range map[string]string{"the session from before": token} {
		got := a.bearer(t, token, http.MethodGet, a.s.URL()+"/v1/accounts/acme", "")
		a.s.record(t, attempt{What: "B's account in " + what + " he set a password", From: "who knew the first one", Want: "401 or 403", Got: got.String(), Blocked: got.refused(http.StatusUnauthorized, http.StatusForbidden)})
	}
	got = a.ask(t, "", http.MethodPost, "/v1/login", `{"email":"`+fresh+`","password":"`+word+`"}`)
	a.s.record(t, attempt{What: "log in with the first password", From: "who knew it", Want: "401", Got: got.String(), Blocked: got.refused(http.StatusUnauthorized)})
}

func orNobody(who string) string {
	if who == "" {
		return "nobody"
	}
	return who
}

// rot is another letter of the codes' alphabet.
func rot(r rune) rune {
	if r == 'A' {
		return 'B'
	}
	return 'A'
}
