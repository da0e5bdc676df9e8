package gluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/wait"
)

// killed does a job in another process, which is killed after a while, many times.
func killed(t *testing.T, j job) {
	t.Helper()
	j.Config.Log = nil
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	for after := 10 * time.Millisecond; after < 400*time.Millisecond; after *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Env = append(os.Environ(), hostEnv+"="+string(text))
		out, err := cmd.Output()
		cancel()
		if err == nil || cmd.ProcessState.Exited() {
			t.Errorf("what was killed after %v ended by itself: %v: %s", after, err, out)
		}
	}
}

// cluster is some nodes, each a host's storage in a network namespace of its own, and a switch.
type cluster struct {
	dir     string
	payload string
	ca      *pki.CA
	nodes   []*node
	plug    func(n *node)
}

type node struct {
	*Host
	Client
	cluster *cluster
	name    string // in its certificate
	address netip.Addr
	ns      *netns.NS
}

// newCluster makes nodes, none of which knows another.
func newCluster(t *testing.T, count int) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), payload: os.Getenv("MULTIPAAS_PAYLOAD"), ca: newCA(t)}
	if c.payload == "" {
		c.payload, _ = filepath.Abs("../../dist/payload")
	}
	network := newNamespace(t, "switch")
	handle, err := network.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handle.Close)
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = "br"
	if err := errors.Join(handle.LinkAdd(bridge), handle.LinkSetUp(bridge)); err != nil {
		t.Fatal(err)
	}
	c.plug = func(n *node) { n.plug(t, handle, bridge) }
	for i := range count {
		n := c.newNode(t, i+1)
		n.identify(t, c.ca, n.name)
		n.start(t)
		c.nodes = append(c.nodes, n)
	}
	return c
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	cert, key, err := pki.NewCA("storage")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCA(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// newNode makes a node on which nothing runs, and sees to it that in the end nothing is left of it.
func (c *cluster) newNode(t *testing.T, number int) *node {
	t.Helper()
	n := &node{cluster: c, name: "node" + strconv.Itoa(number), address: netip.AddrFrom4([4]byte{10, 77, 0, byte(number)}),
		ns: newNamespace(t, strconv.Itoa(number))}
	n.Host = NewHost(n.config(t))
	n.Client = n.Host.Client()
	c.plug(n)
	t.Cleanup(func() {
		for range 2 {
			if err := n.Clear(context.Background()); err != nil {
				t.Errorf("%s: %v", n.name, err)
			}
		}
		below, err := cgroup.List(Groups)
		state, _ := os.ReadDir(n.cfg.Runc)
		if err != nil || slices.Contains(below, n.cfg.ID) || len(state) > 0 {
			t.Errorf("left of %s: control groups %v, containers %v: %v", n.name, below, state, err)
		}
	})
	return n
}

func (n *node) config(t *testing.T) HostConfig {
	dir := filepath.Join(n.cluster.dir, n.name)
	return HostConfig{ID: fmt.Sprintf("mptest-%d-%s", os.Getpid(), n.name), Dir: filepath.Join(dir, "data"), Images: filepath.Join(n.cluster.dir, "images"),
		Runc: filepath.Join(dir, "runc"), Payload: n.cluster.payload, Network: n.ns.Path(), Address: n.address,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)).With("host", n.name)}
}

// identify has a node be known by a name.
func (n *node) identify(t *testing.T, ca *pki.CA, name string) {
	t.Helper()
	id, err := identity(ca, name)
	if err == nil {
		err = n.Trust(id)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func identity(ca *pki.CA, name string) (Identity, error) {
	cert, key, err := ca.Issue(pki.Request{CommonName: name, Client: true, Server: true})
	return Identity{Cert: cert, Key: key, CA: ca.CertPEM()}, err
}

func newNamespace(t *testing.T, name string) *netns.NS {
	t.Helper()
	name = fmt.Sprintf("mptest-gluster-%d-%s", os.Getpid(), name)
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close(); netns.Remove(name) })
	return ns
}

// plug gives the node a link to the switch.
func (n *node) plug(t *testing.T, network *netlink.Handle, bridge netlink.Link) {
	t.Helper()
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: n.ns.Fd()}
	v.Name, v.MasterIndex = "to"+n.name, bridge.Attrs().Index
	if err := errors.Join(network.LinkAdd(v), network.LinkSetUp(v)); err != nil {
		t.Fatal(err)
	}
	inside, err := n.ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	for _, row := range []struct{ link, address string }{{"lo", "127.0.0.1/8"}, {"eth0", n.address.String() + "/24"}} {
		l, err := inside.LinkByName(row.link)
		if err != nil {
			t.Fatal(err)
		}
		a, err := netlink.ParseAddr(row.address)
		if err != nil {
			t.Fatal(err)
		}
		if err := inside.AddrReplace(l, a); err != nil && !errors.Is(err, unix.EEXIST) {
			t.Fatal(err)
		}
		if err := inside.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
}

// start switches the node on.
func (n *node) start(t *testing.T) {
	t.Helper()
	if old, err := n.Ensure(t.Context(), false); err != nil || old {
		t.Fatalf("%s: old %v, %v", n.name, old, err)
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(n.at("log", "glusterd.log")); t.Failed() && err == nil {
			t.Logf("%s said: %s", n.name, text[max(0, len(text)-4000):])
		}
	})
}

// off ends everything on the node, as a power cut does.
func (n *node) off() {
	_ = cgroup.KillAll(context.Background(), n.server().group)
}

// command returns one that runs on the node.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := n.runc.Command(ctx, append([]string{"exec", n.server().id}, args...)...)
	cmd.WaitDelay = time.Second // what it forked has our pipe
	return cmd
}

func (n *node) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.command(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %q: %v: %s", n.name, args, err, out)
	}
	return string(out)
}

// brick makes a file system for one on the node, and tells the node of it.
func (n *node) brick(t *testing.T, name string) Brick {
	t.Helper()
	d := diskimage.Image{File: filepath.Join(n.cluster.dir, n.name, name+".img"), Mount: filepath.Join(n.BrickDir(), name)}
	if err := d.Ensure(t.Context(), diskimage.MinXFS, n.image(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d.Mount, "volume"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(context.Background()); err != nil { // what it has open holds the image
			t.Error(err)
		}
		if err := hostmount.Unmount(d.Mount); err != nil {
			t.Error(err)
		}
		free := func(ctx context.Context) error { return diskimage.AwaitFree(ctx, d.File) }
		if err := wait.Until(context.Background(), wait.Patience, "nobody has "+d.File, free); err != nil {
			t.Error(err)
		}
	})
	return Brick{Host: n.address, Path: "/bricks/" + name + "/volume/brick"}
}

// in is where what a brick holds is seen from here.
func (n *node) in(b Brick, elem ...string) string {
	return n.Host.at(append([]string{b.Path}, elem...)...)
}

func (n *node) image(t *testing.T) string {
	t.Helper()
	dir, err := n.images.Unpack(t.Context(), n.imageLayout())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}
