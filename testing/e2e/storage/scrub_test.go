package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// flipped: a bit of the file that the writer writes to is flipped on the disk of one host, below its copy's file system. It is
// found, and mended from the others, while the writer goes on, though the agent that looks for it is killed meanwhile.
func (c *copied) flipped(t *testing.T) {
	h := c.third()
	file, at, was := record(t, h)
	img, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	other := bytes.Clone(was)
	other[recordSize/2] ^= 4
	if _, err = img.WriteAt(other, at); err == nil {
		err = img.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Must(t, datacenter.Owner, "volumes", "scrub", "safe")
	var by *lab.Host
	wait.For(t, wait.Patience, "copies are compared", func(context.Context) error {
		for _, h := range c.Nodes {
			if len(c.Processes(t, h, pinned)) > 0 {
				by = h
				return nil
			}
		}
		return errors.New("by nobody")
	})
	if err := by.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.PartsReady(t, by)
	c.goesOn(t, 10)
	c.checks++
	wait.For(t, 3*wait.Patience, "it is found, mended and told", func(context.Context) error {
		out := c.Must(t, datacenter.Owner, "volumes", "show", "safe")
		if !strings.Contains(out, "1 were not the same in all of them, and were mended") {
			return errors.New(out)
		}
		return nil
	})
	now := make([]byte, recordSize)
	_, err = img.ReadAt(now, at)
	c.check(t, err == nil && bytes.Equal(now, was), "on the disk of %s the record is not as it was: %v", h.Name(), err)
	c.goesOn(t, 10)
	wait.For(t, wait.Patience, "nothing is left of it", func(context.Context) error {
		for _, h := range c.Nodes {
			if left := c.Processes(t, h, pinned); len(left) > 0 {
				return fmt.Errorf("on %s run %v", h.Name(), left)
			}
		}
		return nil
	})
}

// pinned is a client that reaches one copy alone.
const pinned = "--volfile=/var/log/glusterfs/pin.vol"

// record is where on a host's disk the first record of the writer is.
func record(t *testing.T, h *lab.Host) (file string, at int64, is []byte) {
	t.Helper()
	logs := logsOf(h)
	if len(logs) != 1 {
		t.Fatalf("%s has the copies %v", h.Name(), logs)
	}
	f, err := os.Open(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	is = make([]byte, recordSize)
	if _, err := f.ReadAt(is, 0); err != nil {
		t.Fatal(err)
	}
	// .../volumes/ID/mount/volume/brick/log
	images, err := filepath.Glob(filepath.Join(logs[0], "../../../..", "disk.img"))
	if err != nil || len(images) != 1 {
		t.Fatalf("beside %s there are images %v, %v", logs[0], images, err)
	}
	img, err := os.Open(images[0])
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	buf := make([]byte, 1<<20)
	for pos := int64(0); ; pos += int64(len(buf)) {
		n, err := img.ReadAt(buf, pos)
		if n == 0 {
			t.Fatalf("the record is not in %s: %v", images[0], err)
		}
		for i := 0; i+recordSize <= n; i += recordSize {
			if bytes.Equal(buf[i:i+recordSize], is) {
				return images[0], pos + int64(i), is
			}
		}
	}
}
