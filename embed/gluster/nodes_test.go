package gluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/rootfs"
	"github.com/multipaas/multipaas/testing/wait"
)

// cluster is some nodes with a glusterd each, in namespaces of their own, and a switch.
type cluster struct {
	root  string // the payload's image storage, unpacked
	dir   string
	nodes []*node
}

type node struct {
	Client
	cluster *cluster
	address netip.Addr
	dir     string
	ns      *netns.NS
	cmd     *exec.Cmd // nil: it is off
	pid     int       // process 1 of its namespaces
}

// newCluster makes nodes, none of which knows another.
func newCluster(t *testing.T, count int) *cluster {
	t.Helper()
	payload := os.Getenv("MULTIPAAS_PAYLOAD")
	if payload == "" {
		payload, _ = filepath.Abs("../../dist/payload")
	}
	c := &cluster{dir: t.TempDir()}
	var err error
	c.root, err = rootfs.Store{Dir: filepath.Join(c.dir, "images")}.Unpack(t.Context(), filepath.Join(payload, "images", "storage"))
	if err != nil {
		t.Fatalf("%v: build it with: make payload", err)
	}
	network := newNamespace(t, "switch")
	handle, err := network.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = "br"
	if err := errors.Join(handle.LinkAdd(bridge), handle.LinkSetUp(bridge)); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		n := &node{cluster: c, address: netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}), dir: filepath.Join(c.dir, strconv.Itoa(i+1)),
			ns: newNamespace(t, strconv.Itoa(i+1))}
		n.Run = n.gluster
		n.plug(t, handle, bridge)
		n.start(t)
		c.nodes = append(c.nodes, n)
	}
	return c
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
	v.Name, v.MasterIndex = "to"+filepath.Base(n.dir), bridge.Attrs().Index
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

// boot is a node's process 1, in namespaces of its own: its folder, then the image.
const boot = `mkdir -p "$1/upper" "$1/work" "$1/root" "$1/lib" "$1/bricks"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mkdir -p bricks
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount --rbind /dev dev
mount --rbind "$1/bricks" bricks
mount --bind "$1/lib" var/lib/glusterd
echo 127.0.0.1 localhost >etc/hosts # for the daemon that heals
hostname "$3"
chroot . /usr/sbin/glusterd -N &
wait`

// start switches the node on. Its bricks are mounted before.
func (n *node) start(t *testing.T) {
	t.Helper()
	// What is mounted there later the node shall see.
	bricks := filepath.Join(n.dir, "bricks")
	there, err := hostmount.Has(bricks)
	if err == nil && !there {
		err = cmp.Or(os.MkdirAll(bricks, 0o700), unix.Mount(bricks, bricks, "", unix.MS_BIND, ""), unix.Mount("", bricks, "", unix.MS_SHARED, ""))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hostmount.Unmount(bricks); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command("unshare", "--mount", "--propagation=slave", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "sh", "-euc", boot, "node",
		n.dir, n.cluster.root, "node"+filepath.Base(n.dir))
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := n.ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	n.cmd = cmd
	t.Cleanup(func() {
		n.off()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("%v said: %s", n.address, text)
		}
	})
	wait.For(t, wait.Patience, "process 1 of "+n.address.String(), func(context.Context) error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		if err != nil {
			return err
		}
		n.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err
	})
	wait.For(t, wait.Patience, "glusterd of "+n.address.String(), func(ctx context.Context) error {
		_, err := n.Peers(ctx)
		return err
	})
}

// off ends everything on the node, as a power cut does.
func (n *node) off() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill() // all that is in its namespaces with it
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

// command returns one that runs on the node.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(n.pid), "-m", "-p", "-n", "-u", "-i", "chroot", filepath.Join(n.dir, "root")}, args...)...)
	cmd.WaitDelay = time.Second // what it forked has our pipe
	return cmd
}

func (n *node) gluster(ctx context.Context, args ...string) ([]byte, error) {
	return n.command(ctx, append([]string{"/usr/sbin/gluster"}, args...)...).Output()
}

func (n *node) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.command(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %q: %v: %s", n.address, args, err, out)
	}
	return string(out)
}

// brick makes a file system for one on the node, and tells the node of it.
func (n *node) brick(t *testing.T, name string) Brick {
	t.Helper()
	d := diskimage.Image{File: filepath.Join(n.dir, name+".img"), Mount: filepath.Join(n.dir, "bricks", name)}
	if err := d.Ensure(t.Context(), diskimage.MinXFS, n.cluster.root); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d.Mount, "volume"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.off() // what it has open holds the image
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

// at is where what a brick holds is seen from here.
func (n *node) at(b Brick, elem ...string) string {
	return filepath.Join(append([]string{n.dir, b.Path}, elem...)...)
}
