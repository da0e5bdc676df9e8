package storage

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// hostRemoved: the copies on a host that is removed go to another, while the writer goes on. Nothing is left on it.
func (c *copied) hostRemoved(t *testing.T) {
	leaves := c.third()
	c.addHost(t, "node4")
	c.steady(t, func() {
		began := time.Now()
		wait.For(t, wait.Patience, "the host is removed", func(context.Context) error {
			r := c.MP(t, datacenter.Admin, "nodes", "remove", leaves.Name(), "--yes", "--timeout", "4m")
			if r.Code != 0 {
				return errors.New(r.String()) // the other one has not said yet that it has room
			}
			return nil
		})
		t.Logf("it was removed within %v", time.Since(began).Round(time.Second))
	})
	c.check(t, len(logsOf(leaves)) == 0, "%s has %v", leaves.Name(), logsOf(leaves))
	c.without(t, leaves)
}

// hostLost: the copies of a host that never comes back are made anew on another, of what the others have.
func (c *copied) hostLost(t *testing.T) {
	lost := c.third()
	c.addHost(t, "node5")
	c.steady(t, func() {
		c.off(t, lost)
		c.goesOn(t, 10)
		c.shows(t, "1 of 3 copies is missing")
		c.Must(t, datacenter.Admin, "nodes", "remove", lost.Name(), "--lost", "--yes", "--timeout", "4m")
	})
	c.without(t, lost)
}

// without goes on without a host, and waits until there are three copies again.
func (c *copied) without(t *testing.T, h *lab.Host) {
	t.Helper()
	if err := h.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Nodes = slices.DeleteFunc(c.Nodes, func(o *lab.Host) bool { return o.Name() == h.Name() })
	c.shows(t, "Its data is on 3 hosts, a copy on each: one of them may fail.")
	c.check(t, c.NodeStates(t)[h.Name()] == "", "node %s is there still", h.Name())
}

// balanced: of a host whose disk is fuller than that of one which came a copy goes there, while the writer goes on and the
// server is killed. Nothing is left of the old one.
func (c *copied) balanced(t *testing.T) {
	full := c.third()
	c.addHost(t, "node6")
	c.Must(t, datacenter.Admin, "nodes", "set", full.Name(), "--disk", "5Gi")
	c.steady(t, func() {
		wait.For(t, wait.Patience, "it is known what would go where", func(context.Context) error {
			out := c.Must(t, datacenter.Admin, "nodes", "storage", "balance", "--dry-run")
			if !strings.Contains(out, "acme/web/shop/safe") || !strings.Contains(out, "node6/default") {
				return errors.New(out)
			}
			return nil
		})
		c.Must(t, datacenter.Admin, "nodes", "storage", "balance", "--no-wait")
		wait.For(t, wait.Patience, "a copy is on its way", func(context.Context) error {
			out := c.Must(t, datacenter.Admin, "nodes", "storage", "balance", "--dry-run", "-o", "json")
			if strings.Contains(out, "node6") {
				return errors.New(out)
			}
			return nil
		})
		if err := c.Server.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.PartsReady(t, c.Server)
		wait.For(t, wait.Patience, "all is balanced", func(context.Context) error {
			r := c.MP(t, datacenter.Admin, "nodes", "storage", "balance", "--timeout", "4m")
			if r.Code != 0 {
				return errors.New(r.String())
			}
			t.Log(r.Err)
			return nil
		})
	})
	c.check(t, len(logsOf(full)) == 0, "%s has %v", full.Name(), logsOf(full))
	c.check(t, len(logsOf(c.Nodes[3])) == 1, "%s has no copy", c.Nodes[3].Name())
	c.shows(t, "Its data is on 3 hosts, a copy on each: one of them may fail.")
}
