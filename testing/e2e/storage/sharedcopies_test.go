package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// snapshot: while the writer goes on, its volume is copied. What he was told before is in the volume that is made of the
// copy, and on all hosts.
func (c *copied) snapshot(t *testing.T) {
	c.Must(t, datacenter.Owner, "volumes", "create", "small", "--class", "shared", "--replicas", "3", "--size", "320Mi", "--timeout", "4m")
	c.Must(t, datacenter.Owner, "volumes", "bind", "small", "--timeout", "4m")
	c.Apply(t, c.pod("busy", "small", "write", logFile))
	c.runs(t, "busy")
	before := c.writes(t, "busy", 10)
	c.killed(t, "snapshots", "then", "volumes", "snapshot", "small", "then")
	c.writes(t, "busy", before+10)
	c.delete(t, "pod/busy")
	c.killed(t, "volumes", "back", "volumes", "restore", "then", "back")
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

// killed has something be made while server and agents are killed on the way, before its hosts have it or after.
func (c *copied) killed(t *testing.T, kind, name string, args ...string) {
	t.Helper()
	c.Must(t, datacenter.Owner, append(args, "--no-wait")...)
	all := append([]*lab.Host{c.Server}, c.Nodes...)
	for _, h := range all {
		if err := h.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range all {
		c.PartsReady(t, h)
	}
	wait.For(t, wait.Patience, name+" is made", func(context.Context) error {
		r := c.MP(t, datacenter.Owner, kind, "show", name, "-o", "json")
		var made struct{ Status struct{ Phase string } }
		if r.Code != 0 || json.Unmarshal([]byte(r.Out), &made) != nil || made.Status.Phase != "Ready" {
			return fmt.Errorf("%s", r)
		}
		return nil
	})
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
