package client

import (
	"slices"
	"strings"
	"testing"
)

func TestResolve(t *testing.T) {
	for _, tt := range []struct{ line, path, flags, args string }{
		{"ws create shop", "ws create", "", "shop"},
		{"ws:create shop", "ws create", "", "shop"},
		{"org:users:add web a@x", "org users add", "", "web a@x"},
		{"ws create shop --machines 2 -o json", "ws create", "--machines 2 -o json", "shop"},
		{"-o json ws ls", "ws list", "-o json", ""},
		{"ws -a acme list --no-headers", "ws list", "-a acme --no-headers", ""},
		{"ws create --machines=2 shop", "ws create", "--machines=2", "shop"},
		{"cluster scale --machines -1", "cluster scale", "--machines -1", ""},
		{"tasks", "tasks list", "", ""},
		{"tasks -o name", "tasks list", "-o name", ""},
		{"ws rm shop --yes", "ws delete", "--yes", "shop"},
		{"apps deploy w --image a:1 -- ./work --queue mail", "apps deploy", "--image a:1", "w ./work --queue mail"},
		{"login me@x --password-file -", "login", "--password-file -", "me@x"},
	} {
		r, err := resolve((&program{}).commands(), strings.Fields(tt.line))
		if err != nil {
			t.Errorf("%s: %v", tt.line, err)
			continue
		}
		got := []string{strings.Join(r.path, " "), strings.Join(r.flags, " "), strings.Join(r.args, " ")}
		if want := []string{tt.path, tt.flags, tt.args}; !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", tt.line, got, want)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	for _, tt := range []struct{ line, want, remedy string }{
		{"wss create", `no command "wss"`, `"ws"`},
		{"ws crate shop", `no command "ws crate"`, `"ws create"`},
		{"ws create", "NAME is missing", "mp"},
		{"ws create a b", `"b" is one argument too many`, ""},
		{"ws create a --machnes 2", "no flag --machnes", "--machines"},
		{"ws create a --machines", "--machines needs a value", ""},
		{"--machines 2 ws list", "no flag --machines", ""},
		{"--nonsense ws list", "no flag --nonsense", ""},
	} {
		_, err := resolve((&program{}).commands(), strings.Fields(tt.line))
		f, ok := err.(*failure)
		if !ok || f.code != ExitUsage || !strings.Contains(f.text, tt.want) {
			t.Errorf("%s: got %v, want a usage error with %q", tt.line, err, tt.want)
		} else if tt.remedy != "mp" && !strings.Contains(f.remedy, tt.remedy) {
			t.Errorf("%s: remedy %q, want %q in it", tt.line, f.remedy, tt.remedy)
		}
	}
}

func TestTargetWith(t *testing.T) {
	full := Target{"acme", "web", "shop", "dev"}
	for _, tt := range []struct{ base, over, want Target }{
		{full, Target{}, full},
		{full, Target{Account: "acme"}, full},
		{full, Target{Account: "other"}, Target{Account: "other"}},
		{full, Target{Organization: "ops"}, Target{Account: "acme", Organization: "ops"}},
		{full, Target{Workspace: "b"}, Target{Account: "acme", Organization: "web", Workspace: "b"}},
		{full, Target{Namespace: "prod"}, Target{"acme", "web", "shop", "prod"}},
		{full, Target{Account: "o", Workspace: "b"}, Target{Account: "o", Workspace: "b"}},
		{Target{}, full, full},
	} {
		if got := tt.base.with(tt.over); got != tt.want {
			t.Errorf("%v with %v: got %+v, want %+v", tt.base, tt.over, got, tt.want)
		}
	}
}

func TestServerURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://mp.example:7443":   "https://mp.example:7443",
		"https://mp.example:7443/":  "https://mp.example:7443",
		"https://[::1]:7443":        "https://[::1]:7443",
		"http://mp.example":         "",
		"mp.example:7443":           "",
		"https://u:p@mp.example":    "",
		"https://mp.example/v1":     "",
		"https://mp.example?x=1":    "",
		"https://":                  "",
		"https://mp.example:bad":    "",
		"https://mp.example:7443#f": "",
	} {
		got, err := serverURL(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", in, got, err, want)
		}
	}
}
