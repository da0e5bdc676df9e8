package gluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/testing/wait"
)

// TestCopies: a brick of a volume that is written to is copied, and becomes another volume, which gets its other bricks then.
// Nobody ever reads what is empty: with the first host away, nothing is read until others have all.
func TestCopies(t *testing.T) {
	if !long {
		t.Skip("takes a minute: MULTIPAAS_LONG=1")
	}
	for _, arbiter := range []bool{false, true} {
		t.Run(fmt.Sprint("arbiter ", arbiter), func(t *testing.T) { testCopies(t, arbiter) })
	}
}

func testCopies(t *testing.T, arbiter bool) {
	c := newCluster(t, 3)
	a, b, d := c.nodes[0], c.nodes[1], c.nodes[2]
	names, servers := []string{a.name, b.name, d.name}, []netip.Addr{a.address, b.address, d.address}
	lead := NewLead(b.Client, b.address, b.name)
	wanted := func(name string, filling bool) Wanted {
		v := Wanted{Name: name, Hosts: names, Arbiter: arbiter}
		for i, n := range c.nodes {
			if i == 0 && filling {
				v.Bricks = append(v.Bricks, WantedBrick{Brick: Brick{a.address, "/bricks/" + name + "/volume/brick"}, Ready: true})
				continue
			}
			v.Bricks = append(v.Bricks, WantedBrick{Brick: n.brick(t, name), Ready: true, Filling: filling})
		}
		return v
	}
	var now []SeenBrick
	same := func(v Wanted, count int) func(context.Context) error {
		return func(ctx context.Context) (err error) {
			if _, err = lead.Gather(ctx, servers); err != nil {
				return err
			}
			lead.mu.Lock()
			lead.changed()
			lead.mu.Unlock()
			v.Look++
			if now, err = lead.Bring(ctx, servers, v); err != nil {
				return err
			}
			if err := lead.Heal(ctx, v.Name); err != nil {
				return err
			}
			if now, err = lead.Bring(ctx, servers, v); err != nil {
				return err
			}
			if len(now) != count || slices.ContainsFunc(now, func(b SeenBrick) bool { return !b.Online || b.Pending != 0 }) {
				return fmt.Errorf("%+v", now)
			}
			return nil
		}
	}
	one := wanted("one", false)
	wait.For(t, wait.Patience, "the first volume", same(one, 3))
	m := Mount{"one", "m0"}
	if err := b.Mount(t.Context(), m, nil, servers); err != nil {
		t.Fatal(err)
	}
	b.show(t, m)
	plant(t, b.seen(m))
	log, err := os.Create(filepath.Join(b.seen(m), "log"))
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	var synced atomic.Int64
	line := bytes.Repeat([]byte("x"), 1000)
	go func() {
		for {
			_, err := log.Write(line)
			if err = errors.Join(err, log.Sync()); err != nil {
				stopped <- err
				return
			}
			synced.Add(int64(len(line)))
			select {
			case <-stop:
				stopped <- log.Close()
				return
			default:
			}
		}
	}()
	image := func(name string) diskimage.Image {
		return diskimage.Image{File: filepath.Join(c.dir, a.name, name+".img"), Mount: filepath.Join(a.BrickDir(), name)}
	}
	wait.For(t, wait.Patience, "all have the same", same(one, 3))
	before, least := now, synced.Load()
	if err := image("one").Copy(t.Context(), image("two").File, func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "all have the same still", same(one, 3))
	for i := range now {
		if now[i].PID != before[i].PID || now[i].PID == 0 {
			t.Errorf("brick %v was served by %d, and is by %d", now[i].Brick, before[i].PID, now[i].PID)
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}

	if err := image("two").Ensure(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(a.Stop(context.Background()), hostmount.Unmount(image("two").Mount)); err != nil {
			t.Error(err)
		}
	})
	two := wanted("two", true)
	seen, err := lead.Bring(t.Context(), servers, two)
	if err != nil || len(seen) != 1 {
		t.Fatalf("it is made of %+v, %v", seen, err)
	}
	m2 := Mount{"two", "m0"}
	if err := b.Mount(t.Context(), m2, nil, servers); err != nil {
		t.Fatal(err)
	}
	b.show(t, m2)
	check := func(what, root string) {
		t.Helper()
		// Times of files are attributes in bricks.
		times := !strings.HasSuffix(root, "volume/brick")
		got, want := tree(t, root, times), tree(t, b.seen(m), times)
		log, err := os.ReadFile(filepath.Join(root, "log"))
		if whole := len(bytes.TrimLeft(log, "x")) == 0; err != nil || int64(len(log)) < least || least == 0 || !whole {
			t.Errorf("%s: the log has %d bytes, %d were synced before, whole %v: %v", what, len(log), least, whole, err)
		}
		if len(got) != len(want) {
			t.Errorf("%s: it has %d files, want %d", what, len(got), len(want))
		}
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Fatalf("%s: it has\n%s\nwant\n%s", what, got[i], want[i])
			}
		}
	}
	check("of one brick", b.seen(m2))
	wait.For(t, wait.Patience, "it gets its second brick", func(ctx context.Context) error {
		lead.mu.Lock()
		lead.changed()
		lead.mu.Unlock()
		seen, err = lead.Bring(ctx, servers, two)
		if err == nil && len(seen) < 2 {
			err = fmt.Errorf("%+v", seen)
		}
		return err
	})
	check("with an empty one", b.seen(m2))
	a.off() // its first host
	wait.For(t, wait.Patience, "it is missed", func(context.Context) error {
		entries, err := os.ReadDir(b.seen(m2))
		switch {
		case errors.Is(err, unix.ENOTCONN):
			return nil
		case err != nil:
			return err
		case !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "tree" }):
			t.Errorf("it is read as if it were empty: %v", entries)
		}
		return errors.New("it is read still")
	})
	if err := os.WriteFile(filepath.Join(b.seen(m2), "new"), nil, 0o600); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("with the first brick away, it is written to: %v", err)
	}
	a.start(t)
	wait.For(t, 2*wait.Patience, "it has all its bricks", same(two, 3))
	check("of three", b.seen(m2))
	for _, n := range c.nodes {
		if n != d || !arbiter {
			check(n.name, filepath.Join(n.BrickDir(), "two/volume/brick"))
		}
	}
	a.off()
	wait.For(t, wait.Patience, "it goes on without the first", func(context.Context) error {
		return os.WriteFile(filepath.Join(b.seen(m2), "new"), nil, 0o600)
	})
	a.start(t)
	if err := b.Unmount(t.Context(), m2); err != nil {
		t.Error(err)
	}
}

// plant makes files of many kinds.
func plant(t *testing.T, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, "tree", name) }
	err := os.MkdirAll(at("deep/er"), 0o750)
	for i := range 50 {
		err = errors.Join(err, os.WriteFile(at(fmt.Sprint("deep/er/", i)), bytes.Repeat([]byte{byte(i)}, i*1000), 0o640))
	}
	err = errors.Join(err, os.Link(at("deep/er/7"), at("hard")), os.Symlink("deep/er", at("soft")), os.Lchown(at("deep/er/8"), 1234, 4321),
		os.Chmod(at("deep/er/9"), 0o4711), unix.Setxattr(at("deep/er/10"), "user.color", []byte("blue"), 0),
		os.WriteFile(at("holes"), nil, 0o600), os.Truncate(at("holes"), 1<<20), unix.Mkfifo(at("pipe"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
}

// tree is what plant has made, as it is found there.
func tree(t *testing.T, root string, times bool) (all []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(root, "tree"), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %v %d:%d", path[len(root):], info.Mode(), st.Uid, st.Gid)
		if times {
			line += fmt.Sprint(" ", info.ModTime().UTC())
		}
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			color := make([]byte, 10)
			n, _ := unix.Getxattr(path, "user.color", color)
			line += fmt.Sprintf(" %d %x %s", info.Size(), sha256.Sum256(data), color[:max(n, 0)])
		case e.Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + to
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return all
}
