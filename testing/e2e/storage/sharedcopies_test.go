package storage

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// snapshot: while the writer goes on, its volume is copied. What he was told before is in the volume that is made of the
// copy, at once, and then on all hosts.
func (c *copied) snapshot(t *testing.T) {
	c.Must(t, datacenter.Owner, "volumes", "create", "small", "--class", "shared", "--replicas", "3", "--size", "320Mi", "--timeout", "4m")
	c.Must(t, datacenter.Owner, "volumes", "bind", "small", "--timeout", "4m")
	c.Apply(t, c.pod("busy", "small", "write", logFile))
	c.runs(t, "busy")
	before := c.writes(t, "busy", 10)
	c.Must(t, datacenter.Owner, "volumes", "snapshot", "small", "then", "--timeout", "4m")
	c.writes(t, "busy", before+10)
	c.delete(t, "pod/busy")
	c.Must(t, datacenter.Owner, "volumes", "restore", "then", "back", "--timeout", "4m")
	c.Must(t, datacenter.Owner, "volumes", "bind", "back", "--timeout", "4m")
	c.Apply(t, c.pod("restored", "back", "wait"))
	c.runs(t, "restored")
	c.kept(t, t.Name(), "restored", logFile, before)
	c.Must(t, datacenter.Owner, "snapshots", "delete", "then", "--yes", "--timeout", "4m")
	c.checks++
	wait.For(t, 2*wait.Patience, "all copies of what was restored have all", func(context.Context) error {
		if out := c.Must(t, datacenter.Owner, "volumes", "list"); strings.Contains(out, "Degraded") {
			return fmt.Errorf("they are\n%s", out)
		}
		return nil
	})
	for _, h := range c.Nodes {
		logs := logsOf(h)
		c.check(t, len(logs) == 3, "%s has %v", h.Name(), logs)
	}
	c.kept(t, t.Name(), "restored", logFile, before)
	c.delete(t, "pod/restored")
	for _, volume := range []string{"small", "back"} {
		wait.For(t, wait.Patience, "the claim lets go", func(context.Context) error {
			if r := c.MP(t, datacenter.Owner, "volumes", "unbind", volume, "--yes"); r.Code != 0 {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		c.Must(t, datacenter.Owner, "volumes", "delete", volume, "--purge", "--yes", "--timeout", "4m")
	}
	for _, h := range c.Nodes {
		c.onlyCopy(t, h)
	}
}

// onlyCopy waits until a host has nothing but its copy of the writer's volume.
func (c *copied) onlyCopy(t *testing.T, h *lab.Host) {
	t.Helper()
	wait.For(t, wait.Patience, h.Name()+" has one volume", func(context.Context) error {
		if left, _ := filepath.Glob(h.Data("volumes", "*", "volume.json")); len(left) != 1 {
			return fmt.Errorf("it has %v", left)
		}
		return nil
	})
}
