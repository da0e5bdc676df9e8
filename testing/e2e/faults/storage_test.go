package faults

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/loopdisk"
)

// storagePoints are those that testStorage goes through and the walk doesn't: they take a workspace with machines on two hosts.
var storagePoints = []string{"storage/move/stepped", "volume/move/received", "volume/import/unpacked", "volume/pool/formatted"}

// testStorage moves a volume from host to host, has one come from a file, and gives a host a disk, while server and agents die on
// the way. What was in the volume is in it each time.
func testStorage(t *testing.T, s *suite) {
	s.Answers(t)
	s.NodesReady(t, 2)
	before := s.MustInventories(t)
	s.Must(t, owner, "volumes", "create", "nomad", "--size", "320Mi", "--timeout", "2m")
	v := s.volume(t, "nomad")
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	from := s.keeper(t, v.uid)
	if err := keep(inVolume(from, v.uid), data); err != nil {
		t.Fatal(err)
	}
	to := s.Nodes[0]
	if to == from {
		to = s.Nodes[1]
	}
	move := func(h *lab.Host) func() error {
		return func() error {
			if r := s.MP(t, owner, "volumes", "move", "nomad", "--to", s.machineOn(t, h), "--no-wait"); r.Code != 0 {
				return errors.New(r.String())
			}
			return nil
		}
	}
	// is waits until it is on one host alone, with all that was in it.
	is := func(h *lab.Host, name string) func(context.Context) error {
		return func(context.Context) error {
			v := s.volume(t, name)
			if v.phase != "Ready" || v.generation != v.observed {
				return fmt.Errorf("it is %+v", v)
			}
			for _, other := range s.Nodes {
				if _, err := os.Stat(other.Data("volumes", v.uid)); (err == nil) != (other == h) {
					return fmt.Errorf("on %s: %v", other.Name(), err)
				}
			}
			got, err := os.ReadFile(inVolume(h, v.uid))
			if err == nil && !bytes.Equal(got, data) {
				s.losing(t, "%s holds something else on %s", name, h.Name())
			}
			return err
		}
	}
	steps := []string{"storage/move/stepped"}
	if long() {
		steps = append(steps, "storage/move/stepped@2", "storage/move/stepped@3")
	}
	s.walk(t, operation{name: "moved", on: s.Server, points: steps, ask: move(to), reached: is(to, "nomad")})
	s.walk(t, operation{name: "moved back", on: from, points: []string{"volume/move/received"}, ask: move(from), reached: is(from, "nomad")})

	t.Run("imported", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "nomad.tar")
		s.Must(t, owner, "volumes", "export", "nomad", file)
		s.Must(t, admin, "nodes", "cordon", to.Name())
		s.start(t, from, "volume/import/unpacked")
		s.reaches(t, "the node is back", s.nodeIs(t, from.Name(), "Ready"))
		done := make(chan dctest.Result, 1)
		go func() { done <- s.MP(t, owner, "volumes", "import", file, "packed") }()
		s.dies(t, from, "volume/import/unpacked")
		s.start(t, from, "")
		select {
		case r := <-done:
			if r.Code != 0 {
				t.Fatal(r)
			}
		case <-time.After(patience):
			t.Fatal("the import does not end")
		}
		s.reaches(t, "it is there", is(from, "packed"))
		s.Must(t, admin, "nodes", "uncordon", to.Name())
	})

	t.Run("a disk", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "disk")
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 2<<30)); err != nil {
			t.Fatal(err)
		}
		disk, err := loopdisk.Plug(file)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		s.walk(t, operation{name: "added", on: from, points: []string{"volume/pool/formatted"},
			ask: s.mp(t, admin, "nodes", "storage", "add", from.Name(), "--device", disk.Name(), "--name", "fast", "--no-wait"),
			reached: func(context.Context) error {
				r := s.MP(t, admin, "nodes", "storage", "list", from.Name(), "-o", "json")
				if r.Code != 0 || strings.Count(r.Out, `"made": true`) != 1 {
					return errors.New(r.String())
				}
				return nil
			}})
		s.reaches(t, "it is taken away", func(context.Context) error {
			r := s.MP(t, admin, "nodes", "storage", "remove", from.Name(), "fast", "--yes", "--timeout", "2m")
			if r.Code != 0 && r.Code != exitNotFound {
				return errors.New(r.String())
			}
			return nil
		})
	})
	for _, name := range []string{"nomad", "packed"} {
		s.Must(t, owner, "volumes", "delete", name, "--purge", "--yes", "--timeout", "2m")
	}
	for _, h := range []*lab.Host{s.Server, s.Nodes[0], s.Nodes[1]} {
		s.restore(t, h)
	}
	s.nothingIsLeft(t, before)
}

// shownVolume is what a volume's owner sees of it.
type shownVolume struct {
	uid, phase           string
	generation, observed int64
}

func (s *suite) volume(t *testing.T, name string) (v shownVolume) {
	t.Helper()
	r := s.MP(t, owner, "volumes", "show", name, "-o", "json")
	var shown struct {
		UID        string
		Generation int64
		Status     struct {
			Phase              string
			ObservedGeneration int64
		}
	}
	if r.Code != 0 || json.Unmarshal([]byte(r.Out), &shown) != nil {
		return v // the server has just come back
	}
	return shownVolume{shown.UID, shown.Status.Phase, shown.Generation, shown.Status.ObservedGeneration}
}

// keeper is the node that has a volume.
func (s *suite) keeper(t *testing.T, uid string) *lab.Host {
	t.Helper()
	for _, h := range s.Nodes {
		if _, err := os.Stat(h.Data("volumes", uid)); err == nil {
			return h
		}
	}
	t.Fatalf("no node has volume %q", uid)
	return nil
}

// machineOn is what the machine of a node is called, of which there has to be one.
func (s *suite) machineOn(t *testing.T, h *lab.Host) string {
	t.Helper()
	for pid := range s.Processes(t, h, "/opt/multipaas/init --config") {
		name, err := os.ReadFile(h.Root("proc", pid, "root/etc/multipaas/hostname"))
		if err == nil {
			return strings.TrimSpace(string(name))
		}
	}
	t.Fatalf("%s has no machine", h.Name())
	return ""
}

func inVolume(h *lab.Host, uid string) string {
	return h.Root("var/lib/multipaas/volumes", uid, "mount", "data")
}

// keep has a file be on the disk.
func keep(file string, data []byte) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
