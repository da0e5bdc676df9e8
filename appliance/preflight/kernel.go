package preflight

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
)

// Kernel checks that the kernel is not older than a version. What is tried by other
// checks is there on some that are; planes' own view of /proc, and loop devices that
// are set up in one step, are not.
func Kernel(major, minor int) Check {
	return Check{
		Name:   "kernel",
		Remedy: fmt.Sprintf("boot Linux %d.%d or newer", major, minor),
		Run: func(context.Context) error {
			var u unix.Utsname
			if err := unix.Uname(&u); err != nil {
				return err
			}
			release := unix.ByteSliceToString(u.Release[:])
			if older(release, major, minor) {
				return fmt.Errorf("this is Linux %s", release)
			}
			return nil
		},
	}
}

// older says whether a release of Linux, "5.10.0-23-amd64", is from before a
// version. One that can't be read isn't.
func older(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n < 2 {
		return false
	}
	return a < major || a == major && b < minor
}

// Filesystems checks that the kernel can mount kinds of file systems.
func Filesystems(names ...string) Check {
	return Check{
		Name:   "file-systems",
		Remedy: "load the kernel modules of the same names, or boot a kernel that has them",
		Run: func(context.Context) error {
			data, err := os.ReadFile("/proc/filesystems")
			if err != nil {
				return &Skipped{err.Error()}
			}
			missing := lacking(names, func(name string) bool { return hasFilesystem(string(data), name) })
			if len(missing) > 0 {
				return fmt.Errorf("the kernel has no %s", strings.Join(missing, ", "))
			}
			return nil
		},
	}
}

// Module is a kernel module that the kernel does not load by itself when
// something of it is used.
type Module struct {
	Name  string
	shows string // a file that is there once it is loaded, or built in
}

// conntrack is there for the settings that a host raises before it has connections.
var conntrack = Module{"nf_conntrack", "/proc/sys/net/netfilter/nf_conntrack_max"}

// ServerModules are those that a server needs.
func ServerModules() []Module { return []Module{conntrack} }

// NodeModules are those that a node needs.
func NodeModules() []Module {
	return []Module{
		{"br_netfilter", "/proc/sys/net/bridge/bridge-nf-call-iptables"},
		{"loop", "/dev/loop-control"},
		conntrack,
	}
}

// Loaded says whether the kernel has it now.
func (m Module) Loaded() bool {
	_, err := os.Stat(m.shows)
	return err == nil
}

// KernelModules checks that each is loaded, or stands where a node, when it
// starts, loads it from.
func KernelModules(modules ...Module) Check {
	return Check{
		Name:   "kernel-modules",
		Remedy: "install the package with the modules of the kernel that runs (and reboot, if a newer kernel was installed), or boot a kernel that has them",
		Run: func(context.Context) error {
			var u unix.Utsname
			if err := unix.Uname(&u); err != nil {
				return err
			}
			dir := "/lib/modules/" + unix.ByteSliceToString(u.Release[:])
			list, _ := os.ReadFile(dir + "/modules.dep") // none: none can be loaded
			var missing []string
			for _, m := range modules {
				if !m.Loaded() && !listed(string(list), m.Name) {
					missing = append(missing, m.Name)
				}
			}
			if len(missing) > 0 {
				return fmt.Errorf("the kernel has no %s, and %s neither", strings.Join(missing, ", "), dir)
			}
			return nil
		},
	}
}

// listed finds a module in the text of modules.dep(5).
func listed(list, name string) bool {
	for line := range strings.Lines(list) {
		file, _, _ := strings.Cut(line, ":")
		base, _, _ := strings.Cut(path.Base(file), ".")
		if strings.ReplaceAll(base, "-", "_") == name {
			return true
		}
	}
	return false
}

func hasFilesystem(list, name string) bool {
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == name {
			return true
		}
	}
	// Not in the list: a module that is loaded when it is first asked for. To
	// open the file system without mounting it asks.
	fd, err := unix.Fsopen(name, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// links checks, by making one of each in a network namespace that nobody sees,
// that the kernel has the network devices that workspaces are made of.
var links = Check{
	Name:   "network-devices",
	Remedy: "load the kernel modules of the same names, or boot a kernel that has them",
	Run: func(context.Context) error {
		return netns.InNew(func() error {
			attrs := func(name string) netlink.LinkAttrs {
				a := netlink.NewLinkAttrs()
				a.Name = name
				return a
			}
			all := []netlink.Link{
				&netlink.Bridge{LinkAttrs: attrs("mpcheck-br")},
				&netlink.Veth{LinkAttrs: attrs("mpcheck-v"), PeerName: "mpcheck-p"},
				&netlink.Vxlan{LinkAttrs: attrs("mpcheck-vx"), VxlanId: 1, Port: 4789},
			}
			var missing []string
			for _, l := range all {
				if err := netlink.LinkAdd(l); err != nil {
					missing = append(missing, fmt.Sprintf("%s (%v)", l.Type(), err))
				}
			}
			if len(missing) > 0 {
				return fmt.Errorf("the kernel makes no %s", strings.Join(missing, ", "))
			}
			return nil
		})
	},
}

// nftable checks, in a network namespace that nobody sees, that packets can be
// filtered and addresses translated.
var nftable = Check{
	Name:   "nftables",
	Remedy: "load the kernel modules nf_tables and nft_masq, or boot a kernel that has them",
	Run: func(context.Context) error {
		return netns.InNew(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "mpcheck"})
			c.AddChain(&nftables.Chain{
				Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
				Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
			})
			if err := c.Flush(); err != nil {
				return fmt.Errorf("make a nat chain: %w", err)
			}
			return nil
		})
	},
}

// Server are the checks for a server.
func Server(dataDir string, listen []string) []Check {
	return []Check{
		root, Kernel(5, 8), capabilities(nil), hostMounts, clock(stamp(), time.Now), cgroups,
		Filesystems("overlay", "tmpfs"), links, nftable,
		OpenFiles(serverFiles), Inotify(512),
		Memory(2 << 30), Disk(dataDir, 5<<30), Ports(listen...),
	}
}

// Node are the checks for a node.
func Node(dataDir string) []Check {
	return []Check{
		root, Kernel(5, 8), capabilities(map[int]string{unix.CAP_MKNOD: "CAP_MKNOD"}), hostMounts, oomPriority,
		clock(stamp(), time.Now), cgroups,
		Filesystems("overlay", "tmpfs"), links, nftable, KernelModules(NodeModules()...),
		OpenFiles(4096), Inotify(512),
		Memory(2 << 30), Disk(dataDir, 10<<30),
	}
}

// serverFiles: a balancer's two sockets for each of 4000 connections at a time,
// the rest for etcd, planes and the registry.
const serverFiles = 10000
