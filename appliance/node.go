package appliance

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/preflight"
	"github.com/multipaas/multipaas/appliance/problem"
	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/embed/gluster"
	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/linklocal"
	"github.com/multipaas/multipaas/modules/machine"
	"github.com/multipaas/multipaas/modules/volume"
	"github.com/multipaas/multipaas/modules/wire"
)

// What a host keeps for itself and does not promise to machines: the kernel,
// the agent, and room for the unpacked payload and images.
const (
	reservedMemory = 512 << 20
	reservedDisk   = 2 << 30
)

// host is a node.
type host struct {
	*base
	machines *machine.Sandbox
	volumes  *volume.Host
	sharing  *sharing
	agent    *agent.Agent
	// canEncrypt is asked once: it may have the kernel look for a module.
	canEncrypt func() error
	troubled   []string // the pools of which checkVolumes has told
}

// errLeft ends a node that is none any more, as was asked for. The unit
// (installer/units) knows its status as the one that nothing is started again after.
var errLeft = cli.Exit("", 3)

// RunNode runs the node until ctx is done. Machines go on running when it
// returns. The error is errLeft when the node was removed from the platform and
// everything of it is gone.
func RunNode(ctx context.Context, cfg Config, version string, log *slog.Logger) error {
	h := &host{base: newBase("node", cfg, version, log), canEncrypt: sync.OnceValue(diskimage.CanEncrypt)}
	h.answers = h
	release, err := h.prepare(ctx, preflight.NodeModules(), preflight.Node(cfg.Paths.Data))
	if err != nil {
		return err
	}
	defer release()
	h.limitMemory(nodeMemory)
	// The machines are there before the agent is, so everything they run from
	// is unpacked first; the graph has only what may fail later.
	log.Info("unpacking the payload")
	if err := h.unpack(ctx, "kube", "runtime", "images"); err != nil {
		return err
	}
	if err := h.boot(); err != nil {
		return err
	}
	err = h.graph.Run(ctx)
	if errors.Is(err, agent.ErrRemoved) && !errors.Is(err, agent.ErrLeftovers) {
		log.Info("this node has left the platform; it may join again")
		return errLeft
	}
	return err
}

// boot makes the parts of a node, in the order in which they start.
func (h *host) boot() error {
	client, err := agent.Open(h.cfg.Paths.Node())
	if err != nil {
		return err
	}
	networks := h.network(nil)
	h.machines = machine.NewSandbox(machine.Config{
		Dir:     h.cfg.Paths.Machines(),
		Images:  h.cfg.Paths.Images(),
		Runc:    h.cfg.Paths.Runc(),
		Payload: h.tree,
		Exited:  func(string) { h.agent.Look() }, // only the agent starts machines
		Look:    lookAtMachines,
		Log:     h.part("machines"),
	})
	h.sharing = newSharing(gluster.HostConfig{
		Dir:     h.cfg.Paths.Storage(),
		Images:  h.cfg.Paths.StorageImages(),
		Runc:    h.cfg.Paths.StorageRunc(),
		Payload: h.tree,
		Address: h.cfg.Address,
		Log:     h.part("storage"),
	}, client.UID(), h.machines.Users)
	h.volumes = volume.New(volume.Config{
		Dir:         h.cfg.Paths.Volumes(),
		Pools:       h.cfg.Paths.Pools(),
		Others:      []string{h.cfg.Paths.Data, h.cfg.Paths.Run},
		Machines:    h.cfg.Paths.Machines(),
		Bricks:      h.sharing.BrickDir(),
		Shared:      sharedMounts{h.sharing},
		Mark:        filepath.Join(h.cfg.Paths.Node(), "pool.json"),
		Fetch:       client.Fetch,
		Tools:       h.machines.Image,
		Encryption:  volume.Encryption{Key: client.VolumeKey, Tools: h.sharing.Image},
		HostUser:    h.machines.HostUser,
		MachineUser: h.machines.UserOf,
		Log:         h.part("volumes"),
	})
	endpoints := linklocal.New(linklocal.Config{
		Images:    filepath.Join(h.tree, "images"),
		Transport: client.Transport(),
		Log:       h.part("endpoints"),
	})
	h.items = func() []status.Item { return append(h.machineItems(), h.volumeItems()...) }
	add(h.graph, "status", &needs{}, h.status)
	n := &needs{}
	add(h.graph, "volumes", &needs{}, h.volumes).of(n)
	h.agent = add(h.graph, "agent", n, agent.New(agent.Config{
		Log:    h.part("agent"),
		Client: client,
		Drivers: slices.Concat(
			[]agent.Driver{agent.Networks(networks), agent.Pools(h.volumes), agent.Volumes(h.volumes)},
			agent.Shared(agent.SharedConfig{
				Log:    h.part("agent"),
				Client: client,
				Host:   h.sharing,
				Bricks: h.volumes,
			}),
			[]agent.Driver{
				agent.Scrubs(&scrubbing{sharing: h.sharing}),
				agent.Machines(agent.MachinesConfig{
					Log:       h.part("agent"),
					Client:    client,
					Networks:  networks,
					Runner:    h.machines,
					Endpoints: endpoints,
				}),
				agent.Mounts(h.sharing),
				agent.Attachments(h.volumes),
				agent.Sends(h.part("agent"), client, h.volumes),
			}),
		Facts: h.facts,
		Heard: endpoints.SetState,
	})).value
	h.addWatches(networks)
	h.own.OnChange(h.agent.Look)
	add(h.graph, "kernel-tables", &needs{}, lifecycle.Func(h.machines.WatchTables(func(err error) {
		h.problems.Update(machine.TablesCrowded, "", err)
	})))
	add(h.graph, "health", &needs{}, h.watchHealth(h.checkDisk, h.checkVolumes))
	return nil
}

// facts is what the host says about itself.
func (h *host) facts() wire.Report {
	rep := wire.Report{
		Address:   h.cfg.Address,
		Addresses: h.own.List(),
		Version:   h.version,
		Kernel:    "unknown",
		OS:        osName(),
	}
	err := h.machines.Supports()
	h.problems.Update(machine.CantRun, "", err)
	if err == nil {
		rep.Drivers = []string{"sandbox", wire.MoveDriver, wire.FileDriver}
		h.problems.Update(machine.UsersShared, "", h.machines.SharedUsers())
		if h.sharing.Supports() == nil {
			rep.Drivers = append(rep.Drivers, wire.StorageDriver, wire.CopyDriver, wire.ScrubDriver, wire.SharedFileDriver)
		}
		if h.machines.OwnUsers() == nil && diskimage.CanShow() == nil { // who has the host's users makes nodes himself
			rep.Drivers = append(rep.Drivers, wire.BlockDriver)
		}
		if h.canEncrypt() == nil {
			rep.Drivers = append(rep.Drivers, wire.EncryptionDriver)
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		rep.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	rep.Capacity.MilliCPU = int64(runtime.NumCPU()) * 1000
	var m unix.Sysinfo_t
	// What storage takes comes and goes with shared volumes. If that can't be known, it is that of none.
	storage, err := h.sharing.Memory()
	if err != nil {
		h.log.Warn("memory of shared volumes", "err", err)
	}
	if unix.Sysinfo(&m) == nil {
		rep.Capacity.MemoryBytes = max(0, int64(m.Totalram)*int64(m.Unit)-reservedMemory-storage)
	}
	var f unix.Statfs_t
	if unix.Statfs(h.cfg.Paths.Data, &f) == nil {
		// What is free now and what machines and volumes have already: their disks
		// are files that grow, so the free space shrinks as they fill. A volume that the
		// server doesn't know, from before the host was given up say, is no room for others. In
		// whole GiB, or every log line would change the node's capacity.
		taken := allocated(h.cfg.Paths.Machines(), f.Fsid, nil) + allocated(h.cfg.Paths.Volumes(), f.Fsid, func(uid string) bool {
			return h.agent.Wants(uid) && !h.volumes.Shares(uid) // blocks that are shared count once
		})
		free := int64(f.Bavail)*f.Bsize + taken - reservedDisk
		rep.Capacity.DiskBytes = max(0, free>>30<<30)
	}
	return rep
}

// checkVolumes looks whether the disks with volumes are there, and how full they are.
func (h *host) checkVolumes(context.Context) {
	told := h.troubled
	h.troubled = nil
	for _, t := range h.volumes.Troubles() {
		h.problems.Update(volume.PoolAway, t.Pool, t.Away)
		h.problems.Update(volume.PoolFilling, t.Pool, t.Filling)
		h.problems.Update(volume.PoolFull, t.Pool, t.Full)
		h.problems.Update(volume.PoolAiling, t.Pool, t.Ailing)
		told = slices.DeleteFunc(told, func(was string) bool { return was == t.Pool })
		h.troubled = append(h.troubled, t.Pool)
	}
	for _, was := range told { // it is none any more
		for _, p := range []problem.Problem{volume.PoolAway, volume.PoolFilling, volume.PoolFull, volume.PoolAiling} {
			h.problems.Update(p, was, nil)
		}
	}
}

// allocated is the disk space that the files in the folders in dir take, which belong to
// machines or volumes, if they are on this file system: volumes may have a disk of their own. Only
// folders whose name is wanted count; nil: all.
func allocated(dir string, on unix.Fsid, wanted func(uid string) bool) (sum int64) {
	var f unix.Statfs_t
	if unix.Statfs(dir, &f) != nil || f.Fsid != on {
		return 0
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
	for _, f := range files {
		if wanted != nil && !wanted(filepath.Base(filepath.Dir(f))) {
			continue
		}
		var st unix.Stat_t
		if unix.Lstat(f, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			sum += st.Blocks * 512
		}
	}
	return sum
}

// osName is what the host calls itself (os-release(5)).
func osName() string {
	data, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(strings.TrimSpace(name), `"`)
		}
	}
	return runtime.GOOS
}

// machineItems are the machines, for the status.
func (h *host) machineItems() []status.Item {
	states, err := h.machines.List(context.Background())
	if err != nil {
		return nil
	}
	var out []status.Item
	for _, m := range states {
		state := "Stopped"
		if m.Running {
			state = "Running"
		}
		out = append(out, status.Item{Kind: "machine", Name: m.Key, State: state, Detail: m.Message})
	}
	return out
}

// volumeItems are the volumes, for the status.
func (h *host) volumeItems() (out []status.Item) {
	seen, err := h.volumes.List()
	if err != nil {
		return nil
	}
	for _, v := range seen {
		state := "Ready"
		switch {
		case !v.Ready && v.Fallen && v.Message == "":
			state = "NotMounted" // as in the trash, say
		case !v.Ready:
			state = "NotReady"
		}
		out = append(out, status.Item{Kind: "volume", Name: cmp.Or(v.Key, v.UID), State: state, Detail: v.Message})
	}
	return out
}
