package storage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// renewed: what serves bricks is as if a former version had started it, and is started anew on one host after the other, five
// minutes apart, while the writer goes on. Of itself one host is enough: with MULTIPAAS_LONG it is all.
func (c *copied) renewed(t *testing.T) {
	hosts := []*lab.Host{c.third()}
	if os.Getenv("MULTIPAAS_LONG") != "" {
		hosts = c.Nodes
	}
	bundle := func(h *lab.Host) string { return h.Data("storage", "server", "bundle", "config.json") }
	was := map[*lab.Host]map[string]string{}
	want := map[*lab.Host][]byte{}
	for _, h := range hosts {
		text, err := os.ReadFile(bundle(h))
		if err != nil {
			t.Fatal(err)
		}
		was[h], want[h] = c.Processes(t, h, "/usr/sbin/glusterfsd -s"), text
		c.check(t, len(was[h]) > 0, "on %s nothing serves bricks", h.Name())
	}
	c.steady(t, func() {
		for _, h := range hosts {
			// As it is compared, and not as it was run: the settings of another version.
			if err := os.WriteFile(bundle(h), append(bytes.Clone(want[h]), '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for left := len(hosts); left > 0; left-- {
			wait.For(t, 2*wait.Patience, "one host more has started it anew", func(context.Context) error {
				old := 0
				for _, h := range hosts {
					if text, err := os.ReadFile(bundle(h)); err != nil || !bytes.Equal(text, want[h]) {
						old++
					}
				}
				if old >= left {
					return fmt.Errorf("%d of %d have not", old, len(hosts))
				}
				return nil
			})
			c.goesOn(t, 10)
			c.everywhere(t)
		}
	})
	for _, h := range hosts {
		for pid, started := range c.Processes(t, h, "/usr/sbin/glusterfsd -s") {
			c.check(t, was[h][pid] != started, "on %s %s serves bricks still, of before", h.Name(), filepath.Join("/proc", pid))
		}
	}
}
