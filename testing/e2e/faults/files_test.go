package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/damage"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
)

// testFiles damages what lies on the disk, and fills it: each time it is said
// by name, nothing is made worse, and with the whole file back, or with room,
// all goes on.
func testFiles(t *testing.T, s *suite) {
	s.serves(t)
	s.Kubectl(t, "create", "configmap", "kept", "--from-literal=what=this")
	defer s.Kubectl(t, "delete", "configmap", "kept")
	t.Run("plane's database damaged", func(t *testing.T) { s.count("files/plane"); s.damagedPlane(t) })
	t.Run("etcd's log damaged", func(t *testing.T) { s.count("files/etcd"); s.damagedEtcd(t) })
	t.Run("payload cut off", func(t *testing.T) { s.count("files/payload"); s.cutPayload(t) })
	t.Run("etcd's disk full", func(t *testing.T) { s.count("disk/etcd"); s.fullEtcd(t) })
	t.Run("plane's disk full", func(t *testing.T) { s.count("disk/plane"); s.fullPlane(t) })
	t.Run("registry's disk full", func(t *testing.T) { s.count("disk/registry"); s.fullRegistry(t) })
}

// kept waits until the plane of the shop has what was written to it.
func (s *suite) kept(t *testing.T) {
	t.Helper()
	s.reaches(t, "the plane has what was written", func(context.Context) error {
		r := s.Kube(t, s.Kubeconfig(), "", "get", "configmap", "kept", "-o", "jsonpath={.data.what}")
		if r.Code != 0 || r.Out != "this" {
			return errors.New(r.String())
		}
		return nil
	})
}

// problem waits until a host's status shows a problem, and returns its text.
func (s *suite) problem(t *testing.T, h *lab.Host, code string) string {
	t.Helper()
	var text string
	s.reaches(t, "problem "+code, func(ctx context.Context) error {
		st, err := status.Fetch(ctx, h.Root("run", "multipaas", "status.sock"))
		if err != nil {
			return err
		}
		for _, p := range st.Problems {
			if p.Code == code {
				text = strings.Join([]string{p.Object, p.Title, p.Text, p.Detail, p.Remedy}, "\n")
				return nil
			}
		}
		return fmt.Errorf("problems are %v", st.Problems)
	})
	return text
}

// solved waits until a problem is over.
func (s *suite) solved(t *testing.T, h *lab.Host, code string) {
	t.Helper()
	s.reaches(t, "no problem "+code, func(ctx context.Context) error {
		st, err := status.Fetch(ctx, h.Root("run", "multipaas", "status.sock"))
		if err != nil {
			return err
		}
		for _, p := range st.Problems {
			if p.Code == code {
				return errors.New(p.Detail)
			}
		}
		return nil
	})
}

// planeDir is the folder of the shop's plane.
func (s *suite) planeDir(t *testing.T) string {
	t.Helper()
	var shop struct{ Status struct{ ID string } }
	out := s.Must(t, datacenter.Owner, "ws", "show", "shop", "-o", "json")
	if err := json.Unmarshal([]byte(out), &shop); err != nil || shop.Status.ID == "" {
		t.Fatalf("no id in %s: %v", out, err)
	}
	return s.Server.Data("planes", shop.Status.ID)
}

// damagedPlane overwrites pages of the plane's database while it lies still.
func (s *suite) damagedPlane(t *testing.T) {
	dir := filepath.Join(s.planeDir(t), "own")
	s.kill(t, s.Server)
	s.planeEnds(t)
	save := t.TempDir()
	copyFiles(t, dir, save, "state.db", "state.db-wal", "state.db-shm")
	info, err := os.Stat(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	// The log would hide the damage where it has a newer page; without it the
	// file is as after an orderly end, an hour ago.
	for _, name := range []string{"state.db-wal", "state.db-shm"} {
		_ = os.Remove(filepath.Join(dir, name))
	}
	if err := damage.Bytes(filepath.Join(dir, "state.db"), 8192, info.Size()-8192); err != nil {
		t.Fatal(err)
	}
	s.restore(t, s.Server)
	text := s.problem(t, s.Server, "plane-database-damaged")
	for _, want := range []string{"acme/web/shop", "backup"} {
		if !strings.Contains(text, want) {
			t.Errorf("the problem says\n%s\nand nothing of %q", text, want)
		}
	}
	s.kill(t, s.Server)
	s.planeEnds(t)
	copyFiles(t, save, dir, "state.db", "state.db-wal", "state.db-shm")
	s.restore(t, s.Server)
	s.kept(t)
	s.solved(t, s.Server, "plane-database-damaged")
}

// damagedEtcd overwrites records in the middle of etcd's log.
func (s *suite) damagedEtcd(t *testing.T) {
	s.kill(t, s.Server)
	s.planeEnds(t)
	etcd := s.Server.Data("etcd")
	logs, err := filepath.Glob(filepath.Join(etcd, "data", "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	slices.Sort(logs)
	whole, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := damage.Record(logs[0]); err != nil {
		t.Fatal(err)
	}
	service := s.service(t, s.Server)
	service.Once = true
	if err := s.Server.Start(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	s.reaches(t, "the server gives up", func(context.Context) error {
		if st := s.status(t, s.Server); st.PID != 0 || st.Exit == "" {
			return fmt.Errorf("it runs: %+v", st)
		}
		return nil
	})
	data, err := os.ReadFile(s.Server.LogFile("multipaas"))
	if err != nil {
		t.Fatal(err)
	}
	last := tail(string(data), 1)
	for _, want := range []string{"/var/lib/multipaas/etcd/data/member/wal", "damaged", "backup"} {
		if !strings.Contains(last, want) {
			t.Errorf("it says %q, and nothing of %q", last, want)
		}
	}
	if err := os.WriteFile(logs[0], whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s.restore(t, s.Server)
	s.kept(t)
	s.Answers(t)
}

// cutPayload tries files as a broken download leaves them.
func (s *suite) cutPayload(t *testing.T) {
	info, err := os.Stat(s.Binary)
	if err != nil {
		t.Fatal(err)
	}
	for name, hurt := range map[string]func(file string) error{
		"cut":     func(file string) error { return os.Truncate(file, info.Size()-1000) },
		"flipped": func(file string) error { return damage.Bytes(file, info.Size()/2+info.Size()/4, 64) },
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "multipaas")
			if out, err := exec.CommandContext(t.Context(), "cp", s.Binary, file).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if err := hurt(file); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			cmd := exec.CommandContext(t.Context(), file, "payload", "verify")
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := cmd.Run(); err == nil {
				s.losing(t, "payload verify is content: %s", said.String())
			}
			for _, want := range []string{file, "fresh copy"} {
				if !strings.Contains(said.String(), want) {
					t.Errorf("it says %q, without %q", said.String(), want)
				}
			}
		})
	}
}

// planeEnds waits until no plane runs on the server, which dies with it.
func (s *suite) planeEnds(t *testing.T) {
	t.Helper()
	s.reaches(t, "planes end with the server", func(context.Context) error {
		if left := s.Processes(t, s.Server, "kube plane --config"); len(left) > 0 {
			return fmt.Errorf("%v run", left)
		}
		return nil
	})
}

func copyFiles(t *testing.T, from, to string, names ...string) {
	t.Helper()
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(filepath.Join(to, name))
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// small puts a folder of the server's data on a disk of its own, with so many
// MiB, while the server is down, and returns what makes all but a few of its
// MiB full, what empties it, and what puts the folder back where it was.
func (s *suite) small(t *testing.T, dir string, mib int) (fill, empty, large func()) {
	t.Helper()
	run := func(script string, args ...string) {
		t.Helper()
		if out, err := s.Server.Run(t.Context(), append([]string{"sh", "-euc", script, "small"}, args...)...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	s.kill(t, s.Server)
	s.planeEnds(t)
	run(`mv "$1" "$1.large"; mkdir -m 700 "$1"; mount -t tmpfs -o mode=700,size="$2"m tmpfs "$1"; cp -a "$1.large/." "$1"`, dir, fmt.Sprint(mib))
	large = func() {
		t.Helper()
		s.kill(t, s.Server)
		s.planeEnds(t)
		run(`rm -rf "$1/filler" "$1.large"; mkdir -m 700 "$1.large"; cp -a "$1/." "$1.large"
for i in $(seq 100); do ! umount "$1" || break; sleep 0.1; done # what a killed plane had open is closed a moment after it
rmdir "$1"; mv "$1.large" "$1"`, dir)
		s.restore(t, s.Server)
		s.kept(t)
	}
	s.restore(t, s.Server)
	s.kept(t)
	return func() { t.Helper(); run(`dd if=/dev/zero of="$1/filler" bs=1M 2>/dev/null || true`, dir) },
		func() { t.Helper(); run(`rm "$1/filler"`, dir) }, large
}

func (s *suite) fullEtcd(t *testing.T) {
	fill, empty, large := s.small(t, "/var/lib/multipaas/etcd", 900)
	defer large()
	fill()
	if text := s.problem(t, s.Server, "datastore-unwell"); !strings.Contains(text, "/var/lib/multipaas/etcd") {
		t.Errorf("the problem says\n%s\nand not which disk", text)
	}
	r := s.MP(t, datacenter.Owner, "org", "create", "toomuch")
	if r.Code == 0 || !strings.Contains(r.Err, "full") {
		s.losing(t, "a write on a full disk: %s", r)
	}
	s.Answers(t)
	s.kept(t)
	empty()
	s.reaches(t, "it takes writes again", func(context.Context) error { return s.mp(t, datacenter.Owner, "org", "create", "enough")() })
	s.reaches(t, "it can be deleted", func(context.Context) error { return s.gone(t, datacenter.Owner, "org", "delete", "enough", "--yes")() })
	s.Must(t, datacenter.Owner, "org", "use", "web")
	s.solved(t, s.Server, "datastore-unwell")
}

func (s *suite) fullPlane(t *testing.T) {
	fill, empty, large := s.small(t, "/var/lib/multipaas/planes", 300)
	defer large()
	fill()
	var taken []string
	s.reaches(t, "the plane refuses", func(context.Context) error {
		name := fmt.Sprintf("toomuch-%d", len(taken))
		r := s.Kube(t, s.Kubeconfig(), "", "create", "configmap", name, "--from-literal=x="+strings.Repeat("x", 100_000))
		if r.Code == 0 {
			taken = append(taken, name)
			return errors.New("it takes what it has no room for")
		}
		if !strings.Contains(r.Err, "full") {
			return fmt.Errorf("it does not say that the disk is full: %s", r)
		}
		return nil
	})
	s.problem(t, s.Server, "disk-low") // of the whole small disk: there before it was filled
	s.Answers(t)
	empty()
	s.reaches(t, "it takes writes again", func(context.Context) error {
		r := s.Kube(t, s.Kubeconfig(), "", "create", "configmap", "enough")
		if r.Code != 0 && !strings.Contains(r.Err, "exists") {
			return errors.New(r.String())
		}
		return nil
	})
	s.Kubectl(t, append([]string{"delete", "configmap", "enough", "--ignore-not-found"}, taken...)...)
	s.NodesReady(t, 2)
}

func (s *suite) fullRegistry(t *testing.T) {
	word := filepath.Join(s.Dir, "owner-password")
	s.Login(t, "auth-full", "owner@acme.example", word)
	made := ownImage(t)
	push := func() dctest.Result {
		return s.Skopeo(t, "auth-full", "copy", "oci:"+made.layout+":walked", "docker://"+s.RegistryAddress()+"/acme/web/full:1")
	}
	fill, empty, large := s.small(t, "/var/lib/multipaas/registry", 1300)
	defer large()
	fill()
	if r := push(); r.Code == 0 {
		s.losing(t, "a push on a full disk went well: %s", r)
	} else if !strings.Contains(r.Err, "full") {
		t.Errorf("a push on a full disk does not say so: %s", r)
	}
	s.Answers(t)
	empty()
	if r := push(); r.Code != 0 {
		s.losing(t, "a push with room again: %s", r)
	}
	s.reaches(t, "the image can be deleted", func(context.Context) error {
		return s.gone(t, datacenter.Owner, "images", "delete", "full:1", "--yes")()
	})
}
