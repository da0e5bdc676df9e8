package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// Options say what kind of lab to make. The zero value will do.
type Options struct {
	Name string // for people; "": lab
	// Dir keeps the lab's state and its hosts' disks. "": a scratch folder below
	// .lab at the root of the repository, which goes with the lab.
	Dir string
	// Binary is put on each host as `multipaas`. "": none.
	Binary string
	// Keep says that the lab outlives this process, until Close.
	Keep bool
	// Logf tells what happens. nil: nobody.
	Logf func(format string, args ...any)
}

// Lab is a set of hosts on one network. It is safe for concurrent use, also by
// several processes that have opened the same one.
type Lab struct {
	opt  Options
	dir  string
	exe  string // what a host's process 1 is
	slot slot

	mu    sync.Mutex
	state state
}

// state is what of a lab is kept on disk, in state.json.
type state struct {
	Slot  int         `json:"slot"`
	Name  string      `json:"name"`
	Hosts []hostState `json:"hosts"`
	// Cuts are pairs of hosts that don't reach each other; Loss is per cent of
	// packets that a host loses; Narrow is what the way to a host carries, in bytes.
	Cuts   [][2]string    `json:"cuts,omitempty"`
	Loss   map[string]int `json:"loss,omitempty"`
	Narrow map[string]int `json:"narrow,omitempty"`
}

type hostState struct {
	Name    string     `json:"name"`
	Index   int        `json:"index"`
	Address netip.Addr `json:"address"`
	Init    process    `json:"init"`             // process 1; what is no longer alive is switched off
	Binary  string     `json:"binary,omitempty"` // what it was booted with
}

// New makes a lab, empty. Labs of owners that are gone are swept first.
func New(ctx context.Context, opt Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab needs root: namespaces, links and control groups")
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if opt.Name == "" {
		opt.Name = "lab"
	}
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	if opt.Binary != "" {
		if opt.Binary, err = filepath.Abs(opt.Binary); err != nil {
			return nil, err
		}
		if _, err := os.Stat(opt.Binary); err != nil {
			return nil, fmt.Errorf("%w (`make build` makes it)", err)
		}
	}
	swept, err := Sweep(ctx, false)
	for _, name := range swept {
		opt.Logf("swept %s, which nobody owned any more", name)
	}
	if err != nil {
		return nil, err
	}
	l := &Lab{opt: opt, exe: exe}
	scratch := opt.Dir == ""
	if scratch {
		if l.dir, err = scratchDir(opt.Name); err != nil {
			return nil, err
		}
	} else if l.dir, err = filepath.Abs(opt.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, err
	}
	// Disks that are there already know the addresses they had.
	former := -1
	if err := l.load(); err == nil {
		former = l.state.Slot
	}
	l.slot, err = takeSlot(slot{Name: opt.Name, Dir: l.dir, Owner: thisProcess(), Keep: opt.Keep, Scratch: scratch, Created: time.Now().UTC()}, max(0, former))
	if err != nil {
		return nil, err
	}
	if former >= 0 && former != l.slot.Number {
		opt.Logf("the former network is taken: hosts begin with empty disks")
		if err := os.RemoveAll(filepath.Join(l.dir, "hosts")); err != nil {
			return nil, errors.Join(err, l.slot.destroy(ctx))
		}
	}
	l.state = state{Slot: l.slot.Number, Name: opt.Name}
	if err := errors.Join(l.save(), RaiseLimits(), l.makeBridge()); err != nil {
		return nil, errors.Join(err, l.slot.destroy(ctx))
	}
	opt.Logf("lab %s: network %s, ours is %s", opt.Name, l.slot.subnet(), l.Address())
	return l, nil
}

// Open opens a lab that is there. The error wraps fs.ErrNotExist if there is
// none, or only what a reboot has left of it.
func Open(dir string, logf func(format string, args ...any)) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if logf == nil {
		logf = func(string, ...any) {}
	}
	l := &Lab{opt: Options{Dir: dir, Logf: logf}, dir: dir, exe: exe}
	if err := l.load(); err != nil {
		return nil, err
	}
	all, err := slots()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(s slot) bool { return s.Number == l.state.Slot && s.Dir == dir })
	if i < 0 {
		return nil, fmt.Errorf("lab %s: %w: this machine does not know it any more", dir, fs.ErrNotExist)
	}
	l.slot, l.opt.Name, l.opt.Keep = all[i], all[i].Name, all[i].Keep
	return l, nil
}

// Close pulls the plug of every host and removes all that the lab has made. The
// hosts' disks stay if Options.Dir named a folder.
func (l *Lab) Close(ctx context.Context) error {
	unlock, err := lockRegistry()
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.slot.destroy(ctx); err != nil {
		return fmt.Errorf("close lab %s: %w", l.opt.Name, err)
	}
	if l.slot.Scratch {
		return nil
	}
	if err := os.Remove(l.stateFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// KeepHosts leaves the lab standing when this process ends.
func (l *Lab) KeepHosts() error {
	l.slot.Keep = true
	return l.slot.write()
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.opt.Name }

// Dir is the lab's folder.
func (l *Lab) Dir() string { return l.dir }

// Address is our own address on the lab's network.
func (l *Lab) Address() netip.Addr { return l.slot.address(1) }

// Subnet is the lab's network.
func (l *Lab) Subnet() netip.Prefix { return l.slot.subnet() }

// SetBinary changes what is put on hosts that boot from now on.
func (l *Lab) SetBinary(file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); err != nil {
		return fmt.Errorf("%w (`make build` makes it)", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opt.Binary = file
	return nil
}

var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// AddHost makes a host and switches it on, or returns the one that is there, on
// or off.
func (l *Lab) AddHost(ctx context.Context, name string) (*Host, error) {
	if !hostName.MatchString(name) {
		return nil, fmt.Errorf("host %q: not a name: use a-z, 0-9 and -", name)
	}
	if h := l.Host(name); h != nil {
		return h, nil
	}
	err := l.change(func(s *state) error {
		index := 1
		for _, h := range s.Hosts {
			index = max(index, h.Index+1)
		}
		if index > 200 {
			return errors.New("a lab has room for 200 hosts")
		}
		s.Hosts = append(s.Hosts, hostState{Name: name, Index: index, Address: l.slot.address(9 + index)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	h := &Host{lab: l, name: name}
	if err := h.Boot(ctx); err != nil {
		return nil, err
	}
	return h, l.writeHosts()
}

// Host returns a host by its name, or nil.
func (l *Lab) Host(name string) *Host {
	l.refresh()
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.state.host(name); !ok {
		return nil
	}
	return &Host{lab: l, name: name}
}

// Hosts are all hosts, in the order they were added.
func (l *Lab) Hosts() []*Host {
	l.refresh()
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*Host
	for _, h := range l.state.Hosts {
		all = append(all, &Host{lab: l, name: h.Name})
	}
	return all
}

func (s *state) host(name string) (*hostState, bool) {
	i := slices.IndexFunc(s.Hosts, func(h hostState) bool { return h.Name == name })
	if i < 0 {
		return nil, false
	}
	return &s.Hosts[i], true
}

func (l *Lab) stateFile() string { return filepath.Join(l.dir, "state.json") }

// change changes the state and writes it down, alone among all processes.
func (l *Lab) change(fn func(*state) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	unlock, err := lockFile(filepath.Join(l.dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.load(); err != nil {
		return err
	}
	if err := fn(&l.state); err != nil {
		return err
	}
	return l.save()
}

// refresh reads what other processes have changed.
func (l *Lab) refresh() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.load() // what we knew is still good
}

func (l *Lab) load() error {
	data, err := os.ReadFile(l.stateFile())
	if err != nil {
		return err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("lab state %s: %w", l.stateFile(), err)
	}
	l.state = s
	return nil
}

func (l *Lab) save() error {
	data, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(l.stateFile(), append(data, '\n'), 0o600)
}

// makeBridge makes the lab's network.
func (l *Lab) makeBridge() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = l.slot.bridge()
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make bridge %s: %w", attrs.Name, err)
	}
	addr, err := netlink.ParseAddr(netip.PrefixFrom(l.Address(), l.slot.subnet().Bits()).String())
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(bridge, addr), netlink.LinkSetUp(bridge)); err != nil {
		return fmt.Errorf("set up bridge %s: %w", attrs.Name, err)
	}
	return nil
}

// RaiseLimits raises what all hosts of a machine share: each kubelet and
// containerd takes some file watches, and Debian's default is for one desktop.
func RaiseLimits() error {
	const file, want = "/proc/sys/fs/inotify/max_user_instances", 8192
	data, err := os.ReadFile(file)
	if err != nil {
		return nil // a kernel without; the first to need it will say so
	}
	var have int
	if _, err := fmt.Sscan(string(data), &have); err != nil || have >= want {
		return nil
	}
	if err := os.WriteFile(file, fmt.Appendln(nil, want), 0); err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("raise fs.inotify.max_user_instances: %w", err)
	}
	return nil
}

// scratchDir makes a folder for a lab that nobody keeps. Not below /tmp, which
// may be in memory: hosts' disks hold gigabytes, and containerd's must not be
// on another overlay.
func scratchDir(name string) (string, error) {
	base := os.Getenv("MULTIPAAS_LAB_DIR")
	if base == "" {
		base = filepath.Join(repository(), ".lab")
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	clean := strings.Trim(regexp.MustCompile(`[^A-Za-z0-9.-]+`).ReplaceAllString(name, "-"), "-.")
	return os.MkdirTemp(base, clean[:min(len(clean), 40)]+"-")
}

// repository is the folder with go.mod, from the working directory upwards; the
// working directory itself if there is none.
func repository() string {
	wd, err := os.Getwd()
	if err != nil {
		return "."
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return wd
		}
	}
}
