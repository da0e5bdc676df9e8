package appliance

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/embed/gluster"
	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/volume"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/parttest"
	"github.com/multipaas/multipaas/testing/testpki"
	"github.com/multipaas/multipaas/testing/wait"
)

// ownMounts is set in the process of a test that has mounts of its own.
const ownMounts = "MULTIPAAS_TEST_OWN_MOUNTS"

// withMounts has a test run in a process with mounts of its own: others' tests, which copy those of
// this machine, would hold what is mounted for as long as they last. here says whether it is that.
func withMounts(t *testing.T) (here bool) {
	if os.Getenv(ownMounts) != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=8m")
	cmd.Env = append(os.Environ(), ownMounts+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if t.Logf("%s", out); err != nil {
		t.Error(err)
	}
	return false
}

// TestShared is the life of a shared volume on three hosts, by their agents and the real daemons, as
// the states of a server that stands in have it: made, seen by a machine, a brick killed and healed, a
// client killed, a brick replaced, all grown, removed, nothing left.
func TestShared(t *testing.T) {
	if os.Getenv("MULTIPAAS_LONG") == "" {
		t.Skip("it takes a minute: MULTIPAAS_LONG=1")
	}
	if !withMounts(t) {
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	s := newShared(t, 3)
	h1, h2, h3 := s.hosts[0], s.hosts[1], s.hosts[2]
	const size = 320 << 20
	brick := func(uid string) wire.Brick {
		return wire.Brick{Key: "acme/web/shop/data", Volume: sharedUID, UID: uid, NetworkID: "00002a", SizeBytes: size}
	}
	v := wire.ClusterVolume{Key: "acme/web/shop/data", UID: sharedUID, NetworkID: "00002a", Hosts: []string{h1.name, h2.name, h3.name}}
	cluster := &wire.Cluster{}
	for i, h := range s.hosts {
		uid := fmt.Sprintf("b%d", i+1)
		v.Bricks = append(v.Bricks, wire.ClusterBrick{UID: uid, Address: h.address})
		cluster.Peers = append(cluster.Peers, wire.Peer{UID: h.name, Name: h.name, Address: h.address})
		h.state.Storage = &wire.Storage{Bricks: []wire.Brick{brick(uid)}}
	}
	var beside []wire.ClusterVolume
	lead := func() { // tells the host that leads what shall be
		c := *cluster
		c.Volumes = append([]wire.ClusterVolume{v}, beside...)
		h1.state.Storage.Cluster = &c
		h1.tell()
	}
	lead()
	h2.tell()
	h3.tell()
	for i, h := range s.hosts {
		s.until("a brick is made", func() error { return h.brick(fmt.Sprintf("b%d", i+1), true, size) })
	}
	if r, ok := item[wire.ClusterReport](h1, wire.ClusterItem, sharedUID); !ok || r.Ready {
		t.Errorf("a volume whose bricks aren't known to be there is %+v", r)
	}
	for i := range v.Bricks {
		v.Bricks[i].Ready = true
	}
	lead()
	s.until("it is made", func() error { return h1.volume("b1", "b2", "b3") })
	v.Made = true
	lead()

	h2.state.Volumes = []wire.Volume{{Key: v.Key, UID: v.UID, NetworkID: v.NetworkID, Class: "shared", SizeBytes: size,
		Servers: []netip.Addr{h1.address, h2.address, h3.address}, Attachments: []wire.VolumeAttachment{{MachineUID: "m1"}}}}
	h2.tell()
	s.until("a machine sees it", func() error {
		r, ok := item[wire.VolumeReport](h2, wire.VolumeItem, sharedUID)
		if !ok || !r.Ready || !slices.Equal(r.Attached, []string{"m1"}) {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	// in runs a script as root of the machine, in the volume.
	in := func(script string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "nsenter", fmt.Sprintf("--user=/proc/%d/fd/%d", os.Getpid(), s.users.Fd()), "--", "sh", "-euc",
			"cd "+filepath.Join(h2.dir, "machines", "m1", wire.VolumesOfMachine, sharedUID)+"; "+script)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return strings.TrimSpace(string(out)), err
	}
	if got, err := in("stat -c %u:%g:%a ."); err != nil || got != "0:0:755" {
		t.Errorf("its root is %s, %v", got, err)
	}
	write := func(name string) error {
		_, err := in(fmt.Sprintf("yes %s | tr -d '\\n' | dd of=%[1]s bs=%d count=1 iflag=fullblock conv=fsync status=none; chown 999:999 %[1]s",
			name, len(name)<<18))
		return err
	}
	must(t, write("first"))
	same := func(name string, h *sharedHost, uid string) error {
		file := filepath.Join(h.BrickDir(), uid, "volume/brick", name)
		got, err := os.ReadFile(file)
		var st unix.Stat_t
		if err == nil {
			err = unix.Stat(file, &st)
		}
		if err == nil && st.Uid != 999 {
			err = fmt.Errorf("%s of brick %s is of %d", name, uid, st.Uid)
		}
		if err == nil && !bytes.Equal(got, bytes.Repeat([]byte(name), 1<<18)) {
			err = fmt.Errorf("%s of brick %s has %d bytes, others or too few", name, uid, len(got))
		}
		return err
	}

	// A brick dies; who leads starts it, and it gets what it has missed.
	h3.kill(t, "glusterfsd")
	must(t, write("second"))
	s.until("it is healed", func() error { return errors.Join(h1.volume("b1", "b2", "b3"), same("second", h3, "b3")) })

	// A host loses power: the others go on, and it catches up.
	h3.off(t)
	must(t, write("fourth"))
	s.run(h3)
	s.until("a host is back", func() error { return errors.Join(h1.volume("b1", "b2", "b3"), same("fourth", h3, "b3")) })

	// What was attached from a mount whose client died is attached anew.
	h2.kill(t, "glusterfs", "--process-name=fuse")
	if err := write("none"); err == nil {
		t.Error("what nobody serves is written to")
	}
	s.until("it is mounted and attached anew", func() error {
		if got, err := in("stat -f -c %t ."); err != nil || got != "65735546" {
			return fmt.Errorf("there is %s, %w", got, err)
		}
		return write("third")
	})

	// Another brick takes the place of one.
	h3.state.Storage.Bricks = append(h3.state.Storage.Bricks, brick("b4"))
	h3.tell()
	s.until("another brick is made", func() error { return h3.brick("b4", true, size) })
	v.Bricks[2] = wire.ClusterBrick{UID: "b4", Address: h3.address, Ready: true, Replaces: "b3"}
	lead()
	s.until("it has taken the place, and has all", func() error {
		return errors.Join(h1.volume("b1", "b2", "b4"), same("first", h3, "b4"), same("third", h3, "b4"))
	})
	h3.state.Storage.Bricks[0].Remove = true
	h3.tell()
	s.until("the former one is gone", func() error { return h3.removed("b3") })

	s.copies(v, func(look int64, others ...wire.ClusterVolume) {
		v.Look, beside = look, others
		lead()
	}, func(h *sharedHost, brick string) error {
		return errors.Join(same("first", h, brick), same("third", h, brick))
	})

	// Larger.
	for _, h := range s.hosts {
		h.state.Storage.Bricks[len(h.state.Storage.Bricks)-1].SizeBytes += 128 << 20
		h.tell()
	}
	s.until("it is larger", func() error {
		got, err := in("echo $(($(stat -f -c '%b * %S' .)))")
		if n, _ := strconv.ParseInt(got, 10, 64); err != nil || n < size {
			return fmt.Errorf("%s bytes, %w", got, err)
		}
		return h1.brick("b1", true, size+128<<20)
	})

	// All of it goes: from machines, from GlusterFS, from disks, the hosts from each other.
	h2.state.Volumes = nil
	h2.tell()
	v.Remove = true
	lead()
	s.until("nobody serves it", func() error {
		if r, ok := item[wire.ClusterReport](h1, wire.ClusterItem, sharedUID); !ok || !r.Removed {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	for _, h := range s.hosts {
		for i := range h.state.Storage.Bricks {
			h.state.Storage.Bricks[i].Remove = true
		}
	}
	lead()
	h2.tell()
	h3.tell()
	for i, uid := range []string{"b1", "b2", "b4"} {
		s.until("bricks are gone", func() error { return s.hosts[i].removed(uid) })
	}
	// One is made anew that the others take for theirs.
	h2.state.Storage = nil
	h2.tell()
	s.until("it knows nothing", func() error {
		if served, _, err := h2.Left(); served {
			return fmt.Errorf("it does: %w", err)
		}
		return nil
	})
	h2.state.Storage = &wire.Storage{}
	h2.tell()
	s.until("it serves", func() error { _, err := h2.Client().Peers(t.Context()); return err })
	s.until("it is one of them again", func() error {
		peers, err := h2.Client().Peers(t.Context())
		if err == nil && (len(peers) != 2 || !peers[0].Member || !peers[1].Member) {
			mine, _ := h1.Client().Peers(t.Context())
			err = fmt.Errorf("it knows %+v; who leads, %+v", peers, mine)
		}
		return err
	})
	cluster.Peers = cluster.Peers[:1]
	lead()
	s.until("the host that leads is alone", func() error {
		if rep := h1.last(); !slices.Equal(rep.StorageMembers, []netip.Addr{h1.address}) {
			return fmt.Errorf("members are %v", rep.StorageMembers)
		}
		return nil
	})
	// The last leaves the platform with a brick that nobody has said may be lost.
	h3.state.Storage = &wire.Storage{Bricks: []wire.Brick{brick("b5")}}
	h3.tell()
	s.until("a brick for who leaves", func() error { return h3.brick("b5", true, size) })
	h3.mu.Lock()
	h3.told = nil
	close(h3.wake)
	h3.mu.Unlock()
	s.until("it has left", func() error {
		_, err := os.Stat(filepath.Join(h3.dir, "node", "identity.json"))
		if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("it knows who it is: %w", err)
		}
		return nil
	})
	image := filepath.Join(h3.dir, "pool", "b5", "disk.img")
	if info, err := os.Stat(image); err != nil || info.Size() != size {
		t.Errorf("of its brick is left %v, %v", info, err)
	}
	must(t, diskimage.AwaitFree(t.Context(), image))
	must(t, os.RemoveAll(filepath.Join(h3.dir, "pool")))
	for _, h := range s.hosts[:2] {
		h.state.Storage = nil
		h.tell()
	}
	s.until("nothing is left", func() error {
		for _, h := range s.hosts {
			below, err := hostmount.Below(h.dir)
			below = slices.DeleteFunc(below, func(p string) bool { return strings.HasSuffix(p, wire.VolumesOfMachine) })
			_, errDir := os.Stat(filepath.Join(h.dir, "storage"))
			left, _ := filepath.Glob(filepath.Join(h.dir, "pool", "*"))
			state, _ := os.ReadDir(filepath.Join(h.dir, "runc"))
			if err != nil || len(below) > 0 || errDir == nil || len(left) > 0 || len(state) > 0 {
				return fmt.Errorf("%s: %v, %v, %v, %v, %w", h.name, below, errDir, left, state, err)
			}
		}
		return nil
	})
}

const sharedUID = "5a0b-shared"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shared is some hosts, each in a network of its own, and a server that stands in.
type shared struct {
	t       *testing.T
	ca      *pki.CA // of nodes
	own     *pki.CA // of storage
	url     string
	payload string
	images  string
	users   *os.File // a machine's user namespace
	hosts   []*sharedHost
}

// sharedUsers is the first of those in it.
const sharedUsers = 0x2000_0000

// sharedHost is one of them, and what it was told and has said.
type sharedHost struct {
	*sharing
	name    string // and UID
	dir     string
	address netip.Addr
	ns      *netns.NS
	stop    func() // its agent

	state wire.State // the test's alone, as tell tells it

	mu     sync.Mutex
	wake   chan struct{} // closed when told is another
	told   []byte
	report wire.Report
	items  map[string]json.RawMessage // by kind and UID
}

func (s *shared) until(what string, is func() error) {
	s.t.Helper()
	began := time.Now()
	wait.For(s.t, wait.Patience, what, func(context.Context) error { return is() })
	s.t.Logf("%s: %v", what, time.Since(began).Round(10*time.Millisecond))
}

// tell has the host's agent hear its state.
func (h *sharedHost) tell() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told, _ = json.Marshal(h.state)
	if h.wake != nil {
		close(h.wake)
	}
	h.wake = make(chan struct{})
}

func (h *sharedHost) last() wire.Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.report
}

// item is what the host's agent has said last of one.
func item[T any](h *sharedHost, kind, uid string) (rep T, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	text, ok := h.items[kind+" "+uid]
	return rep, ok && json.Unmarshal(text, &rep) == nil
}

func (h *sharedHost) brick(uid string, ready bool, size int64) error {
	r, ok := item[wire.BrickReport](h, wire.BrickItem, uid)
	if !ok || r.Ready != ready || r.SizeBytes != size {
		return fmt.Errorf("brick %s of %s: %+v", uid, h.name, r)
	}
	return nil
}

func (h *sharedHost) removed(uid string) error {
	if r, ok := item[wire.BrickReport](h, wire.BrickItem, uid); !ok || !r.Removed {
		return fmt.Errorf("brick %s of %s: %+v", uid, h.name, r)
	}
	return nil
}

// volume says that it has these bricks, all online and with nothing to heal.
func (h *sharedHost) volume(bricks ...string) error {
	r, ok := item[wire.ClusterReport](h, wire.ClusterItem, sharedUID)
	var well []string
	for _, b := range r.Bricks {
		if b.Online && b.Heal == 0 {
			well = append(well, b.UID)
		}
	}
	if !ok || !r.Ready || !slices.Equal(well, bricks) {
		return fmt.Errorf("it is %+v", r)
	}
	return nil
}

// kill ends a program on the host, whose command line has all of these words.
func (h *sharedHost) kill(t *testing.T, words ...string) {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	killed := 0
	for _, file := range files {
		text, _ := os.ReadFile(file)
		args := strings.Split(string(text), "\x00")
		group, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		var pid int
		_, err := fmt.Sscanf(file, "/proc/%d/", &pid)
		if err != nil || !strings.Contains(string(group), h.name) || filepath.Base(args[0]) != words[0] {
			continue
		}
		if slices.ContainsFunc(words[1:], func(w string) bool { return !slices.Contains(args, w) }) {
			continue
		}
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		killed++
	}
	if killed == 0 {
		t.Errorf("%s has no %v", h.name, words)
	}
}

// machines stand in for a driver of machines, which all run.
type sharedMachines struct{ agent.Driver }

func (sharedMachines) Kind() string { return "machine" }
func (sharedMachines) Wanted(s *wire.State) (items []agent.Item) {
	for _, v := range s.Volumes {
		for _, a := range v.Attachments {
			items = append(items, agent.Item{Key: a.MachineUID, Ensure: func(context.Context) error { return nil }})
		}
	}
	return items
}
func (sharedMachines) List(context.Context) ([]string, error) { return nil, nil }
func (sharedMachines) Report(context.Context, *wire.State, func(string) agent.Progress, *agent.Report) ([]string, error) {
	return nil, nil
}

func newShared(t *testing.T, count int) *shared {
	t.Helper()
	s := &shared{t: t, ca: testpki.New(t), own: testpki.New(t)}
	s.url = s.serve()
	users, err := netns.NewUsers(sharedUsers, resource.MachineUIDs)
	must(t, err)
	t.Cleanup(func() { users.Close() })
	s.users = users
	network := newNamespace(t, "switch")
	handle, err := network.Netlink()
	must(t, err)
	t.Cleanup(handle.Close)
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = "br"
	must(t, errors.Join(handle.LinkAdd(bridge), handle.LinkSetUp(bridge)))
	for _, dir := range []string{t.TempDir(), filepath.Dir(t.TempDir())} { // as ours are: others pass through
		must(t, os.Chmod(dir, 0o711))
	}
	s.payload, s.images = os.Getenv("MULTIPAAS_PAYLOAD"), t.TempDir()
	if s.payload == "" {
		s.payload, _ = filepath.Abs("../dist/payload")
	}
	for i := range count {
		h := &sharedHost{name: fmt.Sprintf("mptest-%d-h%d", os.Getpid(), i+1), dir: t.TempDir(), items: map[string]json.RawMessage{},
			address: netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}), ns: newNamespace(t, fmt.Sprint(i+1))}
		h.state = wire.State{Node: h.name}
		s.hosts = append(s.hosts, h)
		h.plug(t, handle, bridge)
		s.run(h)
	}
	return s
}

func newNamespace(t *testing.T, name string) *netns.NS {
	t.Helper()
	name = fmt.Sprintf("mptest-shared-%d-%s", os.Getpid(), name)
	ns, err := netns.Create(name)
	must(t, err)
	t.Cleanup(func() { ns.Close(); netns.Remove(name) })
	return ns
}

// plug gives the host a link to the switch.
func (h *sharedHost) plug(t *testing.T, network *netlink.Handle, bridge netlink.Link) {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: h.ns.Fd()}
	v.Name, v.MasterIndex = fmt.Sprintf("to%d", h.address.As4()[3]), bridge.Attrs().Index
	must(t, errors.Join(network.LinkAdd(v), network.LinkSetUp(v)))
	inside, err := h.ns.Netlink()
	must(t, err)
	defer inside.Close()
	for _, row := range []struct{ link, address string }{{"lo", "127.0.0.1/8"}, {"eth0", h.address.String() + "/24"}} {
		l, err := inside.LinkByName(row.link)
		must(t, err)
		a, err := netlink.ParseAddr(row.address)
		must(t, err)
		if err := inside.AddrReplace(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
		must(t, inside.LinkSetUp(l))
	}
}

// run starts the host's agent, with a certificate as of a node that has joined.
func (s *shared) run(h *sharedHost) {
	t, at := s.t, func(name string) string { return filepath.Join(h.dir, name) }
	cert, key, err := s.ca.Issue(pki.Request{CommonName: h.name, Client: true,
		Organizations: []string{wire.NodesOrganization, wire.NodeUIDPrefix + h.name}})
	must(t, err)
	id, err := json.Marshal(map[string]any{"server": s.url, "name": h.name, "certificate": cert, "key": key, "ca": s.ca.CertPEM()})
	must(t, err)
	must(t, os.MkdirAll(at("node"), 0o700))
	must(t, os.WriteFile(at("node/identity.json"), id, 0o600))
	client, err := agent.Open(at("node"))
	must(t, err)
	if client.UID() != h.name {
		t.Fatalf("its UID is %q", client.UID())
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil)).With("host", h.name[len(h.name)-2:])
	h.sharing = newSharing(gluster.HostConfig{Dir: at("storage"), Images: s.images, Runc: at("runc"), Payload: s.payload, Network: h.ns.Path(),
		Address: h.address, Log: log}, client.UID(), func(string) (*os.File, uint32, error) {
		users, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", s.users.Fd())) // as a machine's, which goes on
		return users, sharedUsers, err
	})
	volumes := volume.New(volume.Config{Dir: at("pool"), Machines: at("machines"), Mark: at("node/pool.json"), Bricks: h.BrickDir(),
		Shared: sharedMounts{h.sharing},
		Tools: func(ctx context.Context) (string, error) {
			return (rootfs.Store{Dir: s.images}).Unpack(ctx, filepath.Join(s.payload, "images", "storage"))
		},
		HostUser: func(first uint32) (uint32, error) { return first, nil }, Log: log})
	seen := at("machines/m1/" + wire.VolumesOfMachine)
	must(t, os.MkdirAll(seen, 0o755))
	must(t, unix.Mount("tmpfs", seen, "tmpfs", 0, "size=64k"))
	a := agent.New(agent.Config{Log: log, Client: client, Facts: func() wire.Report { return wire.Report{Address: h.address} },
		Heard: func(*wire.State) {},
		Drivers: slices.Concat([]agent.Driver{agent.Volumes(volumes)},
			agent.Shared(agent.SharedConfig{Log: log, Client: client, Host: h.sharing, Bricks: volumes}),
			[]agent.Driver{sharedMachines{}, agent.Mounts(h.sharing), agent.Attachments(volumes)})})
	t.Cleanup(func() {
		if err := h.Clear(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := volumes.Leave(); err != nil {
			t.Error(err)
		}
		if err := hostmount.Unmount(h.dir); err != nil {
			t.Error(err)
		}
	})
	h.tell()
	h.stop = parttest.Run(t, func(ctx context.Context, ready func()) error {
		err := a.Run(ctx, ready)
		if errors.Is(err, agent.ErrRemoved) && !errors.Is(err, agent.ErrLeftovers) {
			<-ctx.Done()
			return nil
		}
		return err
	})
}

// off ends everything on the host, as a power cut does.
func (h *sharedHost) off(t *testing.T) {
	t.Helper()
	h.stop()
	must(t, cgroup.KillAll(t.Context(), path.Join(gluster.Groups, h.name)))
	must(t, hostmount.Unmount(h.dir))
	must(t, os.RemoveAll(filepath.Join(h.dir, "runc")))
}

// serve is the server's side: it tells each host its state and takes down what it says.
func (s *shared) serve() string {
	mux := http.NewServeMux()
	as := func(serve func(h *sharedHost, w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			i := slices.IndexFunc(s.hosts, func(h *sharedHost) bool { return h.name == r.TLS.PeerCertificates[0].Subject.CommonName })
			if err := serve(s.hosts[i], w, r); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
			}
		}
	}
	mux.HandleFunc("GET "+wire.StatePath, as(func(h *sharedHost, w http.ResponseWriter, r *http.Request) error {
		out := http.NewResponseController(w)
		for {
			h.mu.Lock()
			line, wake, gone := append(slices.Clone(h.told), '\n'), h.wake, h.told == nil
			h.mu.Unlock()
			if gone {
				w.WriteHeader(http.StatusGone) // or it ends, and is told so when it asks again
				return nil
			}
			for told := false; !told; {
				if _, err := w.Write(line); err != nil {
					return nil
				}
				_ = out.Flush()
				line = []byte("\n")
				select {
				case <-wake:
					told = true
				case <-r.Context().Done():
					return nil
				case <-time.After(wire.AliveEvery): // a sign of life
				}
			}
		}
	}))
	mux.HandleFunc("POST "+wire.ReportPath, as(func(h *sharedHost, w http.ResponseWriter, r *http.Request) error {
		var rep wire.Report
		if err := json.NewDecoder(r.Body).Decode(&rep); err != nil {
			return err
		}
		h.mu.Lock()
		h.report = rep
		h.mu.Unlock()
		return json.NewEncoder(w).Encode(wire.ReportAnswer{})
	}))
	mux.HandleFunc("POST "+wire.ItemsPath, as(func(h *sharedHost, w http.ResponseWriter, r *http.Request) error {
		var page wire.Items
		if err := json.NewDecoder(r.Body).Decode(&page); err != nil {
			return err
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, i := range page.Items {
			var of struct{ UID string }
			_ = json.Unmarshal(i.Report, &of)
			h.items[i.Kind+" "+of.UID] = i.Report
		}
		return json.NewEncoder(w).Encode(struct{}{})
	}))
	mux.HandleFunc("POST "+wire.StorageCertificatePath, as(func(h *sharedHost, w http.ResponseWriter, r *http.Request) error {
		var req wire.JoinRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			return err
		}
		cert, err := s.own.Sign(req.CSR, pki.Request{CommonName: h.name, Client: true, Server: true})
		if err != nil {
			return err
		}
		return json.NewEncoder(w).Encode(wire.JoinResponse{Certificate: cert, CA: s.own.CertPEM()})
	}))
	leaf, key, err := s.ca.Issue(pki.Request{CommonName: "server", Server: true, Hosts: []string{"127.0.0.1"}})
	must(s.t, err)
	pair, err := tls.X509KeyPair(append(leaf, s.ca.CertPEM()...), key)
	must(s.t, err)
	srv := httptest.NewUnstartedServer(mux)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: s.ca.Pool()}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	s.t.Cleanup(srv.Close)
	return srv.URL
}
