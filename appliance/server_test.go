package appliance

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/lifecycle"
)

// TestArgumentIsEdge: what is made from a part waits for it, by way of what is no
// part itself too.
func TestArgumentIsEdge(t *testing.T) {
	g := &lifecycle.Graph{}
	idle := lifecycle.Func(nil)
	first := add(g, "first", &needs{}, idle)
	n := &needs{}
	between := made(n, first.of(n))
	n = &needs{}
	second := add(g, "second", n, between.of(n))
	n = &needs{}
	second.of(n)
	add(g, "third", n, second.of(n))
	if got, want := waits(g), "first: | second: first | third: second"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func waits(g *lifecycle.Graph) string {
	var out []string
	for _, p := range g.Status() {
		out = append(out, p.Name+": "+strings.Join(p.WaitingFor, " "))
	}
	return strings.ReplaceAll(strings.Join(out, " | "), ":  |", ": |")
}

// TestBoot makes the parts of a server and starts none: each waits for what it
// was made from. The registry asks which node runs what, so it waits for the nodes.
func TestBoot(t *testing.T) {
	f := Defaults()
	f.DataDir, f.RunDir, f.KubernetesVersions = t.TempDir(), t.TempDir(), []string{"1.36"}
	s := &server{base: newBase("server", f.Complete(testMachine), "test", slog.New(slog.DiscardHandler))}
	if err := s.boot(); err != nil {
		t.Fatal(err)
	}
	const store = "etcd-client "
	const caches = "nodes workspaces machines "
	want := map[string]string{
		"status": "", "payload": "", "certificate": "", "address": "", "paths": "", "balancer": "",
		"etcd":             "balancer",
		"etcd-client":      "etcd",
		"nodes":            store,
		"accounts":         store,
		"organizations":    store,
		"workspaces":       store,
		"machines":         store,
		"workspacekeys":    store,
		"vnis":             store,
		"apps":             store,
		"volumes":          store,
		"snapshots":        store,
		"trash":            store,
		"storage":          store + "volumes snapshots trash nodes machines workspaces",
		"storage-follower": store + "volumes planes",
		"identity":         store,
		"first-admin":      "identity",
		"tasks":            store,
		"node-monitor":     store + "nodes machines vnis trash",
		"planes":           "accounts " + store + "payload first-admin certificate storage workspaces machines nodes",
		"registry":         "first-admin accounts organizations certificate " + store + caches + "workspacekeys vnis volumes snapshots trash",
		"deployer":         store + "apps workspaces planes registry",
		"plane-router":     "planes",
		"health":           "nodes vnis trash volumes first-admin storage",
		"api":              store + "first-admin planes storage registry tasks " + caches + "workspacekeys vnis volumes snapshots trash certificate",
	}
	for _, p := range s.graph.Status() {
		if got := strings.Join(p.WaitingFor, " "); got != strings.TrimSpace(want[p.Name]) {
			t.Errorf("%s waits for\n %s, want\n %s", p.Name, got, want[p.Name])
		}
		delete(want, p.Name)
	}
	for name := range want {
		t.Errorf("no part %s", name)
	}
}
