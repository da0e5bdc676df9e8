package storage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/embed/gluster"
	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/wait"
)

const (
	hand = "GlusterFS by hand"

	// What shared volumes were to have of GlusterFS by hand, as said before they were built.
	sharedGoal    = 0.97
	sharedRounds  = 3
	sharedSeconds = 4
	brickBytes    = 3 << 30

	healRounds = 2

	many           = 100              // volumes of one host
	startGoal      = 60 * time.Second // of so many
	atOnce         = 4                // that a host makes, as the agent has it
	memoryGoal     = 15               // MB
	manyBrickBytes = diskimage.MinXFS
	filesOfBrick   = 270 // that the process of all bricks has open, 256 of them folders
)

func (b *bench) rounds(n int) int {
	if b.Quick {
		return 1
	}
	return n
}

// missed is how many MiB a host misses.
func (b *bench) missed() int {
	if b.Quick {
		return 64
	}
	return 1 << 10
}

// measure measures all there is on the hosts.
func (b *bench) measure(ctx context.Context) (results []measure.Result, err error) {
	for _, copies := range []int{1, hosts} {
		name := fmt.Sprintf("c%d", copies)
		ours, err := b.make(ctx, "ours-"+name, copies, (*host).ours, b.mountOurs)
		if err != nil {
			return results, err
		}
		peer, err := b.make(ctx, "hand-"+name, copies, (*host).byHand, b.mountByHand)
		if err != nil {
			return results, err
		}
		more, err := b.rates(ctx, copies, ours, peer)
		results = append(results, more...)
		if err == nil && copies == hosts {
			var healed measure.Result
			if healed, err = b.heal(ctx, ours, peer); err == nil {
				results = append(results, healed)
			}
		}
		if err != nil {
			return results, err
		}
	}
	more, err := b.crowd(ctx)
	return append(results, more...), err
}

// make makes a volume and mounts it on the first host.
func (b *bench) make(
	ctx context.Context, name string, copies int,
	brick func(*host, context.Context, string, int64) (gluster.Brick, error),
	mount func(ctx context.Context, volume string) (place, error),
) (place, error) {
	var bricks []gluster.Brick
	var names []string
	for i, h := range b.hosts {
		names = append(names, h.name)
		if i < copies {
			one, err := brick(h, ctx, name, brickBytes)
			if err != nil {
				return place{}, fmt.Errorf("brick of %s: %w", name, err)
			}
			bricks = append(bricks, one)
		}
	}
	if err := b.hosts[0].Client().Create(ctx, name, bricks, false, gluster.VolumeOptions(names)); err != nil {
		return place{}, err
	}
	p, err := mount(ctx, name)
	p.volume, p.bricks = name, bricks
	return p, err
}

// mountOurs mounts a volume as for a machine of ours, and shows it.
func (b *bench) mountOurs(ctx context.Context, volume string) (place, error) {
	h, m := b.hosts[0], gluster.Mount{Volume: volume, Machine: "m1"}
	p := place{dir: filepath.Join(b.Dir, "at-"+volume),
		enter: []string{"nsenter", fmt.Sprintf("--user=/proc/%d/fd/%d", os.Getpid(), b.users.Fd()), "--"}}
	if err := h.Mount(ctx, m, b.machine(), b.addresses()); err != nil {
		return p, err
	}
	tree, err := h.Take(ctx, m)
	if err != nil {
		return p, err
	}
	defer tree.Close()
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		return p, err
	}
	return p, unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, p.dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (b *bench) machine() *gluster.Users {
	return &gluster.Users{File: b.users, First: machineUID, Count: 1 << 16}
}

// mountByHand mounts a volume as one types it, with the client of the same Debian.
func (b *bench) mountByHand(ctx context.Context, volume string) (place, error) {
	h := b.hosts[0]
	root := filepath.Join(b.Dir, "root-"+volume)
	p := place{dir: filepath.Join(root, "mnt")}
	image, err := h.Image(ctx)
	if err != nil {
		return p, err
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		return p, err
	}
	for _, m := range []struct{ from, to, kind string }{
		{image, "", ""}, {filepath.Join(h.dir, "data", "etc"), "etc/multipaas", ""},
		{"/dev", "dev", ""}, {"proc", "proc", "proc"},
		{"tmpfs", "run", "tmpfs"}, {"tmpfs", "tmp", "tmpfs"}, {"tmpfs", "var/log", "tmpfs"}, {"tmpfs", "mnt", "tmpfs"},
	} {
		flags := uintptr(0)
		if m.kind == "" {
			flags = unix.MS_BIND
		}
		if err := unix.Mount(m.from, filepath.Join(root, m.to), m.kind, flags, ""); err != nil {
			return p, fmt.Errorf("mount %s at %s: %w", m.from, m.to, err)
		}
	}
	out, err := exec.CommandContext(ctx, "nsenter", "--net="+h.ns.Path(), "chroot", root, "/usr/sbin/glusterfs",
		"--process-name=fuse", "--direct-io-mode=disable", "--log-level=WARNING", "--log-file=/var/log/client.log",
		"--volfile-server="+h.address.String(), "--volfile-id="+volume, "/mnt").CombinedOutput()
	if err != nil {
		return p, fmt.Errorf("mount %s by hand: %w: %s", volume, err, out)
	}
	return p, nil
}

// rates are what programs get of both.
func (b *bench) rates(ctx context.Context, copies int, ours, peer place) (results []measure.Result, err error) {
	text := "shared, 1 copy"
	if copies > 1 {
		text = fmt.Sprintf("shared, %d copies", copies)
	}
	for _, c := range cases {
		b.logf("%s: %s", text, c.name)
		contender := func(name string, p place) measure.Contender {
			return measure.Contender{Name: name, Measure: func(ctx context.Context) (measure.Sample, error) {
				return fio(ctx, p, "512M", sharedSeconds, c.args, c.unit)
			}}
		}
		stats, err := measure.Alternate(ctx, b.rounds(sharedRounds), contender("ours", ours), contender(hand, peer))
		if err != nil {
			return results, fmt.Errorf("%s: %s: %w", text, c.name, err)
		}
		results = append(results, measure.Result{Name: "storage/" + text + "/" + c.name, Unit: c.unit, Better: measure.Higher,
			Ours: stats["ours"]["rate"], Peer: hand, PeerStat: stats[hand]["rate"], Goal: measure.Goal{Ratio: sharedGoal}})
	}
	for _, p := range []place{ours, peer} {
		if out, err := p.command(ctx, "rm", filepath.Join(p.dir, "file")).CombinedOutput(); err != nil {
			return results, fmt.Errorf("%w: %s", err, out)
		}
	}
	return results, nil
}

// heal is how long a host takes to get what it has missed: ours by itself, as it comes back; by hand
// it is asked to as soon as it answers.
func (b *bench) heal(ctx context.Context, ours, peer place) (measure.Result, error) {
	b.logf("heal of %d MiB", b.missed())
	round := 0
	contender := func(name string, p place, ask bool) measure.Contender {
		return measure.Contender{Name: name, Measure: func(ctx context.Context) (measure.Sample, error) {
			round++
			took, err := b.miss(ctx, p, fmt.Sprintf("missed%d", round), ask)
			return measure.Sample{"s": took.Seconds()}, err
		}}
	}
	stats, err := measure.Alternate(ctx, b.rounds(healRounds), contender("ours", ours, false), contender(hand, peer, true))
	return measure.Result{Name: fmt.Sprintf("storage/shared, heal of %d MiB", b.missed()), Unit: "s", Better: measure.Lower,
		Ours: stats["ours"]["s"], Peer: hand, PeerStat: stats[hand]["s"],
		Note: "from the return of the host that has missed it until nothing is to be healed"}, err
}

// miss writes while the last host is off, switches it on, and waits until it has all.
func (b *bench) miss(ctx context.Context, p place, file string, ask bool) (time.Duration, error) {
	away := b.hosts[len(b.hosts)-1]
	if err := away.Stop(ctx); err != nil {
		return 0, err
	}
	out, err := p.command(ctx, "dd", "if=/dev/urandom", "of="+filepath.Join(p.dir, file), "bs=1M",
		fmt.Sprintf("count=%d", b.missed()), "conv=fsync").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("write while a host is off: %w: %s", err, out)
	}
	if _, err := away.Ensure(ctx, false); err != nil {
		return 0, err
	}
	began := time.Now()
	asked := !ask
	err = wait.Until(ctx, 2*patience, "it is healed", func(ctx context.Context) error {
		if !asked { // refused until the daemons that heal are there
			if _, err := b.hosts[0].Client().Run(ctx, "--mode=script", "volume", "heal", p.volume); err != nil {
				return err
			}
			asked = true
		}
		return b.healed(p)
	})
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	for _, brick := range p.bricks {
		info, err := os.Stat(filepath.Join(b.at(brick), file))
		var st unix.Statfs_t
		if err != nil || info.Size() != int64(b.missed())<<20 || unix.Statfs(b.at(brick), &st) != nil {
			return 0, fmt.Errorf("brick %v isn't healed: %w", brick, err)
		}
	}
	out, err = p.command(ctx, "rm", filepath.Join(p.dir, file)).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return took, nil
}

// at is where we see a brick.
func (b *bench) at(brick gluster.Brick) string {
	for _, h := range b.hosts {
		if h.address == brick.Host {
			return filepath.Join(h.dir, "data", brick.Path)
		}
	}
	return ""
}

// healed looks where bricks note what others lack, which costs nothing: to ask is a client more.
func (b *bench) healed(p place) error {
	for _, brick := range p.bricks {
		entries, err := os.ReadDir(filepath.Join(b.at(brick), ".glusterfs/indices/xattrop"))
		if err != nil {
			return err
		}
		if len(entries) > 1 { // one is the folder's own
			return fmt.Errorf("%d files are to be healed", len(entries)-1)
		}
	}
	return nil
}

// crowd is a host that has many volumes: what one takes, and how long all need to be there after the host was off.
func (b *bench) crowd(ctx context.Context) (results []measure.Result, err error) {
	h, count := b.hosts[0], many
	if b.Quick {
		count = 5
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	// The node's unit has a million.
	count = int(min(uint64(count), files.Max/filesOfBrick))
	b.logf("%d volumes of one host", count)
	before, err := h.memory()
	if err != nil {
		return nil, err
	}
	name := func(i int) string { return fmt.Sprintf("many-%d", i) }
	began := time.Now()
	for i := range count {
		brick, err := h.ours(ctx, name(i), manyBrickBytes)
		if err == nil {
			err = h.Client().Create(ctx, name(i), []gluster.Brick{brick}, false, gluster.VolumeOptions([]string{h.name}))
		}
		if err != nil {
			return nil, err
		}
	}
	b.logf("they were made in %.0f s", time.Since(began).Seconds())
	mount := func(ctx context.Context, i int) error {
		return wait.Until(ctx, patience, "a volume answers", func(ctx context.Context) error {
			// Its brick may be the last to be started.
			return h.Mount(ctx, gluster.Mount{Volume: name(i), Machine: "m1"}, b.machine(), b.addresses())
		})
	}
	if err := each(ctx, count, mount); err != nil {
		return nil, err
	}
	after, err := h.memory()
	if err != nil {
		return nil, err
	}
	results = append(results, measure.Result{Name: "storage/shared, memory of an idle volume", Unit: "MB", Better: measure.Lower,
		Ours: measure.Summarize((after - before) / float64(count) / 1e6), Goal: measure.Goal{Value: memoryGoal},
		Note: fmt.Sprintf("Pss per host with a brick and a mount of each of %d; glusterd alone and what else there was is %.0f MB",
			count, before/1e6)})

	if err := cgroup.KillAll(ctx, h.group); err != nil { // as a power cut
		return results, err
	}
	for i := range count {
		if err := unix.Unmount(h.image(name(i)).Mount, 0); err != nil {
			return results, err
		}
	}
	began = time.Now()
	err = each(ctx, count, func(ctx context.Context, i int) error {
		_, err := h.ours(ctx, name(i), 0)
		return err
	})
	if err == nil {
		_, err = h.Ensure(ctx, false)
	}
	if err == nil {
		err = each(ctx, count, mount)
	}
	if err == nil {
		results = append(results, measure.Result{Name: fmt.Sprintf("storage/shared, %d volumes of a host start", count), Unit: "s",
			Better: measure.Lower, Ours: measure.Summarize(time.Since(began).Seconds()), Goal: measure.Goal{Value: startGoal.Seconds()},
			Note: "images mounted, bricks served, each mounted for a machine"})
	}
	return results, err
}

// memory is the Pss of all that runs for storage on a host, in bytes.
func (h *host) memory() (float64, error) {
	pids, err := cgroup.Procs(h.group)
	if err != nil {
		return 0, err
	}
	m, err := measure.MemoryOfEach(pids...)
	return float64(m.Proportional), err
}

// each does something count times, as many at once as an agent does.
func each(ctx context.Context, count int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for i := range count {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}
