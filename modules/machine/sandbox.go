package machine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/appliance/runc"
	"github.com/multipaas/multipaas/modules/wire"
)

// Config says where things are.
type Config struct {
	Dir     string // a folder for each machine; survives a reboot
	Images  string // unpacked root file systems; survives a reboot
	Runc    string // runc's state; does not survive a reboot
	Payload string // the payload: kube/VERSION/kube, runtime/*, images/*
	// Exited is called when a machine that ran has ended, not because of Remove.
	// It must not block.
	Exited func(uid string)
	// Look is a command that calls the function Look with args and its standard output.
	Look func(args []string) *exec.Cmd
	Log  *slog.Logger
}

func (c Config) payload(elem ...string) string {
	return filepath.Join(append([]string{c.Payload}, elem...)...)
}

// Sandbox is the driver that runs machines as containers of this host: own
// namespaces, own control group, own disk, started by runc. A machine's
// processes are not our children: they stay when we go.
type Sandbox struct {
	cfg    Config
	runc   runc.Runc
	images rootfs.Store

	trying  sync.Mutex
	tried   bool // whether machines can have users of their own
	noUsers error

	mu      sync.Mutex
	watched map[string]process // first of each machine that is watched, by UID

	looking   sync.Map // UIDs of machines that keep who looks at them waiting
	quiet     sync.Map // UIDs of machines, and how many looks in a row were not heard of
	uncounted sync.Map // names of tables that the kernel does not count for us: it was said
}

// NewSandbox changes nothing on the host.
func NewSandbox(cfg Config) *Sandbox {
	return &Sandbox{cfg: cfg,
		runc:    runc.Runc{Binary: cfg.payload("runtime", "runc"), Root: cfg.Runc},
		images:  rootfs.Store{Dir: cfg.Images},
		watched: map[string]process{}}
}

// Traces are what machines are on a host, kept as cfg says.
func Traces(cfg Config) inventory.Traces {
	return inventory.Traces{
		Folders: []inventory.OwnedFolder{
			// What is below, a whole Debian among it, is the machine's.
			{Dir: cfg.Dir, Owner: inventory.Machine, HalfWritten: true},
			{Dir: cfg.Runc, Owner: inventory.Machine},
		},
		Groups: map[string]func(string) inventory.Owner{groups: inventory.Machine},
		Trees:  []string{cfg.Images},
		Closed: []string{cfg.Dir, cfg.Runc, cfg.Images},
	}
}

// home is the folder of a machine's things on the host. DESIGN.md has what stands
// in it: what is in disk is bounded by the machine's size.
type home string

func (h home) at(name string) string { return filepath.Join(string(h), name) }

func (h home) disk() diskimage.Image {
	return diskimage.Image{File: h.at("disk.img"), Mount: h.at("disk")}
}

func (s *Sandbox) home(uid string) home { return home(filepath.Join(s.cfg.Dir, uid)) }

// record is what is kept of a machine beside its disk.
type record struct {
	Machine wire.Machine `json:"machine"`
	Starts  int          `json:"starts"`
}

func readRecord(file string) (record, error) {
	var r record
	data, err := readBounded(file, 1<<20)
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(data, &r)
}

// Files of a machine's home.
const (
	recordName  = "machine.json"
	consoleName = "disk/console.log"
)

// groups is the control group that those of all machines are in.
const groups = "machines"

// cgroupName is a machine's control group, below ours.
func cgroupName(uid string) string { return groups + "/" + uid }

// Ensure makes the machine run as m says, in the network namespace with this
// file, and returns once its first process runs. One that runs is adopted,
// whoever started it; its files are brought up to date. One that stopped is
// started on the disk it had. Calls for different machines may be concurrent, those
// for one, of Remove too, follow one another.
func (s *Sandbox) Ensure(ctx context.Context, m wire.Machine, netns string, keys wire.MachineKeyPairs) error {
	spec := order{Machine: m, netns: netns, keys: keys}
	err := spec.check()
	if err == nil {
		err = s.ensure(ctx, spec)
	}
	if err != nil {
		return fmt.Errorf("machine %s: %w", spec.Name, err)
	}
	return nil
}

func (s *Sandbox) ensure(ctx context.Context, spec order) error {
	m := s.home(spec.UID)
	first := int(spec.Machine.Spec.FirstUID)
	// Root in the machine passes through on the way to its root file system.
	if err := cmp.Or(os.MkdirAll(string(m), 0o710), os.Chmod(s.cfg.Dir, 0o711), os.Chown(string(m), 0, first)); err != nil {
		return err
	}
	// A record that can't be read is made anew: it holds nothing that is lost.
	rec, _ := readRecord(m.at(recordName))
	rec.Machine = spec.Machine
	if err := atomicfile.WriteJSON(m.at(recordName), rec); err != nil {
		return err
	}
	mtu, err := linkMTU(spec.netns)
	if err != nil {
		return err
	}
	failpoint.Reach("machine/start/recorded")
	if err := writeConfig(spec, m.at("config"), mtu); err != nil {
		return err
	}
	c, ok, err := s.runc.State(ctx, spec.UID)
	if err != nil {
		return err
	}
	if ok && c.Running() {
		same, err := c.InNetwork(spec.netns)
		if err != nil {
			return err
		}
		if same {
			return s.watch(spec.UID, c.PID)
		}
		s.cfg.Log.Warn("machine is in a network namespace that is no more; starting it again", "machine", spec.Name)
	}
	if err := s.end(ctx, spec.UID); err != nil {
		return err
	}
	owner, err := openOwner(spec.netns, first)
	if err != nil {
		return err
	}
	defer owner.Close() // nil has none
	if err := s.prepare(ctx, spec, m, owner); err != nil {
		return err
	}
	failpoint.Reach("machine/start/bundle-written")
	began := time.Now()
	if err := s.runc.Start(ctx, spec.UID, m.at("bundle"), m.at(consoleName)); err != nil {
		return errors.Join(err, s.end(context.WithoutCancel(ctx), spec.UID))
	}
	failpoint.Reach("machine/start/container-running")
	rec.Starts++
	if err := atomicfile.WriteJSON(m.at(recordName), rec); err != nil {
		return err
	}
	s.cfg.Log.Info("machine started", "machine", spec.Name, "uid", spec.UID, "start", rec.Starts, "took", time.Since(began).Round(time.Millisecond))
	c, _, err = s.runc.State(ctx, spec.UID)
	if err != nil {
		return err
	}
	return s.watch(spec.UID, c.PID)
}

// prepare makes everything that a start needs, or finds it there.
func (s *Sandbox) prepare(ctx context.Context, spec order, m home, owner *os.File) error {
	first := int(spec.Machine.Spec.FirstUID)
	if first == 0 { // in a user namespace kubelet does without
		if err := tuneKernel(); err != nil {
			return err
		}
	}
	if err := emptyNamespace(spec.netns); err != nil {
		return err
	}
	image, err := s.Image(ctx)
	if err != nil {
		return err
	}
	if err := m.disk().Ensure(ctx, spec.Machine.Spec.Size.DiskBytes, image); err != nil {
		return err
	}
	failpoint.Reach("machine/start/disk-mounted")
	for _, dir := range []string{"disk/containerd", "disk/kubelet", "disk/log", "disk/upper"} {
		if err := errors.Join(os.MkdirAll(m.at(dir), 0o755), os.Chown(m.at(dir), first, first)); err != nil {
			return err
		}
	}
	// The payload may have moved to a newer image since the last start, so the
	// root is mounted anew each time.
	for _, name := range []string{"root", "image", stateDir} {
		if err := hostmount.Unmount(m.at(name)); err != nil {
			return err
		}
	}
	err = hostmount.Do(func() error {
		if err := cmp.Or(makeState(m, first), makeVolumes(m, first)); err != nil {
			return err
		}
		if owner != nil {
			if err := mountMapped(image, m.at("image"), owner); err != nil {
				return err
			}
			image = m.at("image")
		}
		return mountRoot(image, m.at("disk/upper"), m.at("disk/work"), m.at("root"))
	})
	if err != nil {
		return err
	}
	failpoint.Reach("machine/start/root-mounted")
	s.pruneImages() // this machine may have been the last on a former one
	cgroupsPath, err := cgroup.Path(cgroupName(spec.UID))
	if err != nil {
		return err
	}
	// Makes the parents pass their controllers on.
	g, err := cgroup.Create(cgroupName(spec.UID))
	if err != nil {
		return err
	}
	if first != 0 {
		err = g.Delegate(first)
	}
	if err := errors.Join(err, g.Close()); err != nil {
		return err
	}
	failpoint.Reach("machine/start/group-made")
	if err := os.MkdirAll(m.at("bundle"), 0o700); err != nil {
		return err
	}
	b, err := s.bundle(spec, m, cgroupsPath, owner)
	if err != nil {
		return err
	}
	return atomicfile.WriteJSON(m.at("bundle/config.json"), b)
}

// Image is the machines' root file system, unpacked, in which there are tools. It blocks for
// seconds the first time.
func (s *Sandbox) Image(ctx context.Context) (root string, err error) {
	return s.images.Unpack(ctx, s.cfg.payload("images", "machine"))
}

func (s *Sandbox) pruneImages() {
	if err := s.images.Prune(s.cfg.payload("images", "machine")); err != nil {
		s.cfg.Log.Warn("remove unused images", "err", err)
	}
}

// end ends every process of the machine and forgets the container.
func (s *Sandbox) end(ctx context.Context, uid string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	s.unwatch(uid)
	// All at once, and whether runc knows the container or not: its state may be
	// lost, and processes that are not of its making live in its group.
	if err := s.kill(ctx, uid); err != nil {
		return err
	}
	failpoint.Reach("machine/remove/processes-ended")
	if _, err := os.Stat(filepath.Join(s.cfg.Runc, uid)); err == nil {
		if err := s.runc.Delete(ctx, uid); err != nil {
			return err
		}
	}
	failpoint.Reach("machine/remove/container-deleted")
	return cgroup.Kill(ctx, cgroupName(uid))
}

// Remove ends the machine and takes everything of it away, from whatever state
// it is in. None there is no error.
func (s *Sandbox) Remove(ctx context.Context, uid string) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	if err := s.remove(ctx, uid); err != nil {
		return fmt.Errorf("remove machine %s: %w", uid, err)
	}
	return nil
}

func (s *Sandbox) remove(ctx context.Context, uid string) error {
	// Its disk goes, so it needs no time to stop.
	if err := s.end(ctx, uid); err != nil {
		return err
	}
	m := s.home(uid)
	if err := hostmount.Unmount(string(m)); err != nil {
		return err
	}
	if err := diskimage.AwaitFree(ctx, m.disk().File); err != nil {
		return err
	}
	failpoint.Reach("machine/remove/unmounted")
	// The folder last: as long as it is there, List shows the machine.
	if left, err := hostmount.Below(string(m)); err != nil || len(left) > 0 {
		return fmt.Errorf("still mounted: %v: %w", left, err)
	}
	// What was below is not the machine's to delete. This fails where anything is.
	if err := os.Remove(m.at(volumesDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(string(m)); err != nil {
		return err
	}
	s.pruneImages()
	s.cfg.Log.Info("machine removed", "uid", uid)
	return nil
}

// List returns every machine of which there is something, by UID.
func (s *Sandbox) List(ctx context.Context) ([]wire.MachineReport, error) {
	var uids []string
	for _, dir := range []string{s.cfg.Dir, s.cfg.Runc} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list machines: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && checkUID(e.Name()) == nil {
				uids = append(uids, e.Name())
			}
		}
	}
	var states []wire.MachineReport
	slices.Sort(uids)
	for _, uid := range slices.Compact(uids) {
		states = append(states, s.state(ctx, uid))
	}
	return states, nil
}

func (s *Sandbox) state(ctx context.Context, uid string) wire.MachineReport {
	m := s.home(uid)
	st := wire.MachineReport{UID: uid}
	if rec, err := readRecord(m.at(recordName)); err == nil {
		st.Key, st.NetworkID, st.Restarts = rec.Machine.Key, rec.Machine.NetworkID, max(0, rec.Starts-1)
	}
	c, ok, err := s.runc.State(ctx, uid)
	switch {
	case err != nil:
		st.Unseen, st.Message = true, err.Error()
	case !ok:
		st.Message = "not started"
	case !c.Running():
		st.Message = "stopped"
		if text, err := readBounded(m.at(consoleName), 1<<20); err == nil && len(text) > 0 {
			st.Message = "stopped: " + printable(runc.LastLine(string(text)), 500)
		}
	default:
		st.Running, st.StartedAt, st.NoVolumes = true, c.Created, !hasVolumes(m)
		st.Message = serviceTrouble(m)
	}
	return st
}

// Supports says what this host lacks to run machines: all of it, each with its
// remedy.
func (s *Sandbox) Supports() error {
	var errs []error
	need := func(file, remedy string) {
		if _, err := os.Stat(file); err != nil {
			errs = append(errs, fmt.Errorf("%s is missing: %s", file, remedy))
		}
	}
	need("/dev/loop-control", "load the kernel module loop")
	need("/proc/sys/net/bridge/bridge-nf-call-iptables", "load the kernel module br_netfilter")
	for _, name := range []string{"runc", "init", "containerd", "containerd-shim-runc-v2"} {
		need(s.cfg.payload("runtime", name), "this build of multipaas carries no payload, or it was not unpacked")
	}
	need(s.cfg.payload("images", "machine", "index.json"), "this build of multipaas carries no machine image")
	have, err := cgroup.Controllers()
	if err != nil {
		errs = append(errs, err)
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(have, c) {
			errs = append(errs, fmt.Errorf("the control group controller %s is missing: boot with it, or let the unit delegate it", c))
		}
	}
	if !capable(unix.CAP_SYS_ADMIN) || !capable(unix.CAP_NET_ADMIN) {
		errs = append(errs, errors.New("not run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN: run it as root, outside a container"))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("this host can't run machines by the sandbox driver: %w", errors.Join(errs...))
}

// kernelSettings are what kubelet insists on. A machine sees /proc/sys read-only
// except for what is its own, so they are set on the host.
var kernelSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

func tuneKernel() error {
	for name, value := range kernelSettings {
		file := "/proc/sys/" + name
		have, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(have)) == value {
			continue
		}
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			return fmt.Errorf("set kernel setting %s to %s, which kubelet needs: %w", name, value, err)
		}
	}
	return nil
}
