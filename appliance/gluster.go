package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/paths"
	"github.com/multipaas/multipaas/embed/gluster"
	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// sharing is GlusterFS as the agent drives it: the one's types in the other's, and errors in words
// that tenants may read.
type sharing struct {
	*gluster.Host
	address netip.Addr
	lead    *gluster.Lead
	log     *slog.Logger
	users   func(machine string) (*os.File, uint32, error) // machine.Sandbox.Users
	told    sync.Map                                       // when the log was told of errors, by what everybody is told

	mu     sync.Mutex // of what serves bricks: one thing after the other
	served time.Time  // when that was last seen to be so
	old    atomic.Bool
	server atomic.Value // string: when what was seen then was started
}

// newSharing changes nothing on the host. uid is the node's. users opens the user namespace of a machine, nil if
// it has none of its own.
func newSharing(cfg gluster.HostConfig, uid string, users func(machine string) (*os.File, uint32, error)) *sharing {
	cfg.ID = uid
	h := gluster.NewHost(cfg)
	return &sharing{Host: h, address: cfg.Address, lead: gluster.NewLead(h.Client(), cfg.Address, uid), log: cfg.Log, users: users}
}

// storageTraces are what shared volumes are on a host. Which are wanted, bricks say.
func storageTraces(p paths.Paths) inventory.Traces {
	dirs := []string{p.Storage(), p.StorageRunc(), p.StorageImages()}
	return inventory.Traces{
		Groups: map[string]func(string) inventory.Owner{gluster.Groups: func(string) inventory.Owner { return inventory.Appliance }},
		Trees:  dirs,
		Closed: dirs, // volumes are mounted there, which may not answer
	}
}

// operators ends what is told of an error that is a host's business.
const operators = ": the platform's operator finds more in the log of the host"

// tellEvery is how often the log is told of an error that goes on.
const tellEvery = 10 * time.Minute

// words is an error as everybody may read it. The log has all of it.
func (s *sharing) words(what string, err error) error {
	text, tell := "", false
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		text = "it takes too long; it is tried again"
	case errors.Is(err, gluster.ErrBusy):
		text = "another change is being made; it is tried again"
	case errors.Is(err, gluster.ErrEarly):
		text, tell = "not all hosts that shall have copies are ready for that yet", true
	case errors.Is(err, gluster.ErrAway):
		text, tell = "a host with shared volumes is away, and all have to agree: it waits until that is back, or given up, and "+
			"no volume has a copy there any more", true
	case errors.Is(err, gluster.ErrMissing):
		text, tell = "the hosts with copies know no such volume any more, so it is not made anew"+operators, true
	case errors.Is(err, gluster.ErrHung):
		text, tell = "it does not answer on this host; while a host with copies is being given up, all wait", true
	case errors.Is(err, gluster.ErrAwayBricks):
		text, tell = "too few of its copies can be reached from this host to read or write", true
	default:
		text, tell = "it can't be done now, and is tried again"+operators, true
	}
	if tell {
		at, told := s.told.Load(what + text)
		if !told || time.Since(at.(time.Time)) > tellEvery {
			s.told.Store(what+text, time.Now())
			s.log.Warn(what, "err", err)
		}
	}
	return said{what + ": " + text, err}
}

// said is an error in other words.
type said struct {
	text string
	err  error
}

func (e said) Error() string { return e.text }
func (e said) Unwrap() error { return e.err }

// Supports says why this host can't have shared volumes.
func (s *sharing) Supports() error {
	_, err := os.Stat("/dev/fuse")
	return err
}

func (s *sharing) Trust(id agent.StorageIdentity) error {
	err := s.Host.Trust(gluster.Identity{Cert: id.Certificate, Key: id.Key, CA: id.CA})
	if err == nil {
		err = s.ShareBricks()
	}
	return s.words("storage of the host", err)
}

// serveEvery is for how long what was seen to be served is taken to be so. glusterd and bricks are
// looked after in their container; this is for the container.
const serveEvery = 30 * time.Second

func (s *sharing) Serve(ctx context.Context, renew bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.served) < serveEvery && !(renew && s.old.Load()) {
		return nil
	}
	old, err := s.Ensure(ctx, renew)
	s.old.Store(old)
	if began, errBegan := s.Began(ctx); errBegan == nil && !began.IsZero() {
		s.server.Store(began.UTC().Format(time.RFC3339Nano))
	}
	if err == nil {
		s.served = time.Now()
	}
	return s.words("storage of the host", err)
}

func (s *sharing) Old() bool { return s.old.Load() }

func (s *sharing) Server() string {
	began, _ := s.server.Load().(string)
	return began
}

func (s *sharing) Forget(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = time.Time{}
	return s.words("storage of the host", s.Host.Forget(ctx))
}

func (s *sharing) Clear(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = time.Time{}
	return s.words("storage of the host", s.Host.Clear(ctx))
}

func addresses(peers []wire.Peer) (all []netip.Addr) {
	for _, p := range peers {
		all = append(all, p.Address)
	}
	return all
}

func (s *sharing) Gather(ctx context.Context, peers []wire.Peer) ([]netip.Addr, error) {
	members, err := s.lead.Gather(ctx, addresses(peers))
	return members, s.words("hosts with shared volumes", err)
}

// brickPath is where glusterd finds a brick: modules/volume shows it there.
func brickPath(uid string) string { return path.Join("/bricks", uid, "volume/brick") }

func wanted(v wire.ClusterVolume) gluster.Wanted {
	w := gluster.Wanted{Name: wire.GlusterName(v.UID), Arbiter: v.Arbiter, Hosts: v.Hosts, Made: v.Made, Stopped: v.Stop,
		Look: v.Look}
	for _, b := range v.Bricks {
		one := gluster.WantedBrick{Brick: gluster.Brick{Host: b.Address, Path: brickPath(b.UID)}, Ready: b.Ready, Lost: b.Lost,
			Filling: b.Filling}
		if b.Replaces != "" {
			one.Replaces, one.ReplacesLost = brickPath(b.Replaces), b.ReplacesLost
		}
		w.Bricks = append(w.Bricks, one)
	}
	return w
}

func (s *sharing) Bring(
	ctx context.Context,
	peers []wire.Peer,
	v wire.ClusterVolume,
) (all []wire.ClusterBrickReport, err error) {
	seen, err := s.lead.Bring(ctx, addresses(peers), wanted(v))
	for _, b := range seen {
		all = append(all, wire.ClusterBrickReport{UID: uidOf(b.Brick), Online: b.Online, Heal: b.Pending,
			Looked: b.Looked, Process: b.PID})
	}
	return all, s.words(fmt.Sprintf("shared volume %s", v.Key), err)
}

func (s *sharing) Heal(ctx context.Context, v wire.ClusterVolume) error {
	return s.words(fmt.Sprintf("look at shared volume %s", v.Key), s.lead.Heal(ctx, wire.GlusterName(v.UID)))
}

func (s *sharing) Remove(ctx context.Context, v wire.ClusterVolume) error {
	return s.words(fmt.Sprintf("remove shared volume %s", v.Key), s.lead.Remove(ctx, wanted(v)))
}

func (s *sharing) Mount(ctx context.Context, v wire.Volume, machine string) error {
	return s.words(fmt.Sprintf("mount shared volume %s", v.Key), s.mount(ctx, v, machine))
}

func (s *sharing) mount(ctx context.Context, v wire.Volume, machine string) error {
	var users *gluster.Users
	if v.FirstUID == 0 && machine != wire.ImportMount {
		file, first, err := s.users(machine)
		if err != nil {
			return err
		}
		if file != nil {
			defer file.Close()
			users = &gluster.Users{File: file, First: first, Count: resource.MachineUIDs}
		}
	}
	return s.Host.Mount(ctx, gluster.Mount{Volume: wire.GlusterName(v.UID), Machine: machine}, users, v.Servers)
}

func (s *sharing) Unmount(ctx context.Context, name, machine string) error {
	return s.words("unmount shared volume "+name, s.Host.Unmount(ctx, gluster.Mount{Volume: name, Machine: machine}))
}

func (s *sharing) Mounted() (all []agent.SharedMount, err error) {
	mounted, err := s.Host.Mounted()
	for _, m := range mounted {
		all = append(all, agent.SharedMount{Name: m.Volume, Machine: m.Machine})
	}
	return all, err
}

// sharedMounts are for modules/volume.
type sharedMounts struct{ *sharing }

// mountPatience bounds a look for what is mounted, which asks runc and no file system.
const mountPatience = 10 * time.Second

func (s sharedMounts) Device(volume, machine string) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), mountPatience)
	defer cancel()
	device, err := s.Host.Device(ctx, gluster.Mount{Volume: wire.GlusterName(volume), Machine: machine})
	return device, unmounted(err)
}

func (s sharedMounts) Take(volume, machine string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), mountPatience)
	defer cancel()
	tree, err := s.Host.Take(ctx, gluster.Mount{Volume: wire.GlusterName(volume), Machine: machine})
	return tree, unmounted(err)
}

func unmounted(err error) error {
	if errors.Is(err, gluster.ErrNotMounted) {
		return fs.ErrNotExist
	}
	return err
}
