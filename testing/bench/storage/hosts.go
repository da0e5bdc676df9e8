package storage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/embed/gluster"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/wait"
)

// What storage runs outlives who started it. So it is measured in a process that is the first of its own
// namespaces, of processes, mounts and networks: all that runs and is mounted there ends with it, however it ends.
const (
	hostsEnv = "MULTIPAAS_BENCH_STORAGE" // an order, in that process and the one that measures
	firstEnv = "MULTIPAAS_BENCH_STORAGE_FIRST"
)

// order is what such a process is told, and answer what it says.
type order struct {
	Quick     bool
	Root, Dir string
	ID        string // of its hosts, with a number behind
}

type answer struct {
	Results  []measure.Result
	Versions map[string]string
}

// Hook does the work of a process that this section has started.
func Hook() {
	text := os.Getenv(hostsEnv)
	if text == "" {
		return
	}
	if os.Getenv(firstEnv) != "" {
		os.Exit(first())
	}
	var o order
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		err = o.work()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench storage:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// onHosts measures shared volumes in a process of its own.
func onHosts(ctx context.Context, env *measure.Env) ([]measure.Result, error) {
	if err := sweep(); err != nil {
		return nil, err
	}
	o := order{Quick: env.Quick, Root: env.Root, Dir: filepath.Join(env.Dir, "shared"),
		ID: groupPrefix + strconv.Itoa(os.Getpid()) + "-"}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread() // the child ends with this thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), hostsEnv+"="+string(text), firstEnv+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET}
	err = cmd.Run()
	var a answer
	if out.Len() > 0 {
		err = errors.Join(err, json.Unmarshal(out.Bytes(), &a))
	}
	for name, version := range a.Versions {
		env.Version(name, version)
	}
	return a.Results, errors.Join(err, sweep())
}

const groupPrefix = "bench-"

// sweep takes away the control groups of runs that are over.
func sweep() error {
	names, err := cgroup.List(gluster.Groups)
	for _, name := range names {
		if rest, ok := strings.CutPrefix(name, groupPrefix); ok {
			pid, _, _ := strings.Cut(rest, "-")
			if n, _ := strconv.Atoi(pid); n == os.Getpid() || syscall.Kill(n, 0) != nil {
				err = errors.Join(err, cgroup.Remove(gluster.Groups+"/"+name))
			}
		}
	}
	return err
}

// first is the first process, which ends those that nobody else waits for.
func first() int {
	err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	if err == nil {
		err = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err == nil {
		if err = os.MkdirAll(netns.Root, 0o755); err == nil {
			err = unix.Mount("tmpfs", netns.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755")
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), firstEnv+"=")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench storage: namespaces of its own:", err)
		return 1
	}
	signal.Ignore(os.Interrupt) // of a terminal; the one that measures ends by it
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1
		case pid == cmd.Process.Pid:
			return min(1, status.ExitStatus()&0xff)
		}
	}
}

// work leaves what it has made: it ends with the namespaces, or with the run's folder.
func (o order) work() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := o.start(ctx)
	if err != nil {
		return err
	}
	var a answer
	a.Results, err = b.measure(ctx)
	a.Versions = map[string]string{"glusterfs": b.version(ctx)}
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(a))
}

// bench is three hosts, each with a network of its own, and a switch.
type bench struct {
	order
	hosts []*host
	users *os.File // of a machine
}

// host is one of them.
type host struct {
	*gluster.Host
	dir     string
	name    string // in its certificate
	group   string
	address netip.Addr
	ns      *netns.NS
}

const (
	hosts    = 3
	patience = 3 * time.Minute
	// machineUID is the first of a machine's users.
	machineUID = 0x2000_0000
)

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "         storage: "+format+"\n", args...)
}

// start brings the hosts up and makes them a cluster.
func (o order) start(ctx context.Context) (b *bench, err error) {
	b = &bench{order: o}
	if err := os.MkdirAll(o.Dir, 0o711); err != nil {
		return b, err
	}
	if err := os.Chmod(filepath.Dir(o.Dir), 0o711); err != nil { // root of a machine passes through
		return b, err
	}
	if b.users, err = netns.NewUsers(machineUID, resource.MachineUIDs); err != nil {
		return b, err
	}
	cert, key, err := pki.NewCA("bench")
	if err != nil {
		return b, err
	}
	ca, err := pki.ParseCA(cert, key)
	if err != nil {
		return b, err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = "br"
	if err := errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
		return b, fmt.Errorf("switch: %w", err)
	}
	for i := range hosts {
		h, err := b.newHost(ctx, i+1, bridge, ca)
		if err != nil {
			return b, fmt.Errorf("host %d: %w", i+1, err)
		}
		b.hosts = append(b.hosts, h)
	}
	lead := gluster.NewLead(b.hosts[0].Client(), b.hosts[0].address, b.hosts[0].name)
	return b, wait.Until(ctx, patience, "the hosts know each other", func(ctx context.Context) error {
		_, err := lead.Gather(ctx, b.addresses())
		return err
	})
}

func (b *bench) newHost(ctx context.Context, number int, bridge netlink.Link, ca *pki.CA) (*host, error) {
	name := "host" + strconv.Itoa(number)
	h := &host{dir: filepath.Join(b.Dir, name), name: name, group: gluster.Groups + "/" + b.ID + strconv.Itoa(number),
		address: netip.AddrFrom4([4]byte{10, 77, 0, byte(number)})}
	ns, err := netns.Create("bench-" + name)
	if err != nil {
		return nil, err
	}
	h.ns = ns
	if err := h.plug(bridge); err != nil {
		return nil, err
	}
	h.Host = gluster.NewHost(gluster.HostConfig{
		ID:      filepath.Base(h.group),
		Dir:     filepath.Join(h.dir, "data"),
		Images:  filepath.Join(b.Dir, "images"),
		Runc:    filepath.Join(h.dir, "runc"),
		Payload: filepath.Join(b.Root, "dist", "payload"),
		Network: ns.Path(),
		Address: h.address,
	})
	id, key, err := ca.Issue(pki.Request{CommonName: name, Client: true, Server: true})
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(h.dir, 0o711); err != nil {
		return nil, err
	}
	if err := h.Trust(gluster.Identity{Cert: id, Key: key, CA: ca.CertPEM()}); err != nil {
		return nil, err
	}
	_, err = h.Ensure(ctx, false)
	return h, err
}

// plug gives the host a link to the switch.
func (h *host) plug(bridge netlink.Link) error {
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: h.ns.Fd()}
	v.Name, v.MasterIndex = "to"+h.name, bridge.Attrs().Index
	if err := errors.Join(netlink.LinkAdd(v), netlink.LinkSetUp(v)); err != nil {
		return err
	}
	inside, err := h.ns.Netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	link, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr(h.address.String() + "/24")
	if err != nil {
		return err
	}
	return errors.Join(inside.AddrAdd(link, address), inside.LinkSetUp(link))
}

func (b *bench) addresses() (all []netip.Addr) {
	for _, h := range b.hosts {
		all = append(all, h.address)
	}
	return all
}

func (b *bench) version(ctx context.Context) string {
	image, err := b.hosts[0].Image(ctx)
	if err != nil {
		return "unknown"
	}
	out, err := exec.CommandContext(ctx, "chroot", image, "/usr/sbin/glusterfs", "--version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil || line == "" {
		return "unknown"
	}
	return line
}

// image is a brick's, as a host of ours has it, seen by GlusterFS.
func (h *host) image(name string) diskimage.Image {
	return diskimage.Image{File: filepath.Join(h.dir, name+".img"), Mount: filepath.Join(h.BrickDir(), name)}
}

// ours makes a brick as we have them: a file system in a file.
func (h *host) ours(ctx context.Context, name string, size int64) (gluster.Brick, error) {
	root, err := h.Image(ctx)
	if err != nil {
		return gluster.Brick{}, err
	}
	if err := h.image(name).Ensure(ctx, size, root); err != nil {
		return gluster.Brick{}, err
	}
	return h.brick(name)
}

// byHand makes a brick as people have them: a folder.
func (h *host) byHand(_ context.Context, name string, _ int64) (gluster.Brick, error) {
	folder, at := filepath.Join(h.dir, name), filepath.Join(h.BrickDir(), name)
	if err := errors.Join(os.Mkdir(folder, 0o700), os.Mkdir(at, 0o700)); err != nil {
		return gluster.Brick{}, err
	}
	if err := unix.Mount(folder, at, "", unix.MS_BIND, ""); err != nil {
		return gluster.Brick{}, err
	}
	return h.brick(name)
}

func (h *host) brick(name string) (gluster.Brick, error) {
	err := os.MkdirAll(filepath.Join(h.BrickDir(), name, "volume"), 0o700)
	return gluster.Brick{Host: h.address, Path: "/bricks/" + name + "/volume/brick"}, err
}
