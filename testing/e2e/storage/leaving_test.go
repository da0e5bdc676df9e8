package storage

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

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
