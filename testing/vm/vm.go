package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Image is a folder that testing/vm/root/build.sh has made: root.qcow2, vmlinuz and
// initrd.img.
type Image string

// Config says what a virtual machine is.
type Config struct {
	Name    string // its host name
	Dir     string // its own folder; short, for it holds sockets
	Image   Image
	Disk    string       // image file of the second disk, which it only reads; see NewDisk
	Address netip.Prefix // on its only network
	// Link and Peer are sockets, of this machine and of the one it is connected
	// to: the network is a cable between two.
	Link, Peer string
	CPUs       int
	MemoryMiB  int
}

// VM is a virtual machine. Its disk stays in its folder when it is off.
type VM struct {
	cfg Config

	mu    sync.Mutex
	qemu  *process // nil: off
	qmp   *wire
	agent *wire // nil: to be dialed
}

// New makes a machine with an empty copy of the image's disk. It is off.
func New(ctx context.Context, cfg Config) (*VM, error) {
	v := &VM{cfg: cfg}
	base, err := filepath.Abs(filepath.Join(string(cfg.Image), "root.qcow2"))
	if err != nil {
		return nil, err
	}
	if err := tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, v.file("disk")); err != nil {
		return nil, err
	}
	return v, nil
}

// NewDisk makes the image of a disk labelled multipaas that holds what is in the
// folder from. The machines mount it at /opt/multipaas.
func NewDisk(ctx context.Context, file, from string) error {
	var size int64
	err := filepath.Walk(from, func(_ string, info os.FileInfo, err error) error {
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil {
		return err
	}
	mib := size>>20 + size>>25 + 16 // what the file system takes for itself: 3 %
	// No journal, for it is only read.
	return tool(ctx, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", "256", "-L", "multipaas", "-d", from, file, strconv.FormatInt(mib, 10)+"M")
}

func tool(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

func (v *VM) file(name string) string { return filepath.Join(v.cfg.Dir, name) }

// Name is the machine's host name.
func (v *VM) Name() string { return v.cfg.Name }

// Console is the file with what the machine has said on its serial console.
func (v *VM) Console() string { return v.file("console") }

// Power switches the machine on. It boots while we go on; Run waits for it.
func (v *VM) Power() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.qemu != nil {
		return fmt.Errorf("%s is on", v.cfg.Name)
	}
	for _, socket := range []string{v.file("qmp"), v.file("agent"), v.cfg.Link} {
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	console, err := os.OpenFile(v.Console(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	q, err := start("qemu-system-x86_64", v.arguments(), console)
	if err != nil {
		return err
	}
	qmp, err := q.await(v.file("qmp"))
	if err == nil {
		err = qmp.call(time.Minute, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		q.kill()
		return fmt.Errorf("start %s: %w: %s", v.cfg.Name, err, q.said())
	}
	v.qemu, v.qmp = q, qmp
	return nil
}

func (v *VM) arguments() []string {
	address := v.cfg.Address
	last := address.Addr().As4()[3]
	mask := netip.MustParseAddr("255.255.255.255").As4()
	for i := range mask {
		mask[i] <<= max(0, min(8, 8*(i+1)-address.Bits()))
	}
	kernel := []string{
		"root=LABEL=root", "rw", "console=ttyS0", "net.ifnames=0", "panic=10",
		// What is dear to emulate and nothing to us: a serial port that is
		// talked to all the time, flushes that guard against real processors' flaws.
		"loglevel=5", "systemd.show_status=error", "mitigations=off", "init_on_alloc=0", "random.trust_cpu=on",
		"systemd.hostname=" + v.cfg.Name,
		fmt.Sprintf("ip=%s:::%s:%s:eth0:off", address.Addr(), netip.AddrFrom4(mask), v.cfg.Name),
	}
	return []string{
		"-name", v.cfg.Name, "-nodefaults", "-no-user-config", "-display", "none",
		// Emulated: the machines that build this have no usable KVM.
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(v.cfg.CPUs), "-m", strconv.Itoa(v.cfg.MemoryMiB),
		"-kernel", filepath.Join(string(v.cfg.Image), "vmlinuz"), "-initrd", filepath.Join(string(v.cfg.Image), "initrd.img"),
		"-append", strings.Join(kernel, " "),
		"-drive", "if=none,id=root,format=qcow2,discard=unmap,file=" + v.file("disk"),
		"-device", "virtio-blk-pci,drive=root",
		"-drive", "if=none,id=multipaas,format=raw,read-only=on,file=" + v.cfg.Disk,
		"-device", "virtio-blk-pci,drive=multipaas",
		"-netdev", fmt.Sprintf("dgram,id=lan,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s", v.cfg.Link, v.cfg.Peer),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=lan,mac=52:54:00:00:00:%02x,romfile=", last),
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + v.file("agent"),
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-serial", "stdio",
		"-qmp", "unix:" + v.file("qmp") + ",server=on,wait=off",
	}
}

// Cut takes the power away: what the machine has not written is lost.
func (v *VM) Cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.qemu == nil {
		return
	}
	v.hangUp()
	v.qmp.close()
	v.qemu.kill()
	v.qemu, v.qmp = nil, nil
}

// hangUp drops the connection to the agent. v.mu is held.
func (v *VM) hangUp() {
	if v.agent != nil {
		v.agent.close()
		v.agent = nil
	}
}

// Stop halts the machine's processors and Go lets them run again; devices keep
// what they hold.
func (v *VM) Stop() error { return v.command("stop", nil) }

// Go is the opposite of Stop.
func (v *VM) Go() error { return v.command("cont", nil) }

func (v *VM) command(name string, arguments any) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.qemu == nil {
		return fmt.Errorf("%s is off", v.cfg.Name)
	}
	if err := v.qmp.call(time.Minute, name, arguments, nil); err != nil {
		return fmt.Errorf("%s: %w", v.cfg.Name, err)
	}
	return nil
}

// Save keeps the machine as it is, memory and disk, under a name in its disk's
// file; Load takes it back there. Machines that talk to each other are stopped,
// all saved, and then told to go on.
func (v *VM) Save(name string) error { return v.monitor("savevm " + name) }

// Load is the opposite of Save. The clock of the machine goes on from where it
// was: set it.
func (v *VM) Load(name string) error {
	v.mu.Lock()
	v.hangUp()
	v.mu.Unlock()
	return v.monitor("loadvm " + name)
}

// monitor gives a command of QEMU's older protocol, which answers by a text, if
// it has something to complain of.
func (v *VM) monitor(line string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.qemu == nil {
		return fmt.Errorf("%s is off", v.cfg.Name)
	}
	var said string
	err := v.qmp.call(10*time.Minute, "human-monitor-command", map[string]any{"command-line": line}, &said)
	if said = strings.TrimSpace(said); err == nil && said != "" {
		err = errors.New(said)
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", v.cfg.Name, line, err)
	}
	return nil
}

// process is a QEMU that ends with us, however we end.
type process struct {
	cmd    *exec.Cmd
	errors *os.File
	ended  chan struct{}
}

// start starts a program whose standard output is out.
func start(name string, args []string, out *os.File) (*process, error) {
	said, err := os.CreateTemp("", "multipaas-vm-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(said.Name()) // the open file is enough
	p := &process{cmd: exec.Command(name, args...), errors: said, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, said
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	go func() {
		// The death signal comes when the thread that forked ends, so this one
		// stays until the process has.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.ended)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, said.Close())
	}
	return p, nil
}

// await connects to a socket that the process is about to make.
func (p *process) await(socket string) (*wire, error) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		w, err := dial(socket)
		if err == nil {
			return w, nil
		}
		select {
		case <-p.ended:
			return nil, errors.New("QEMU ended at once")
		default:
		}
		if time.Now().After(deadline) {
			return nil, err
		}
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// said is what the process has complained of.
func (p *process) said() string {
	text := make([]byte, 4096)
	n, _ := p.errors.ReadAt(text, 0)
	return strings.TrimSpace(string(text[:n]))
}
