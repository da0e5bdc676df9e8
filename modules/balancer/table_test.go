package balancer

import (
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

func TestCanonicalHost(t *testing.T) {
	for in, want := range map[string]string{
		"hello.shop.web.acme.example":      "hello.shop.web.acme.example",
		"Hello.Shop.example:443":           "hello.shop.example",
		"hello.example.":                   "hello.example",
		"hello.example.:8443":              "hello.example",
		"127.0.0.1:80":                     "127.0.0.1",
		"":                                 "",
		".":                                "",
		":443":                             "",
		"a..b":                             "",
		"-a.b":                             "",
		"a_b.c":                            "",
		"a b":                              "",
		"a/b":                              "",
		"a@b":                              "",
		"[::1]:443":                        "",
		"hello.example:443:1":              "",
		"h\x00.example":                    "",
		"hällo.example":                    "",
		strings.Repeat("a", 64) + ".b":     "",
		strings.Repeat("a.", 127) + "bcde": "",
	} {
		got, ok := canonicalHost(in)
		if got != want || ok != (want != "") {
			t.Errorf("canonicalHost(%q): got %q %v, want %q", in, got, ok, want)
		}
	}
}

func FuzzCanonicalHost(f *testing.F) {
	for _, s := range []string{"a.example", "A.example.:443", "[::1]:1", "a..b", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, ok := canonicalHost(s)
		if !ok {
			return
		}
		if again, ok := canonicalHost(host); !ok || again != host {
			t.Errorf("canonicalHost(%q): got %q, and of that %q %v", s, host, again, ok)
		}
		if strings.ToLower(host) != host || strings.ContainsAny(host, "/:@\\ \x00") {
			t.Errorf("canonicalHost(%q): got %q", s, host)
		}
	})
}

func TestCheckRoute(t *testing.T) {
	for _, c := range []struct {
		host, workspace string
		ok              bool
	}{
		{"hello.shop.web.acme.apps.example", "acme/web/shop", true},
		{"a.b.shop.web.acme.apps.example", "acme/web/shop", true},
		{"hello.shop.web.acme.apps.example", "umbrella/web/shop", false},
		{"hello.shop.web.acme.apps.example", "acme/web/shop2", false},
		{"shop.web.acme.apps.example", "acme/web/shop", false},
		{"helloshop.web.acme.apps.example", "acme/web/shop", false},
		{"hello.shop.web.acme.apps.example", "acme/web", false},
		{"hello.shop.web.acme.apps.example", "", false},
		{"hello.shop.web.acme.other.example", "acme/web/shop", false},
		{"Hello.shop.web.acme.apps.example", "acme/web/shop", false},
		{"www.bank.example", "acme/web/shop", false},
	} {
		r := &resource.Route{Meta: resource.Meta{Name: c.host}, Workspace: c.workspace, Namespace: "default", Service: "x", Port: 80}
		if why := checkRoute(r, "apps.example"); (why == "") != c.ok {
			t.Errorf("%s of %s: got %q, want ok %v", c.host, c.workspace, why, c.ok)
		}
	}
	for _, port := range []int{0, -1, 65536} {
		r := &resource.Route{Meta: resource.Meta{Name: "a.shop.web.acme.apps.example"}, Workspace: "acme/web/shop", Namespace: "default", Service: "x", Port: port}
		if checkRoute(r, "apps.example") == "" {
			t.Errorf("port %d is taken", port)
		}
	}
}

func TestWorkspaceOf(t *testing.T) {
	for host, want := range map[string]string{
		"hello.shop.web.acme.apps.example": "acme/web/shop",
		"a.b.shop.web.acme.apps.example":   "acme/web/shop",
		"shop.web.acme.apps.example":       "shop.web.acme.apps.example",
		"www.bank.example":                 "www.bank.example",
		"":                                 "",
	} {
		if got := workspaceOf(host, "apps.example"); got != want {
			t.Errorf("%q: got %q, want %q", host, got, want)
		}
	}
}
