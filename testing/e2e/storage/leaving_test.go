package storage

import (
	"context"
	"errors"
	"fmt"
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

// balanced: from the fullest disk a copy goes to a host that came, and then another one to a disk that its host got, while
// the writer goes on and the server is killed. Nothing is left of the old ones.
func (c *copied) balanced(t *testing.T) {
	c.addHost(t, "node6")
	c.steady(t, func() { c.balance(t, "node6/default", true) })
	c.everywhere(t)
	came := c.Nodes[len(c.Nodes)-1]
	c.check(t, len(logsOf(came)) == 1, "%s has %v", came.Name(), logsOf(came))
	for _, machine := range c.machines {
		h := c.hostOf(t, machine)
		if len(logsOf(h)) == 0 {
			continue // that one gave it away
		}
		disk := plug(t, sparse(t, 512<<30))
		c.Must(t, datacenter.Admin, "nodes", "storage", "add", h.Name(), "--device", disk.Name(), "--name", "fast", "--timeout", "4m")
		c.steady(t, func() { c.balance(t, h.Name()+"/fast", false) })
		left := logsOf(h)
		c.check(t, len(left) == 1 && strings.Contains(left[0], "/pools/"), "%s has %v", h.Name(), left)
		break
	}
	c.shows(t, "Its data is on 3 hosts, a copy on each: one of them may fail.")
}

// balance has copies go where there is more room, among them one to a disk, NODE/POOL. kill: the server is killed meanwhile.
func (c *copied) balance(t *testing.T, to string, kill bool) {
	t.Helper()
	planned := func(yes bool) {
		t.Helper()
		wait.For(t, wait.Patience, fmt.Sprintf("that a copy would go to %s: %v", to, yes), func(context.Context) error {
			out := c.Must(t, datacenter.Admin, "nodes", "storage", "balance", "--dry-run")
			if strings.Contains(out, to) != yes {
				return errors.New(out)
			}
			return nil
		})
	}
	planned(true)
	c.Must(t, datacenter.Admin, "nodes", "storage", "balance", "--no-wait")
	planned(false) // it is on its way
	if kill {
		if err := c.Server.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.PartsReady(t, c.Server)
	}
	wait.For(t, wait.Patience, "all is balanced", func(context.Context) error {
		r := c.MP(t, datacenter.Admin, "nodes", "storage", "balance", "--timeout", "4m")
		if r.Code != 0 {
			return errors.New(r.String())
		}
		t.Log(r.Err)
		return nil
	})
}
