package gluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestCluster is the life of a volume on three nodes with the real daemons: made, written
// to, a brick killed and healed, a brick replaced, a node lost, forgotten.
func TestCluster(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("run as root: it makes namespaces")
	}
	c := newCluster(t, 3)
	a, b, d := c.nodes[0], c.nodes[1], c.nodes[2]
	for _, n := range []*node{b, d} {
		if err := a.Join(t.Context(), n.address); err != nil {
			t.Fatal(err)
		}
	}
	together := func(n *node, want int) {
		t.Helper()
		wait.For(t, wait.Patience, fmt.Sprintf("%v knows %d others", n.address, want), func(ctx context.Context) error {
			peers, err := n.Peers(ctx)
			peers = slices.DeleteFunc(peers, func(p Peer) bool { return !p.Connected || !p.Member })
			if err == nil && len(peers) != want {
				err = fmt.Errorf("%v", peers)
			}
			return err
		})
	}
	for _, n := range c.nodes {
		together(n, 2)
	}
	if err := a.Join(t.Context(), b.address); err != nil {
		t.Errorf("a member is asked in: %v", err)
	}
	bricks := []Brick{a.brick(t, "one"), b.brick(t, "one"), d.brick(t, "one")}
	options := VolumeOptions([]string{a.name, b.name, d.name})
	options["network.ping-timeout"] = "5"
	if err := a.Create(t.Context(), "two", bricks[:2], false, nil); !errors.Is(err, ErrSplitBrain) {
		t.Errorf("two replicas: %v, want ErrSplitBrain", err)
	}
	for _, n := range c.nodes { // where an image would be
		if err := os.Mkdir(filepath.Join(n.BrickDir(), "none"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for what, bad := range map[string]func() error{
		"a name that is an option": func() error { return a.Create(t.Context(), "--help", bricks, false, nil) },
		"a path that leads away": func() error {
			return a.Create(t.Context(), "v", []Brick{{Host: a.address, Path: "/bricks/../etc"}}, false, nil)
		},
		"a brick whose file system isn't mounted": func() error {
			return a.Create(t.Context(), "v", []Brick{{Host: a.address, Path: "/bricks/none/volume/brick"}}, false, nil)
		},
		"an option that there isn't": func() error {
			return a.Create(t.Context(), "odd", []Brick{a.brick(t, "odd")}, false, map[string]string{"no.such": "1"})
		},
		"an option that is one of the command": func() error {
			return a.Create(t.Context(), "odd", []Brick{{Host: a.address, Path: "/bricks/odd/volume/brick"}}, false, map[string]string{"auth.allow": "--remote-host=x"})
		},
	} {
		if bad() == nil {
			t.Errorf("%s was taken", what)
		}
	}
	if err := a.Remove(t.Context(), "odd"); err != nil {
		t.Error(err)
	}
	// One that fails at the last host has marked the bricks of the others.
	if err := a.Create(t.Context(), "v1", []Brick{bricks[0], bricks[1], {Host: d.address, Path: "/bricks/none/volume/brick"}}, false, nil); err == nil {
		t.Error("a volume with a brick whose file system isn't mounted was made")
	}
	for range 2 {
		if err := a.Create(t.Context(), "v1", bricks, false, options); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Create(t.Context(), "v1", []Brick{bricks[0]}, false, options); err == nil {
		t.Error("one with other bricks was taken")
	}
	for _, within := range []Brick{bricks[1], {Host: b.address, Path: bricks[1].Path + "/within"}} {
		if err := b.Create(t.Context(), "v2", []Brick{within}, false, nil); err == nil {
			t.Errorf("another volume has brick %v", within)
		}
	}
	v, err := d.Volume(t.Context(), "v1")
	if err != nil || !v.Started || v.Arbiter || len(v.ID) != 36 || !slices.Equal(v.Bricks, bricks) || v.Options["network.ping-timeout"] != "5" {
		t.Errorf("it is %+v, %v", v, err)
	}
	if _, err := a.Volume(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("none: %v", err)
	}

	servers := []netip.Addr{a.address, b.address}
	m := Mount{"v1", "m0"}
	if err := a.Mount(t.Context(), m, nil, servers); err != nil {
		t.Fatal(err)
	}
	a.show(t, m)
	write := func(name string) {
		t.Helper()
		wait.For(t, wait.Patience, "a write", func(context.Context) error {
			f, err := os.Create(filepath.Join(a.seen(m), name))
			if err != nil {
				return err
			}
			_, err = f.Write(make([]byte, 1<<20))
			return errors.Join(err, f.Sync(), f.Close())
		})
	}
	write("first")
	online := func(from *node, want int) (on []BrickState) {
		t.Helper()
		wait.For(t, wait.Patience, fmt.Sprintf("%d bricks are online", want), func(ctx context.Context) error {
			all, err := from.Bricks(ctx, "v1")
			on = slices.DeleteFunc(all, func(b BrickState) bool { return !b.Online })
			if err == nil && len(on) != want {
				err = fmt.Errorf("%+v", all)
			}
			return err
		})
		return on
	}
	if on := online(a, 3); on[0].Total < 200<<20 || on[0].Free <= 0 || on[0].Free > on[0].Total || on[0].PID == 0 {
		t.Errorf("a brick is %+v", on[0])
	}

	testOutlives(t, a, m, bricks[0], servers)
	testMounts(t, a, m, servers)
	testUsers(t, a, "v1", bricks[0], servers)
	testStrangers(t, c, m, servers)

	// A brick is killed; what it misses is known, and it gets it.
	for _, s := range online(b, 3) {
		if s.Brick == bricks[1] {
			b.must(t, "kill", "-9", strconv.Itoa(s.PID))
		}
	}
	online(a, 2)
	write("second")
	testLead(t, a, Wanted{Name: "v1", Hosts: []string{a.name, b.name, d.name}, Made: true, Bricks: []WantedBrick{{Brick: bricks[0], Ready: true},
		{Brick: bricks[1], Ready: true}, {Brick: bricks[2], Ready: true}}})
	healed := func(from *node, wantPending bool) {
		t.Helper()
		wait.For(t, wait.Patience, fmt.Sprintf("something to heal: %v", wantPending), func(ctx context.Context) error {
			all, err := from.Healing(ctx, "v1")
			if err != nil {
				return err
			}
			pending, connected := int64(0), 0
			for _, h := range all {
				pending += h.Pending
				if h.Connected {
					connected++
				}
				if h.SplitBrain > 0 {
					t.Errorf("split brain: %+v", h)
				}
			}
			if wantPending != (pending > 0) || !wantPending && connected < len(all) {
				return fmt.Errorf("%+v", all)
			}
			return nil
		})
	}
	online(a, 3)
	healed(a, false)
	same := func(name string, on *node, brick Brick) {
		t.Helper()
		got, err1 := os.ReadFile(on.in(brick, name))
		want, err2 := os.ReadFile(a.in(bricks[0], name))
		if err := errors.Join(err1, err2); err != nil || string(got) != string(want) || len(got) != 1<<20 {
			t.Errorf("%s on %v: %d bytes, %v", name, brick, len(got), err)
		}
	}
	same("second", b, bricks[1])

	// Another brick for one of the third node.
	fresh := d.brick(t, "fresh")
	for range 2 {
		if err := b.Replace(t.Context(), "v1", bricks[2], fresh); err != nil {
			t.Fatal(err)
		}
	}
	// Bricks share a process: the new one is sometimes attached to that of the old one, which
	// ends. Who keeps a volume starts what of it is down.
	wait.For(t, wait.Patience, "3 bricks are online once one was replaced", func(ctx context.Context) error {
		all, err := a.Bricks(ctx, "v1")
		if err != nil || len(all) == 3 && !slices.ContainsFunc(all, func(b BrickState) bool { return !b.Online }) {
			return err
		}
		return errors.Join(fmt.Errorf("%+v", all), a.StartBricks(ctx, "v1"))
	})
	wait.For(t, wait.Patience, "the new brick has all", func(ctx context.Context) error {
		return errors.Join(a.HealAll(ctx, "v1"), has(d.in(fresh, "first")), has(d.in(fresh, "second")))
	})
	healed(a, false)
	same("first", d, fresh)

	if long {
		testArbiter(t, a, b, d)
	}
	testAway(t, c, bricks[0], write, together)
}

// long has what takes more than some seconds tried, too.
var long = os.Getenv("MULTIPAAS_LONG") != ""

// testArbiter: a volume with an arbiter; a brick that isn't mounted is no place for what is in another.
func testArbiter(t *testing.T, a, b, d *node) {
	withArbiter := []Brick{a.brick(t, "two"), b.brick(t, "two"), d.brick(t, "two")}
	for range 2 {
		if err := a.Create(t.Context(), "v2", withArbiter, true, nil); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := b.Volume(t.Context(), "v2"); err != nil || !v.Arbiter || !slices.Equal(v.Bricks, withArbiter) {
		t.Errorf("with an arbiter it is %+v, %v", v, err)
	}
	if err := a.Replace(t.Context(), "v2", withArbiter[1], Brick{Host: b.address, Path: "/bricks/none/volume/brick"}); err == nil {
		t.Error("a brick is replaced by a folder beside its file system")
	}
	for _, want := range []int{3, 0} {
		all, err := b.AllBricks(t.Context())
		if err != nil || len(all["v1"]) != 3 || len(all["v2"]) != want {
			t.Errorf("all bricks, %d of v2: %+v, %v", want, all, err)
		}
		if want > 0 {
			a.must(t, "/usr/sbin/gluster", "--mode=script", "volume", "stop", "v2", "force")
		}
	}
	if err := a.Remove(t.Context(), "v2"); err != nil {
		t.Error(err)
	}

}

// testAway: a node that has a brick of volume v1 can't be forgotten; without a brick it can, though it is gone.
func testAway(t *testing.T, c *cluster, first Brick, write func(string), together func(*node, int)) {
	a, b, d := c.nodes[0], c.nodes[1], c.nodes[2]
	d.off()
	missed := func() {
		t.Helper()
		wait.For(t, wait.Patience, "the others miss it", func(ctx context.Context) error {
			peers, err := a.Peers(ctx)
			if err == nil && !slices.ContainsFunc(peers, func(p Peer) bool { return p.Host == d.address && !p.Connected }) {
				err = fmt.Errorf("%+v", peers)
			}
			return err
		})
	}
	missed()
	write("third") // two of three go on
	var refused *Error
	if err := a.Leave(t.Context(), d.address); !errors.As(err, &refused) || !strings.Contains(refused.Text, "brick") {
		t.Errorf("a node with a brick leaves: %v", err)
	}
	if err := a.Unmount(t.Context(), Mount{"v1", "m0"}); err != nil {
		t.Error(err)
	}
	if err := a.Remove(t.Context(), "v1"); !errors.Is(err, ErrAway) {
		t.Errorf("a volume goes while a node is away: %v", err)
	}
	if !long {
		return
	}
	a.must(t, "/usr/sbin/gluster", "--mode=script", "volume", "stop", "v1", "force") // as if it had been cut off there
	d.start(t)
	together(a, 2)
	wait.For(t, wait.Patience, "the volume goes", func(ctx context.Context) error { return a.Remove(ctx, "v1") })
	if err := a.Remove(t.Context(), "v1"); err != nil {
		t.Errorf("no volume is removed: %v", err)
	}
	d.off()
	missed()
	for range 2 {
		if err := a.Leave(t.Context(), d.address); err != nil {
			t.Fatal(err)
		}
	}
	together(a, 1)
	if all, err := b.Volumes(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("volumes left: %+v, %v", all, err)
	}
	if err := has(a.in(first, "third")); err != nil {
		t.Errorf("a volume that was forgotten lost what was in its bricks: %v", err)
	}
}

// testLead: a volume with a brick that was killed and has missed something is brought back, while nobody waits for what there is to heal.
func testLead(t *testing.T, n *node, v Wanted) {
	t.Helper()
	asked, answer := make(chan struct{}), make(chan struct{})
	slow := Client{Run: func(ctx context.Context, args ...string) ([]byte, error) {
		if slices.Contains(args, "heal") {
			select {
			case asked <- struct{}{}:
				<-answer
			case <-answer:
			}
		}
		return n.Client.Run(ctx, args...)
	}}
	l := NewLead(slow, n.address, n.name)
	if err := l.Heal(t.Context(), v.Name); err != nil { // before it was seen nobody is asked
		t.Error(err)
	}
	bring := func() []SeenBrick {
		t.Helper()
		seen, err := l.Bring(t.Context(), nil, v)
		if err != nil || len(seen) != len(v.Bricks) {
			t.Fatalf("it has %+v, %v", seen, err)
		}
		return seen
	}
	if seen := bring(); seen[1].Online || seen[0].Pending != -1 {
		t.Errorf("with a brick that was killed it is %+v", seen)
	}
	healed := make(chan error, 1)
	go func() { healed <- l.Heal(t.Context(), v.Name) }()
	<-asked
	wait.For(t, wait.Patience, "the brick is back while nobody answers what is to be healed", func(context.Context) error {
		if seen := bring(); !seen[1].Online || seen[0].Pending != -1 {
			l.changed()
			return fmt.Errorf("%+v", seen)
		}
		return nil
	})
	close(answer)
	if err := <-healed; err != nil {
		t.Error(err)
	}
	if seen := bring(); seen[0].Pending != -1 {
		t.Errorf("what was asked before it was back counts: %+v", seen)
	}
	wait.For(t, wait.Patience, "all is healed", func(ctx context.Context) error {
		if err := l.Heal(ctx, v.Name); err != nil {
			return err
		}
		if seen := bring(); slices.ContainsFunc(seen, func(b SeenBrick) bool { return b.Pending != 0 }) {
			l.muHeals.Lock()
			defer l.muHeals.Unlock()
			h := l.heals[v.Name]
			h.again = time.Time{}
			l.heals[v.Name] = h
			return fmt.Errorf("%+v", seen)
		}
		return nil
	})
}

// has says that a file there has what was written to it.
func has(name string) error {
	info, err := os.Stat(name)
	if err == nil && info.Size() != 1<<20 {
		err = fmt.Errorf("%s has %d bytes", name, info.Size())
	}
	return err
}
