package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/lab"
)

// joinToken is what the sysadmin hands to who sets up a host.
type joinToken struct{ ID, Token string }

func (d *datacenter) token(t *testing.T) joinToken {
	t.Helper()
	r := run(t, []string{"MP_CONFIG=" + d.dir + "/mp-" + admin}, "", d.mpBinary, "token", "create", "--role", "node", "--ttl", "1h", "-o", "json")
	var made joinToken
	if err := json.Unmarshal([]byte(r.out), &made); r.code != 0 || err != nil || made.Token == "" {
		t.Fatal(r)
	}
	made.ID, _, _ = strings.Cut(made.Token, ".")
	return made
}

// node joins: the command that a host runs as a service.
func (d *datacenter) joinService(h *lab.Host, name, token string) lab.Service {
	return lab.Service{Name: "multipaas", Env: []string{"MULTIPAAS_JOIN_TOKEN=" + token}, Once: true,
		Args: []string{"multipaas", "node", "join", "--address", h.Address().String(), "--name", name, d.url()}}
}

// nodeStates maps each node to its phase, as the sysadmin sees it.
func (d *datacenter) nodeStates(t *testing.T) map[string]string {
	t.Helper()
	var nodes struct {
		Items []struct {
			Name   string
			Status struct{ Phase string }
		}
	}
	if err := json.Unmarshal([]byte(d.must(t, admin, "nodes", "list", "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, n := range nodes.Items {
		all[n.Name] = n.Status.Phase
	}
	return all
}

// testJoin lets a host join and leave in every way that it can, and in none
// that it must not.
func testJoin(t *testing.T, d *datacenter) {
	h, err := d.lab.AddHost(t.Context(), "node3")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused := func(t *testing.T, name, token string, says ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s := d.joinService(h, name, token)
		cmd := h.Command(ctx, s.Args...)
		cmd.Env = append(cmd.Env, s.Env...)
		out, err := cmd.CombinedOutput()
		if err == nil || ctx.Err() != nil {
			t.Errorf("it joins: %v\n%s", err, out)
		}
		for _, want := range says {
			if !strings.Contains(string(out), want) {
				t.Errorf("says nothing of %q:\n%s", want, out)
			}
		}
		secret := strings.Split(token, ".")
		if len(secret) == 3 && strings.Contains(string(out), secret[1]) {
			t.Errorf("shows the token's secret:\n%s", out)
		}
		if _, err := os.Stat(h.Data("node", "identity.json")); err == nil {
			t.Error("an identity was left")
		}
		if _, there := d.nodeStates(t)["node3"]; there {
			t.Error("a node was left")
		}
	}
	good := d.token(t)
	t.Run("foreign token", func(t *testing.T) {
		parts := strings.Split(good.Token, ".")
		parts[2] = strings.Repeat("ab", 32)
		refused(t, "node3", strings.Join(parts, "."), "another platform")
	})
	t.Run("wrong secret", func(t *testing.T) {
		parts := strings.Split(good.Token, ".")
		parts[1] = strings.ToUpper(parts[1][1:]) + "x"
		refused(t, "node3", strings.Join(parts, "."), "token")
	})
	t.Run("half a token", func(t *testing.T) { refused(t, "node3", "abc", "token") })
	t.Run("withdrawn token", func(t *testing.T) {
		gone := d.token(t)
		if r := run(t, []string{"MP_CONFIG=" + d.dir + "/mp-" + admin}, "", d.mpBinary, "token", "rm", gone.ID, "--yes"); r.code != 0 {
			t.Fatal(r)
		}
		refused(t, "node3", gone.Token, "token")
	})
	t.Run("name taken", func(t *testing.T) { refused(t, "node1", d.token(t).Token, "node1") })
	t.Run("join", func(t *testing.T) {
		if err := h.Start(t.Context(), d.joinService(h, "node3", good.Token)); err != nil {
			t.Fatal(err)
		}
		d.partsReady(t, h)
		eventually(t, 20*time.Second, "node3 is Ready", func(context.Context) error {
			if got := d.nodeStates(t)["node3"]; got != "Ready" {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	})
	t.Run("leave", func(t *testing.T) {
		if _, err := h.Run(t.Context(), "multipaas", "node", "leave"); err != nil {
			t.Fatal(err)
		}
		d.ended(t, h)
		if _, there := d.nodeStates(t)["node3"]; there {
			t.Error("the node is still listed")
		}
		leftovers(t, h)
	})
	t.Run("used token", func(t *testing.T) { refused(t, "node4", good.Token, "used by node") })
	t.Run("removed with a machine", func(t *testing.T) {
		if err := h.Start(t.Context(), d.joinService(h, "node3", d.token(t).Token)); err != nil {
			t.Fatal(err)
		}
		d.partsReady(t, h)
		d.box(t)
		for _, n := range d.nodes {
			d.must(t, admin, "nodes", "cordon", n.Name())
		}
		r := d.mp(t, rival, "cluster", "scale", "box", "--machines", "2", "--timeout", "2m")
		for _, n := range d.nodes {
			d.must(t, admin, "nodes", "uncordon", n.Name())
		}
		if r.code != 0 {
			t.Fatal(r)
		}
		if out, err := os.ReadDir(h.Data("machines")); err != nil || len(out) == 0 {
			t.Errorf("no machine on node3: %v %v", out, err)
		}
		d.must(t, admin, "nodes", "remove", "node3", "--yes", "--timeout", "3m")
		d.ended(t, h)
		leftovers(t, h)
		got := d.must(t, rival, "cluster", "list-nodes", "box", "--no-headers")
		if n := strings.Count(got, " yes "); n != 2 {
			t.Errorf("box has these nodes, want two Ready ones:\n%s", got)
		}
		d.must(t, rival, "cluster", "scale", "box", "--machines", "1", "--timeout", "2m")
	})
}

// ended waits until the appliance of a host has ended well.
func (d *datacenter) ended(t *testing.T, h *lab.Host) {
	t.Helper()
	eventually(t, time.Minute, "the appliance of "+h.Name()+" ends", func(ctx context.Context) error {
		services, err := h.Services(ctx)
		if err != nil {
			return err
		}
		for _, s := range services {
			if s.Name == "multipaas" && s.PID != 0 {
				return errors.New("it runs")
			}
			if s.Name == "multipaas" && !strings.Contains(s.Exit, "0") {
				t.Errorf("it ended with %s", s.Exit)
			}
		}
		return nil
	})
}

// leftovers finds what workspaces have left on a host that has none any more.
func leftovers(t *testing.T, h *lab.Host) {
	t.Helper()
	out, err := h.Run(t.Context(), "sh", "-c", `
ls /run/netns 2>/dev/null | sed 's/^/namespace /'
ip -o link | awk -F': ' '$2 ~ /^mp|^vx/ {print "link", $2}'
nft list tables | sed 's/^/rules: /'
grep -E ' /var/lib/multipaas/| /run/netns/' /proc/self/mounts | awk '$2 != "/var/lib/multipaas" {print "mount", $2}'
losetup -n -O BACK-FILE | grep '/machines/.*(deleted)' | sed 's/^/loop device /'
ls /var/lib/multipaas/machines 2>/dev/null | sed 's/^/machine /'
find /sys/fs/cgroup -type d -path '*multipaas*' | grep -E 'machines/|planes/' | sed 's/^/group /'
pgrep -a 'containerd|kubelet|kube-proxy|runc' | sed 's/^/process /'
true`)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) > 0 {
		t.Errorf("left on %s:\n%s", h.Name(), out)
	}
}
