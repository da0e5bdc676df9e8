package client

import (
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/multipaas/multipaas/modules/resource"
)

func TestWriteRows(t *testing.T) {
	rows := [][]string{{"NAME", "MESSAGE", "AGE"}, {"shop", "a message that is far too long for it", "5m"}, {"ünï", "x", "1h"}}
	for _, tt := range []struct {
		width int
		want  string
	}{
		{0, "NAME   MESSAGE                                 AGE\nshop   a message that is far too long for it   5m\nünï    x                                       1h\n"},
		{30, "NAME   MESSAGE             AGE\nshop   a message that is…   5m\nünï    x                    1h\n"},
	} {
		var b strings.Builder
		if err := writeRows(&b, rows, tt.width, style{}); err != nil {
			t.Fatal(err)
		}
		if tt.width > 0 {
			for _, line := range strings.Split(b.String(), "\n") {
				if n := len([]rune(line)); n > tt.width {
					t.Errorf("width %d: a line of %d: %q", tt.width, n, line)
				}
			}
			continue
		}
		if b.String() != tt.want {
			t.Errorf("width %d: got\n%swant\n%s", tt.width, b.String(), tt.want)
		}
	}
}

func TestTexts(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for got, want := range map[string]string{
		age(time.Time{}, now):                        "-",
		age(now.Add(-90*time.Second), now):           "90s",
		age(now.Add(time.Second), now):               "0s",
		age(now.Add(-17*time.Minute), now):           "17m",
		age(now.Add(-30*time.Hour), now):             "30h",
		age(now.Add(-80*time.Hour), now):             "3d",
		stepName("MachinesReady"):                    "machines ready",
		stepName("HTTPRouteReady"):                   "HTTP route ready",
		stepName("workspace.create"):                 "workspace.create",
		shellQuote("/home/me/.kube/config-a-b"):      "/home/me/.kube/config-a-b",
		shellQuote("/home/o'neil/x y"):               `'/home/o'\''neil/x y'`,
		printable("a\x1b[2J\tb\x00"):                 "a[2J b",
		clip("abcdef", 4):                            "abc…",
		count(1, "machine"):                          "1 machine",
		nearest("crate", []string{"create", "list"}): "create",
		nearest("zzz", []string{"create", "list"}):   "",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTaskLines(t *testing.T) {
	task := &resource.Task{Spec: resource.TaskSpec{Operation: "workspace.create"}, Status: resource.TaskStatus{State: resource.TaskRunning, Steps: resource.Conditions{
		{Type: "PlaneReady", Status: resource.True},
		{Type: "Scheduled", Status: resource.False, Final: true, Message: "no node\nhas room for a machine of this size"},
		{Type: "MachinesReady", Status: resource.Unknown},
	}}}
	want := []string{"ok    plane ready", "FAIL  scheduled: no node has r…", "/     machines ready"}
	if got := taskLines(task, 1, 32, style{}); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	want[0] = green + "ok" + plain + "    plane ready"
	if got := taskLines(task, 1, 32, style{on: true}); !strings.HasPrefix(got[0], green+"ok"+plain) || got[0] != green+"ok"+plain+"    plane ready" {
		t.Errorf("got %q, want %q", got[0], want[0])
	}
	if got := taskLines(&resource.Task{Spec: task.Spec}, 0, 0, style{}); !slices.Equal(got, []string{"|     workspace.create"}) {
		t.Errorf("got %q", got)
	}
}

func TestKubeconfig(t *testing.T) {
	data, err := kubeconfig(Target{"acme", "web", "shop", "staging"}, resource.KubeAccess{Server: "https://mp:6443", ServerName: "00002a.k8s.example", CA: "PEM", Context: "acme-web-shop"}, "/usr/bin/multipaas", "/home/me/.mp")
	if err != nil {
		t.Fatal(err)
	}
	conf, err := clientcmd.Load(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := clientcmd.Validate(*conf); err != nil {
		t.Error(err)
	}
	context := conf.Contexts[conf.CurrentContext]
	cluster, user := conf.Clusters[context.Cluster], conf.AuthInfos[context.AuthInfo]
	if context.Namespace != "staging" || cluster.TLSServerName != "00002a.k8s.example" || string(cluster.CertificateAuthorityData) != "PEM" || cluster.InsecureSkipTLSVerify {
		t.Errorf("got %+v, %+v", context, cluster)
	}
	want := "mp kube-credential --account acme --organization web --workspace shop"
	if got := strings.Join(user.Exec.Args, " "); got != want || user.Exec.Command != "/usr/bin/multipaas" || user.Exec.Env[0].Value != "/home/me/.mp" {
		t.Errorf("got %+v, want %q", user.Exec, want)
	}
	if user.Token != "" || user.Password != "" || user.ClientKeyData != nil {
		t.Error("there is a secret in it")
	}
}

func TestPlaceAfterLogin(t *testing.T) {
	member := func(account, org string, role resource.Role) resource.Membership {
		return resource.Membership{Account: account, Organization: org, Role: role}
	}
	one := resource.Whoami{Memberships: []resource.Membership{member("acme", "web", resource.RoleDeveloper)}}
	two := resource.Whoami{Memberships: []resource.Membership{member("acme", "web", resource.RoleAdmin), member("acme", "ops", resource.RoleAdmin), member("zoo", "", resource.RoleOwner)}}
	for _, tt := range []struct {
		before Target
		who    resource.Whoami
		want   Target
	}{
		{Target{}, one, Target{Account: "acme", Organization: "web"}},
		{Target{}, two, Target{}},
		{Target{"acme", "web", "shop", "x"}, one, Target{"acme", "web", "shop", "x"}},
		{Target{"acme", "ops", "shop", ""}, one, Target{Account: "acme", Organization: "web"}},
		{Target{"zoo", "any", "w", ""}, two, Target{"zoo", "any", "w", ""}},
		{Target{"gone", "any", "w", ""}, two, Target{}},
		{Target{"gone", "any", "w", ""}, resource.Whoami{Sysadmin: true}, Target{"gone", "any", "w", ""}},
		{Target{}, resource.Whoami{Memberships: []resource.Membership{member("zoo", "", resource.RoleOwner)}}, Target{Account: "zoo"}},
	} {
		if got := placeAfterLogin(tt.before, tt.who); got != tt.want {
			t.Errorf("%v for %v: got %+v, want %+v", tt.before, tt.who.Memberships, got, tt.want)
		}
	}
}

func TestSplitImage(t *testing.T) {
	at := Target{Account: "acme", Organization: "web"}
	for in, want := range map[string][2]string{
		"hello":              {"hello", ""},
		"hello:1":            {"hello", "1"},
		"acme/web/hello:1":   {"hello", "1"},
		"tools/hello:1":      {"tools/hello", "1"},
		"hello@sha256:abc":   {"hello", "sha256:abc"},
		"acme/web/a/b@sha:1": {"a/b", "sha:1"},
	} {
		if name, ref := splitImage(in, at); name != want[0] || ref != want[1] {
			t.Errorf("%s: got %q, %q, want %q", in, name, ref, want)
		}
	}
}
