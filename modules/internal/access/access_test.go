package access

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

const me = "me@acme.example"

// principals are one of each role in acme/web.
func principals() []*Principal {
	with := func(account, organization string, role resource.Role) *Principal {
		return &Principal{User: me, Memberships: []resource.Membership{
			{Meta: resource.Meta{Name: me}, Account: account, Organization: organization, Role: role}}}
	}
	return []*Principal{nil, {User: me, FirstPassword: true, Sysadmin: true}, {User: me}, with("acme", "web", resource.RoleDeveloper), with("acme", "web", resource.RoleAdmin),
		with("acme", "", resource.RoleOwner), {User: me, Sysadmin: true}, {Node: "host1"}}
}

// TestTable compares every decision, operation by operation and role by role,
// with testdata/table.txt: y is yes, 401, 403 and 404 are no. The file is
// no golden file to be written anew: whoever changes who may do what says so twice.
func TestTable(t *testing.T) {
	var got strings.Builder
	fmt.Fprintf(&got, "%-21s%-13s%-8s anon  new user  dev admin owner sysad node\n", "operation", "scope", "form")
	for _, rule := range Table() {
		fmt.Fprintf(&got, "%-21s%-13s%-8s", rule.Operation, rule.Scope, rule.Form)
		for _, p := range principals() {
			err := Authorize(p, rule.Operation, "acme", "web")
			mark := "y"
			switch {
			case errors.Is(err, ErrUnauthenticated):
				mark = "401"
			case errors.Is(err, ErrDenied):
				mark = "403"
			case errors.Is(err, ErrNotFound):
				mark = "404"
			case err != nil:
				t.Errorf("%s: %v", rule.Operation, err)
			}
			fmt.Fprintf(&got, " %4s", mark)
		}
		got.WriteByte('\n')
	}
	want, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		gotLines, wantLines := strings.Split(got.String(), "\n"), strings.Split(string(want), "\n")
		for i := range max(len(gotLines), len(wantLines)) {
			g, w := "", ""
			if i < len(gotLines) {
				g = gotLines[i]
			}
			if i < len(wantLines) {
				w = wantLines[i]
			}
			if g != w {
				t.Errorf("line %d\n got %s\nwant %s", i+1, g, w)
			}
		}
	}
}

func TestTableRows(t *testing.T) {
	seen := map[Operation]bool{}
	for _, r := range Table() {
		if seen[r.Operation] {
			t.Errorf("%s is there twice", r.Operation)
		}
		seen[r.Operation] = true
		if r.Form == HTTP && r.Allow&Sysadmin == 0 {
			t.Errorf("%s: a sysadmin may do everything", r.Operation)
		}
		if r.Scope != Platform && r.Allow&(Anonymous|User|Node) != 0 {
			t.Errorf("%s: only who has a role there may do something there", r.Operation)
		}
	}
	if err := Authorize(&Principal{Sysadmin: true, User: me}, "nothing.such", "", ""); err == nil {
		t.Error("an unknown operation is allowed")
	}
}

// TestElsewhere: whatever somebody is in one place, in another he is nobody and
// sees nothing.
func TestElsewhere(t *testing.T) {
	for _, rule := range Table() {
		if rule.Scope == Platform {
			continue
		}
		for _, p := range principals()[2:6] {
			for _, place := range [][2]string{{"rival", "web"}, {"rival", ""}, {"", ""}, {"", "web"}, {"acme2", "web"}, {"acm", "web"}, {"acme/web", "web"}} {
				if err := Authorize(p, rule.Operation, place[0], place[1]); !errors.Is(err, ErrNotFound) {
					t.Errorf("%s in %v as %v: got %v, want ErrNotFound", rule.Operation, place, p.Memberships, err)
				}
			}
			if rule.Scope == InOrganization && p.RoleIn("acme", "web") != Owner {
				if err := Authorize(p, rule.Operation, "acme", "ops"); !errors.Is(err, ErrNotFound) {
					t.Errorf("%s in the other organization as %v: got %v, want ErrNotFound", rule.Operation, p.Memberships, err)
				}
			}
		}
	}
}

// TestOthersMemberships: a role counts for the one it was given to.
func TestOthersMemberships(t *testing.T) {
	p := &Principal{User: me, Memberships: []resource.Membership{{Meta: resource.Meta{Name: "other@acme.example"}, Account: "acme", Role: resource.RoleOwner}}}
	if got := p.RoleIn("acme", "web"); got != User {
		t.Errorf("got %v, want User", got.Names())
	}
	// An account's owner by the role alone: in an organization the word means nothing.
	p = &Principal{User: me, Memberships: []resource.Membership{{Meta: resource.Meta{Name: me}, Account: "acme", Organization: "web", Role: resource.RoleOwner}}}
	if got := p.RoleIn("acme", "web"); got != User {
		t.Errorf("owner of an organization: got %v, want User", got.Names())
	}
	p.Memberships[0] = resource.Membership{Meta: resource.Meta{Name: me}, Account: "acme", Role: resource.RoleAdmin}
	if got := p.RoleIn("acme", "web"); got != User {
		t.Errorf("admin of an account: got %v, want User", got.Names())
	}
}
