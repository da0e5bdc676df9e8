package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
)

// Host is one host of a lab. It is safe for concurrent use.
type Host struct {
	lab  *Lab
	name string
}

// Service is a command that a host runs until it is stopped, as its init system
// would: again when the host boots, and again when it ends.
type Service struct {
	Name string   `json:"name"` // of its log file too; "": the name of the command
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"` // added to the host's own
	// Once says not to start it again when it ends by itself.
	Once bool `json:"once,omitempty"`
}

// ServiceStatus is how a service is.
type ServiceStatus struct {
	Name     string `json:"name"`
	PID      int    `json:"pid"` // as the host sees it; 0: does not run
	Restarts int    `json:"restarts"`
	Exit     string `json:"exit,omitempty"` // how it ended last
}

// ErrOff is returned for what needs a host that is switched on.
var ErrOff = errors.New("the host is switched off")

// Name is the host's name.
func (h *Host) Name() string { return h.name }

// Address is the host's address on the lab's network.
func (h *Host) Address() netip.Addr { return h.state().Address }

// Dir is the host's folder here: its disk is below "data", the output of its
// services below "log".
func (h *Host) Dir() string { return filepath.Join(h.lab.dir, "hosts", h.name) }

// Data is where /var/lib/multipaas of the host stands here. It is there also
// when the host is off.
func (h *Host) Data(elem ...string) string {
	return filepath.Join(append([]string{h.Dir(), "data"}, elem...)...)
}

// Root is where the host's file system is seen from here, while it is on.
func (h *Host) Root(elem ...string) string {
	root := fmt.Sprintf("/proc/%d/root", h.state().Init.PID)
	return filepath.Join(append([]string{root}, elem...)...)
}

// LogFile is the file with the output of a service.
func (h *Host) LogFile(service string) string {
	return filepath.Join(h.Dir(), "log", service+".log")
}

// PID is the id of the host's process 1, as we see it; 0 if it is off.
func (h *Host) PID() int {
	if s := h.state(); s.Init.alive() {
		return s.Init.PID
	}
	return 0
}

// Running says whether the host is switched on.
func (h *Host) Running() bool { return h.PID() != 0 }

// Binary is what the host was booted with, for finding out whether it is old.
func (h *Host) Binary() string { return h.state().Binary }

func (h *Host) state() hostState {
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	if s, ok := h.lab.state.host(h.name); ok {
		return *s
	}
	return hostState{Name: h.name}
}

// Netns opens the host's network, to dial and listen there. The caller closes it.
func (h *Host) Netns() (*netns.NS, error) {
	h.lab.refresh()
	pid := h.PID()
	if pid == 0 {
		return nil, fmt.Errorf("%s: %w", h.name, ErrOff)
	}
	return netns.OpenPID(pid)
}

// Boot switches the host on: with the disk it had, with everything else new. It
// starts the services that were not stopped. A host that is on stays as it is.
func (h *Host) Boot(ctx context.Context) (err error) {
	h.lab.refresh()
	if h.Running() {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("boot %s: %w", h.name, err)
		}
	}()
	st := h.state()
	// What a host that was killed from elsewhere has left.
	if err := h.clear(ctx); err != nil {
		return err
	}
	for _, dir := range []string{"data", "etc", "log", "services"} {
		if err := os.MkdirAll(filepath.Join(h.Dir(), dir), 0o755); err != nil {
			return err
		}
	}
	groups, err := makeGroups(h.lab.slot.groupName(h.name))
	if err != nil {
		return err
	}
	own, err := initGroups(groups)
	if err != nil {
		return err
	}
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	cfg := initConfig{
		Host: h.name, Address: netip.PrefixFrom(st.Address, h.lab.slot.subnet().Bits()), MAC: h.lab.slot.mac(st.Index),
		Dir: h.Dir(), Exe: h.lab.exe, Binary: h.lab.opt.Binary, Groups: hs, Unified: unified(), Hosts: h.lab.hostsFile(),
	}
	init, network, ready, err := h.startInit(cfg, own)
	if err != nil {
		return err
	}
	defer network.Close()
	defer ready.Close()
	// What process 1 said tells more than that it is not there.
	said := func(err error) error {
		return errors.Join(fmt.Errorf("%w\n%s", err, tailOf(filepath.Join(h.Dir(), "log", "init.log"))), h.clear(ctx))
	}
	if err := h.connect(network, st.Index); err != nil {
		return said(err)
	}
	binary := Fingerprint(h.lab.opt.Binary)
	err = h.lab.change(func(s *state) error {
		e, ok := s.host(h.name)
		if !ok {
			return errors.New("the host was removed")
		}
		e.Init, e.Binary = init, binary
		return nil
	})
	if err != nil {
		return errors.Join(err, h.clear(ctx))
	}
	if err := awaitReady(ctx, ready); err != nil {
		return said(err)
	}
	return h.lab.applyFaults(ctx)
}

// startInit starts process 1, which waits for its link before it goes on, and
// returns its network namespace.
func (h *Host) startInit(cfg initConfig, groups []string) (init process, network, ready *os.File, err error) {
	data, err := json.Marshal(cfg)
	if err != nil {
		return init, nil, nil, err
	}
	log, err := os.OpenFile(filepath.Join(h.Dir(), "log", "init.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return init, nil, nil, err
	}
	defer log.Close()
	// Two pipes: over one it gets its configuration, over the other it says that
	// it is ready. Both end when either side dies.
	cfgR, cfgW, err := os.Pipe()
	if err != nil {
		return init, nil, nil, err
	}
	defer cfgR.Close()
	defer cfgW.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return init, nil, nil, err
	}
	defer readyW.Close()
	cmd := exec.Command(h.lab.exe, initWord, h.name)
	cmd.Env = []string{"PATH=" + hostPath}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{cfgR, readyW}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		return init, nil, nil, errors.Join(err, readyR.Close())
	}
	go cmd.Wait() // so that no zombie stays if we live longer; it has no other parent than us
	// It can't get far before it is in its groups: it waits for its configuration.
	err = errors.Join(enterGroups(groups, cmd.Process.Pid), limitFiles(cmd.Process.Pid))
	if err == nil {
		// Not later: once it has its configuration it executes itself from one of its
		// threads, and until the others are gone its pid is that of a dead thread, which has
		// no namespaces any more (seen: "make link: no such process").
		init = findProcess(cmd.Process.Pid)
		network, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	}
	if err == nil {
		_, err = cfgW.Write(data) // a pipe holds 64 KiB: it does not block
	}
	if err != nil {
		cmd.Process.Kill()
		if network != nil {
			network.Close()
		}
		return init, nil, nil, errors.Join(err, readyR.Close())
	}
	return init, network, readyR, nil
}

// limitFiles gives a process, and all that it starts, as many files as a host has,
// whatever whoever runs the lab has: the appliance's shares are computed from it.
func limitFiles(pid int) error {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return err
	}
	n := min(hostFiles, have.Max)
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil {
		return fmt.Errorf("limit files: %w", err)
	}
	return nil
}

// awaitReady waits for a byte of process 1.
func awaitReady(ctx context.Context, ready *os.File) error {
	got := make(chan error, 1)
	go func() {
		n, err := ready.Read(make([]byte, 1))
		if n == 1 {
			err = nil
		} else if err == nil {
			err = errors.New("nothing was read")
		}
		got <- err
	}()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	select {
	case err := <-got:
		if err != nil {
			return errors.New("process 1 ended before the host was up")
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process 1 is not ready: %w", ctx.Err())
	}
}

// mac is the hardware address of a host: always the same, so that neighbours
// don't remember another after a boot.
func (s slot) mac(index int) string {
	return fmt.Sprintf("02:1a:b0:%02x:%02x:%02x", s.Number>>8, s.Number&0xff, index)
}

// connect links the network namespace of process 1 to the bridge.
func (h *Host) connect(network *os.File, index int) error {
	bridge, err := netlink.LinkByName(h.lab.slot.bridge())
	if err != nil {
		return fmt.Errorf("bridge %s: %w", h.lab.slot.bridge(), err)
	}
	mac, err := net.ParseMAC(h.lab.slot.mac(index))
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = h.lab.slot.link(index)
	attrs.MasterIndex = bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(network.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s: %w", attrs.Name, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set link %s up: %w", attrs.Name, err)
	}
	return nil
}

// Kill pulls the plug: every process of the host dies at once. Its disk stays.
func (h *Host) Kill(ctx context.Context) error {
	h.lab.refresh()
	if st := h.state(); st.Init.alive() {
		if err := unix.Kill(st.Init.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %s: %w", h.name, err)
		}
	}
	if err := h.clear(ctx); err != nil {
		return fmt.Errorf("kill %s: %w", h.name, err)
	}
	return nil
}

// clear removes what of a host is outside of it.
func (h *Host) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	group := h.lab.slot.groupName(h.name)
	if err := killTree(ctx, group); err != nil {
		return err
	}
	// By itself our end of the link would go a while after the namespace.
	link, err := netlink.LinkByName(h.lab.slot.link(h.state().Index))
	if err == nil {
		if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove link: %w", err)
		}
	}
	return errors.Join(removeTree(ctx, group), removeMounts(h.Dir()), detachLoops(ctx, h.Dir()))
}

// Command returns a command that will run on the host, as its root, when it is
// started. Its process is nsenter's; what it runs dies with the host.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	h.lab.refresh()
	pid := h.PID()
	if pid == 0 {
		cmd := exec.CommandContext(ctx, args[0])
		cmd.Err = fmt.Errorf("%s: %w: `lab boot %s` switches it on", h.name, ErrOff, h.name)
		return cmd
	}
	// nsenter joins namespaces, not groups: the shell enters those first.
	groups, err := makeGroups(h.lab.slot.groupName(h.name))
	if err == nil {
		groups, err = initGroups(groups)
	}
	script := `for g; do [ "$g" = -- ] && break; echo $$ >"$g/cgroup.procs"; shift; done; shift
exec nsenter --target ` + fmt.Sprint(pid) + ` --mount --uts --ipc --net --pid --cgroup --wd=/ -- "$@"`
	cmdArgs := append([]string{"-c", script, "lab-exec"}, groups...)
	cmdArgs = append(append(cmdArgs, "--"), args...)
	cmd := exec.CommandContext(ctx, "/bin/sh", cmdArgs...)
	cmd.Env = hostEnv()
	if term := os.Getenv("TERM"); term != "" {
		cmd.Env = append(cmd.Env, "TERM="+term)
	}
	// Killing nsenter leaves its child, in the host, alive; the group takes both.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	if err != nil {
		cmd.Err = err
	}
	return cmd
}

// Run runs a command on the host and returns what it printed. The error holds
// what it printed on standard error.
func (h *Host) Run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := h.Command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s: %s: %w: %s", h.name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// WriteFile writes a file on the host, which is on.
func (h *Host) WriteFile(ctx context.Context, name string, data []byte, mode os.FileMode) error {
	cmd := h.Command(ctx, "/bin/sh", "-c", fmt.Sprintf(`umask 077; mkdir -p "$(dirname "$1")"; cat >"$1"; chmod %o "$1"`, mode.Perm()), "sh", name)
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: write %s: %w: %s", h.name, name, err, bytes.TrimSpace(out))
	}
	return nil
}

// Start starts a service on the host. One of that name is stopped first.
func (h *Host) Start(ctx context.Context, s Service) error {
	if len(s.Args) == 0 {
		return errors.New("a service without a command")
	}
	if s.Name == "" {
		s.Name = filepath.Base(s.Args[0])
	}
	_, err := h.ask(ctx, order{Do: "start", Service: s})
	return err
}

// Stop stops a service: SIGTERM, and SIGKILL if it takes longer than ctx lets
// it, at most two minutes. It is not started again when the host boots.
func (h *Host) Stop(ctx context.Context, name string) error {
	_, err := h.ask(ctx, order{Do: "stop", Service: Service{Name: name}})
	return err
}

// Signal sends a signal to a service's process, and that one only. With SIGKILL
// it is a crash: the service is started again a second later.
func (h *Host) Signal(ctx context.Context, name string, sig syscall.Signal) error {
	_, err := h.ask(ctx, order{Do: "signal", Service: Service{Name: name}, Signal: sig})
	return err
}

// Services says how the host's services are.
func (h *Host) Services(ctx context.Context) ([]ServiceStatus, error) {
	a, err := h.ask(ctx, order{Do: "list"})
	return a.Services, err
}

// ask sends an order to process 1.
func (h *Host) ask(ctx context.Context, o order) (answer, error) {
	h.lab.refresh()
	var a answer
	if !h.Running() {
		return a, fmt.Errorf("%s: %w", h.name, ErrOff)
	}
	var d net.Dialer
	// By way of the host's root: a path below our own folder may be too long for
	// a socket.
	conn, err := d.DialContext(ctx, "unix", h.Root(controlSocket))
	if err != nil {
		return a, fmt.Errorf("%s: ask process 1: %w", h.name, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		return a, fmt.Errorf("%s: ask process 1: %w", h.name, err)
	}
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return a, fmt.Errorf("%s: ask process 1: %w", h.name, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s %s: %s", h.name, o.Do, o.Service.Name, a.Error)
	}
	return a, nil
}

// hostsFile is the text of /etc/hosts, the same on all hosts.
func (l *Lab) hostsFile() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n")
	for _, h := range l.state.Hosts {
		fmt.Fprintf(&b, "%s %s\n", h.Address, h.Name)
	}
	return b.String()
}

// writeHosts tells hosts of one that was added.
func (l *Lab) writeHosts() error {
	text := l.hostsFile()
	for _, h := range l.Hosts() {
		if !h.Running() {
			continue // it gets the text when it boots
		}
		if err := os.WriteFile(h.Root("etc", "hosts"), []byte(text), 0o644); err != nil && h.Running() {
			return err
		}
	}
	return nil
}

// Fingerprint tells one build of a file from another without reading it.
func Fingerprint(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s %d %s", file, info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano))
}

func tailOf(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return string(data[max(0, len(data)-2000):])
}
