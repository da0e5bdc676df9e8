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

// Booted is a folder where Keep has left machines as they were after their boot:
// for each its disk and its memory.
type Booted string

func (b Booted) disk(name string) string   { return filepath.Join(string(b), name+".qcow2") }
func (b Booted) memory(name string) string { return filepath.Join(string(b), name+".memory") }

// Config says what a virtual machine is.
type Config struct {
	Name    string // its host name
	Dir     string // its own folder; short, for it holds sockets
	Image   Image
	Booted  Booted       // where Wake finds it; empty: it has never booted
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
	agent *wire         // nil: to be dialed
	spent time.Duration // by processes of QEMU that have ended
}

// Pair is what the tests run on: a server and a node with a cable between them.
// Their folders are made below dir, and dir may be gone when both are off.
func Pair(ctx context.Context, dir string, image Image, booted Booted, disk string) (server, node *VM, err error) {
	machine := func(name, peer, address string, memoryMiB int) (*VM, error) {
		own := filepath.Join(dir, name)
		if err := os.Mkdir(own, 0o700); err != nil {
			return nil, err
		}
		link := func(name string) string { return filepath.Join(dir, name+".lan") }
		return New(ctx, Config{Name: name, Dir: own, Image: image, Booted: booted, Disk: disk, CPUs: 2, MemoryMiB: memoryMiB,
			Address: netip.MustParsePrefix(address), Link: link(name), Peer: link(peer)})
	}
	server, err = machine("server", "node", "192.0.2.10/24", 3072)
	if err != nil {
		return nil, nil, err
	}
	node, err = machine("node", "server", "192.0.2.11/24", 3584)
	return server, node, err
}

// New makes a machine with an empty copy of the disk of the image, or of what
// Keep has left. It is off.
func New(ctx context.Context, cfg Config) (*VM, error) {
	v := &VM{cfg: cfg}
	base := filepath.Join(string(cfg.Image), "root.qcow2")
	if cfg.Booted != "" {
		base = cfg.Booted.disk(cfg.Name)
	}
	base, err := filepath.Abs(base)
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

// Address is where the other machine finds it.
func (v *VM) Address() netip.Addr { return v.cfg.Address.Addr() }

// Console is the file with what the machine has said on its serial console.
func (v *VM) Console() string { return v.file("console") }

// Power switches the machine on. It boots while we go on; Run waits for it.
func (v *VM) Power() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var second []string
	if v.cfg.Disk != "" {
		second = []string{"-device", "virtio-blk-pci,id=second,drive=second,bus=bay"}
	}
	return v.start(second...)
}

// Disks are what PowerWithDisks adds, as the machine calls them: one by NVMe, one by ATA. The kernel for clouds has no
// driver for SATA's own controllers (AHCI).
var Disks = []string{"/dev/nvme0n1", "/dev/sda"}

// PowerWithDisks is Power with two disks more of 64 MiB, empty, which can say how they are, as virtual ones can't else.
func (v *VM) PowerWithDisks() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	more := []string{"-device", "virtio-blk-pci,id=second,drive=second,bus=bay", "-device", "piix3-ide,id=ata"}
	for i, device := range []string{"nvme,id=nvme,serial=nvme1", "ide-hd,bus=ata.0,serial=ata1"} {
		file := v.file(fmt.Sprintf("more%d", i))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(file, 64<<20); err != nil {
			return err
		}
		more = append(more, "-drive", fmt.Sprintf("if=none,id=more%d,format=raw,file=%s", i, file),
			"-device", fmt.Sprintf("%s,drive=more%d", device, i))
	}
	return v.start(more...)
}

// Warn has the NVMe disk of PowerWithDisks give these critical warnings, the bits of NVM Express Base Specification 2.0,
// 5.16.1.3.
func (v *VM) Warn(bits int) error {
	return v.command("qom-set", map[string]any{"path": "/machine/peripheral/nvme", "property": "smart_critical_warning",
		"value": bits}, nil)
}

// start starts QEMU. v.mu is held.
func (v *VM) start(more ...string) error {
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
	q, err := start("qemu-system-x86_64", append(v.arguments(), more...), console)
	if err != nil {
		return err
	}
	qmp, err := q.await(v.file("qmp"))
	if err == nil {
		err = qmp.call(answerTime, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		q.kill()
		return fmt.Errorf("start %s: %w: %s", v.cfg.Name, err, q.said())
	}
	v.qemu, v.qmp = q, qmp
	return nil
}

// Keep stops a machine that has booted and leaves its disk and memory in a
// folder, where Wake finds them as often as it is asked. The machine is off then.
func (v *VM) Keep(ctx context.Context, into Booted) error {
	for _, c := range []struct {
		name      string
		arguments any
	}{
		{"stop", nil},
		{"migrate-set-parameters", map[string]any{"max-bandwidth": 1 << 40}}, // it is slowed down if not told otherwise
		{"migrate", map[string]any{"uri": "exec:cat >'" + into.memory(v.cfg.Name) + "'"}},
	} {
		if err := v.command(c.name, c.arguments, nil); err != nil {
			return err
		}
	}
	if err := v.state(ctx, "query-migrate", "completed"); err != nil {
		return err
	}
	v.Cut() // QEMU has written all of the disk before it says that it has completed
	return os.Rename(v.file("disk"), into.disk(v.cfg.Name))
}

// Wake switches the machine on as Keep has left it, sets its clock and plugs its
// second disk in, which it mounts now and at every boot from then on.
func (v *VM) Wake(ctx context.Context) error {
	v.mu.Lock()
	err := v.start("-incoming", "exec:cat '"+v.cfg.Booted.memory(v.cfg.Name)+"'")
	v.mu.Unlock()
	if err != nil {
		return err
	}
	if err := v.state(ctx, "query-status", "paused"); err != nil {
		return err
	}
	if err := v.command("cont", nil, nil); err != nil {
		return err
	}
	if err := v.command("device_add", map[string]any{"driver": "virtio-blk-pci", "id": "second", "drive": "second", "bus": "bay"}, nil); err != nil {
		return err
	}
	const script = `set -e
date -s "@$1"
# Emulated, it may take long for the disk to come up.
echo "LABEL=multipaas /opt/multipaas ext4 ro,x-systemd.device-timeout=infinity 0 0" >>/etc/fstab
udevadm wait /dev/disk/by-label/multipaas
mount /opt/multipaas`
	_, err = v.Must(ctx, "sh", "-c", script, "sh", strconv.FormatInt(time.Now().Unix(), 10))
	return err
}

// state waits until QEMU says that something has come as far as wanted.
func (v *VM) state(ctx context.Context, query, wanted string) error {
	for {
		var is struct{ Status string }
		err := v.command(query, nil, &is)
		if err == nil && is.Status == wanted {
			return nil
		}
		if err == nil && is.Status == "failed" {
			err = fmt.Errorf("%s: %s has failed", v.cfg.Name, query)
		}
		if err != nil {
			v.mu.Lock()
			defer v.mu.Unlock()
			if v.qemu != nil {
				err = fmt.Errorf("%w: %s", err, v.qemu.said())
			}
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: %s says %s, want %s: %w", v.cfg.Name, query, is.Status, wanted, ctx.Err())
		}
	}
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
		// The kernel panics at boot when its timer is too slow in its test of it, which an
		// emulated one is on a busy machine. With KVM it leaves the test out by itself.
		"no_timer_check",
		// What is dear to emulate and nothing to us: a serial port that is
		// talked to all the time, flushes that guard against real processors' flaws.
		"loglevel=5", "systemd.show_status=error", "mitigations=off", "init_on_alloc=0", "random.trust_cpu=on",
		// Debian's own services are killed after three minutes without a sign,
		// which they have been too slow to give. Ours have no watchdog.
		"systemd.service_watchdogs=no",
		"systemd.hostname=" + v.cfg.Name,
		fmt.Sprintf("ip=%s:::%s:%s:eth0:off", address.Addr(), netip.AddrFrom4(mask), v.cfg.Name),
	}
	var second []string
	if v.cfg.Disk != "" {
		second = []string{"-drive", "if=none,id=second,format=raw,read-only=on,file=" + v.cfg.Disk}
	}
	return append([]string{
		"-name", v.cfg.Name, "-nodefaults", "-no-user-config", "-display", "none",
		// Emulated: the machines that build this have no usable KVM.
		// A processor without AVX, whose instructions are emulated so slowly
		// that it does the same work in four fifths of the time of -cpu max.
		"-no-reboot", // QEMU ends instead; see Reboot
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Westmere",
		"-smp", strconv.Itoa(v.cfg.CPUs), "-m", strconv.Itoa(v.cfg.MemoryMiB),
		"-kernel", filepath.Join(string(v.cfg.Image), "vmlinuz"), "-initrd", filepath.Join(string(v.cfg.Image), "initrd.img"),
		"-append", strings.Join(kernel, " "),
		"-drive", "if=none,id=root,format=qcow2,discard=unmap,file=" + v.file("disk"),
		"-device", "virtio-blk-pci,drive=root",
		// The second disk goes into a bay of its own, for it can be plugged in later.
		"-device", "pcie-root-port,id=bay",
		"-netdev", fmt.Sprintf("dgram,id=lan,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s", v.cfg.Link, v.cfg.Peer),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=lan,mac=52:54:00:00:00:%02x,romfile=", last),
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + v.file("agent"),
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-serial", "stdio",
		"-qmp", "unix:" + v.file("qmp") + ",server=on,wait=off",
	}, second...)
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
	if state := v.qemu.cmd.ProcessState; state != nil {
		v.spent += state.UserTime() + state.SystemTime()
	}
	v.qemu, v.qmp = nil, nil
}

// hangUp drops the connection to the agent. v.mu is held.
func (v *VM) hangUp() {
	if v.agent != nil {
		v.agent.close()
		v.agent = nil
	}
}

// command gives QEMU a command.
func (v *VM) command(name string, arguments, out any) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.qemu == nil {
		return fmt.Errorf("%s is off", v.cfg.Name)
	}
	if err := v.qmp.call(answerTime, name, arguments, out); err != nil {
		return fmt.Errorf("%s: %w", v.cfg.Name, err)
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
	for deadline := time.Now().Add(answerTime); ; time.Sleep(10 * time.Millisecond) {
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
