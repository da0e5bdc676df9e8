package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// testJoin lets a host join and leave in every way that it can, and in none
// that it must not.
func testJoin(t *testing.T, d *suite) {
	h, err := d.Lab.AddHost(t.Context(), "node3")
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
		s := d.JoinService(h, name, token)
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
		if _, there := d.NodeStates(t)["node3"]; there {
			t.Error("a node was left")
		}
	}
	good := d.Token(t)
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
		gone := d.Token(t)
		if r := dctest.Run(t, []string{"MP_CONFIG=" + d.Dir + "/mp-" + admin}, "", d.Binary, "token", "rm", gone.ID, "--yes"); r.Code != 0 {
			t.Fatal(r)
		}
		refused(t, "node3", gone.Token, "token")
	})
	t.Run("name taken", func(t *testing.T) { refused(t, "node1", d.Token(t).Token, "node1") })
	t.Run("join", func(t *testing.T) {
		if err := h.Start(t.Context(), d.JoinService(h, "node3", good.Token)); err != nil {
			t.Fatal(err)
		}
		d.PartsReady(t, h)
		wait.For(t, wait.Patience, "node3 is Ready", func(context.Context) error {
			if got := d.NodeStates(t)["node3"]; got != "Ready" {
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
		if _, there := d.NodeStates(t)["node3"]; there {
			t.Error("the node is still listed")
		}
		nothingLeft(t, h)
	})
	t.Run("used token", func(t *testing.T) { refused(t, "node4", good.Token, "used by node") })
	t.Run("removed with a machine", func(t *testing.T) {
		if err := h.Start(t.Context(), d.JoinService(h, "node3", d.Token(t).Token)); err != nil {
			t.Fatal(err)
		}
		d.PartsReady(t, h)
		d.Box(t)
		for _, n := range d.Nodes {
			d.Must(t, admin, "nodes", "cordon", n.Name())
		}
		r := d.MP(t, rival, "cluster", "scale", "box", "--machines", "2", "--timeout", "5m")
		for _, n := range d.Nodes {
			d.Must(t, admin, "nodes", "uncordon", n.Name())
		}
		if r.Code != 0 {
			t.Fatal(r)
		}
		if out, err := os.ReadDir(h.Data("machines")); err != nil || len(out) == 0 {
			t.Errorf("no machine on node3: %v %v", out, err)
		}
		d.Must(t, admin, "nodes", "remove", "node3", "--yes", "--timeout", "5m")
		d.ended(t, h)
		nothingLeft(t, h)
		// The node is out of the platform once its machine is away; the one in its
		// place comes up meanwhile.
		wait.For(t, wait.Patience, "box has two Ready nodes", func(context.Context) error {
			got := d.Must(t, rival, "cluster", "list-nodes", "box", "--no-headers")
			if n := strings.Count(got, " yes "); n != 2 {
				return fmt.Errorf("it has\n%s", got)
			}
			return nil
		})
		d.Must(t, rival, "cluster", "scale", "box", "--machines", "1", "--timeout", "5m")
	})
}

// ended waits until the appliance of a host has ended well.
func (d *suite) ended(t *testing.T, h *lab.Host) {
	t.Helper()
	wait.For(t, wait.Patience, "the appliance of "+h.Name()+" ends", func(ctx context.Context) error {
		services, err := h.Services(ctx)
		if err != nil {
			return err
		}
		for _, s := range services {
			if s.Name == "multipaas" && s.PID != 0 {
				return errors.New("it runs")
			}
			if s.Name == "multipaas" && s.Exit != "status 3" { // which the unit knows
				t.Errorf("it ended with %s", s.Exit)
			}
		}
		return nil
	})
}

// nothingLeft waits until workspaces have left nothing on a host: an agent takes down
// a network with the next state that it hears of.
func nothingLeft(t *testing.T, h *lab.Host) {
	t.Helper()
	wait.For(t, wait.Patience, h.Name()+" has nothing left", func(ctx context.Context) error { return leftovers(ctx, h) })
}

// leftovers finds what workspaces have left on a host that has none any more.
func leftovers(ctx context.Context, h *lab.Host) error {
	out, err := h.Run(ctx, "sh", "-c", `
ls /run/netns 2>/dev/null | sed 's/^/namespace /'
ip -o link | awk -F': ' '$2 ~ /^mp|^vx/ {print "link", $2}'
nft list tables | sed 's/^/rules: /'
grep -E ' /var/lib/multipaas/| /run/netns/' /proc/self/mounts | awk '$2 != "/var/lib/multipaas" {print "mount", $2}'
losetup -n -O BACK-FILE | grep '/machines/.*(deleted)' | sed 's/^/loop device /'
ls /var/lib/multipaas/machines 2>/dev/null | sed 's/^/machine /'
find /sys/fs/cgroup -type d -path '*multipaas*' | grep -E 'machines/|planes/' | sed 's/^/group /'
pgrep -a 'containerd|kubelet|kube-proxy|runc' | sed 's/^/process /'
true`)
	if err == nil && len(out) > 0 {
		err = fmt.Errorf("left on %s:\n%s", h.Name(), out)
	}
	return err
}
