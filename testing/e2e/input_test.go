package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Exit codes of the client, as its help documents them.
const (
	exitFailed = 1 + iota
	exitUsage
	exitNotFound
	exitConflict
	exitTimeout
	exitDenied
)

// testInput makes every mistake that people make, at the real command line:
// each is told in a sentence, by an exit code, and changes nothing.
func testInput(t *testing.T, d *suite) {
	before := d.everything(t)
	var all sync.WaitGroup
	places := make(chan struct{}, 4)
	long := strings.Repeat("a", 64)
	for _, row := range []struct {
		who  string
		args string
		code int
		says string
	}{
		{owner, "ws create Shop2", exitUsage, "name"},
		{owner, "ws create -bad", exitUsage, ""},
		{owner, "ws create under_score", exitUsage, "name"},
		{owner, "ws create " + long, exitUsage, "name"},
		{owner, "ws create two.labels", exitUsage, "name"},
		{owner, "ws create", exitUsage, "NAME"},
		{owner, "ws create shop", exitConflict, "name"},
		{owner, "ws create huge --machines 10000", exitUsage, "machines"},
		{owner, "ws create none --machines -1", exitUsage, "machines"},
		{owner, "ws create odd --machines two", exitUsage, "machines"},
		{owner, "ws create odd --cpu lots", exitUsage, "cpu"},
		{owner, "ws create odd --memory 4Xi", exitUsage, "memory"},
		{owner, "ws create odd --kubernetes 0.9", exitUsage, "1.36"},
		{owner, "ws create odd --datastore paper", exitUsage, "datastore"},
		{owner, "ws create odd --pod-security privileged", exitDenied, ""},
		{owner, "ws create odd --no-such-flag", exitUsage, "no-such-flag"},
		{owner, "ws show nothing", exitNotFound, "nothing"},
		{owner, "ws delete nothing --yes", exitNotFound, "nothing"},
		{owner, "cluster scale shop --machines -1", exitUsage, "machines"},
		{owner, "cluster scale shop --machines 10000", exitUsage, "machines"},
		{owner, "cluster scale nothing --machines 1", exitNotFound, "nothing"},
		{owner, "apps scale hello -1", exitUsage, ""},
		{owner, "apps scale hello 10000", exitUsage, "instances"},
		{owner, "apps scale hello many", exitUsage, "many"},
		{owner, "apps scale nothing 1", exitNotFound, "nothing"},
		{owner, "apps deploy Bad_Name --image hello:1", exitUsage, "name"},
		{owner, "apps deploy odd --image hello:1 --port 70000", exitUsage, "port"},
		{owner, "apps deploy odd --image hello:1 --cpu minus", exitUsage, "cpu"},
		{owner, "apps deploy odd --image UPPER:1", exitUsage, "image"},
		{owner, "apps deploy odd", exitNotFound, "--image"},
		{owner, "apps delete nothing --yes", exitNotFound, "nothing"},
		{owner, "org create web", exitConflict, "name"},
		{owner, "org create Web!", exitUsage, "name"},
		{owner, "org delete web --yes", exitConflict, "shop"},
		{owner, "org delete nothing --yes", exitNotFound, "nothing"},
		{owner, "accounts delete acme --yes", exitConflict, "web"},
		{owner, "images delete nothing:1 --yes", exitNotFound, "nothing"},
		{owner, "org users add web nobody", exitUsage, "nobody"},
		{admin, "org users add web nobody@nowhere.example --account acme", exitNotFound, "nobody@nowhere.example"},
		{owner, "invitations accept acme/web NOSUCHCODE", exitNotFound, "code"},
		{owner, "nodes list", exitDenied, ""},
		{owner, "nodes remove node1 --yes", exitDenied, ""},
		{owner, "no such command", exitUsage, "no"},
		{owner, "tasks show 01NOTHING", exitNotFound, ""},
		{developer, "ws create mine --account acme --organization web", exitDenied, ""},
		{developer, "ws delete shop --account acme --organization web --yes", exitDenied, ""},
		{developer, "cluster scale shop --account acme --organization web --machines 1", exitDenied, ""},
		{rival, "ws show shop --account acme --organization web", exitNotFound, ""},
		{rival, "ws delete shop --account acme --organization web --yes", exitNotFound, ""},
		{rival, "apps scale hello 0 --account acme --organization web --workspace shop", exitNotFound, ""},
		{admin, "register acme --email other@acme.example --password-file " + filepath.Join(d.Dir, "password"), exitConflict, "acme"},
		{admin, "nodes show nothing", exitNotFound, "nothing"},
		{admin, "nodes remove nothing --yes", exitNotFound, "nothing"},
		{"nobody", "accounts list", exitUsage, "mp init"},
	} {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			r := d.MP(t, row.who, strings.Fields(row.args)...)
			sentence := strings.TrimSpace(r.Err)
			if r.Code != row.code || !strings.Contains(sentence, row.says) || sentence == "" || strings.Contains(sentence, "goroutine") {
				t.Errorf("%s: mp %s: exit %d, want %d and %q:\n%s%s", row.who, row.args, r.Code, row.code, row.says, r.Out, r.Err)
			}
		})
	}
	all.Wait()
	t.Run("timeout", func(t *testing.T) {
		// An app that does not listen where it says.
		d.PushProbe(t)
		r := d.MP(t, owner, "apps", "deploy", "deaf", "--image", "probe:1", "--port", "9", "--no-route", "--timeout", "3s")
		defer d.Must(t, owner, "apps", "delete", "deaf", "--yes", "--timeout", "5m")
		if r.Code != exitTimeout || strings.TrimSpace(r.Err) == "" {
			t.Errorf("%s; want exit %d", r, exitTimeout)
		}
	})
	if after := d.everything(t); after != before {
		t.Errorf("something changed. Before:\n%s\nafter:\n%s", before, after)
	}
	t.Run("server", func(t *testing.T) { d.badServers(t) })
}

// everything is what the platform's people and the sysadmin see listed.
func (d *suite) everything(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, row := range []struct {
		who  string
		args string
	}{
		{admin, "accounts list -o name"}, {admin, "nodes list -o name"}, {admin, "users list -o name"},
		{owner, "org list -o name"}, {owner, "ws list -o name"}, {owner, "apps list -o name"}, {owner, "images list -o name"},
		{owner, "cluster list-machines -o name"}, {rival, "ws list -o name"},
	} {
		fmt.Fprintf(&b, "%s: %s: %s\n", row.who, row.args, strings.Join(strings.Fields(d.Must(t, row.who, strings.Fields(row.args)...)), " "))
	}
	return b.String()
}

// badServers starts servers that must not start, beside the one that runs.
func (d *suite) badServers(t *testing.T) {
	h := d.Server
	address := h.Address().String()
	write := func(name, text string) string {
		t.Helper()
		file := "/tmp/bad/" + name + ".yaml"
		if err := h.WriteFile(t.Context(), file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, row := range []struct {
		what string
		args []string
		says []string
	}{
		{"unknown field", []string{"--config", write("unknown", "address: "+address+"\nadress: x\n")}, []string{"line 2", "adress", "unknown field"}},
		{"wrong type", []string{"--config", write("type", "listen: 3\n")}, []string{"line 1", "a number"}},
		{"all mistakes at once", []string{"--config", write("many", "address: nowhere\ndomain: Not A Domain\nlog: {level: loud}\n")}, []string{"address", "domain", "log.level"}},
		{"missing file", []string{"--config", "/tmp/bad/none.yaml"}, []string{"none.yaml"}},
		{"port taken", []string{"--address", address, "--data-dir", "/tmp/bad/data"}, []string{"7443"}},
		{"data directory taken", []string{"--address", address}, []string{"/var/lib/multipaas"}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := h.Command(ctx, append([]string{"multipaas", "server"}, row.args...)...)
		cmd.Env = append(cmd.Env, "MULTIPAAS_RUN_DIR=/tmp/bad/run")
		out, err := cmd.CombinedOutput()
		if err == nil || ctx.Err() != nil {
			t.Errorf("%s: the server runs: %v\n%s", row.what, err, out)
		}
		cancel()
		for _, want := range row.says {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: says nothing of %q:\n%s", row.what, want, out)
			}
		}
	}
	// Nothing of it was made, and the one that runs goes on.
	for _, name := range []string{"etcd", "pki"} {
		if _, err := os.Stat(h.Root("tmp", "bad", "data", name)); err == nil {
			t.Errorf("a server that could not start has made %s", name)
		}
	}
	d.PartsReady(t, h)
}
