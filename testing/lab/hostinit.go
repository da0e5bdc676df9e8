package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

const (
	// initWord makes a program that calls Hook be a host's process 1.
	initWord = "lab-host-init"
	// unitWord makes it be a service, in a view of the host as a systemd unit has one.
	unitWord = "lab-host-unit"
	// initEnv holds the configuration from the first stage for the second.
	initEnv = "LAB_HOST_INIT"

	hostFiles     = 20_000 // open at once: what a session of systemd's gives, or less
	hostPath      = "/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	controlSocket = "/run/lab/control.sock"
	cfgFD         = 3
	readyFD       = 4
	stopTime      = 2 * time.Minute
	restartPause  = time.Second
)

// hostEnv is the environment of what runs on a host.
func hostEnv() []string {
	return []string{"PATH=" + hostPath, "HOME=/run/lab/home", "USER=root", "LANG=C.UTF-8"}
}

// initConfig is what process 1 needs to know.
type initConfig struct {
	Host    string       `json:"host"`
	Address netip.Prefix `json:"address"`
	MAC     string       `json:"mac"`
	Dir     string       `json:"dir"`
	Exe     string       `json:"exe"`
	Binary  string       `json:"binary"`
	Groups  []hierarchy  `json:"groups"`
	Unified bool         `json:"unified"`
	Hosts   string       `json:"hosts"`
}

type order struct {
	Do      string         `json:"do"`
	Service Service        `json:"service"`
	Signal  syscall.Signal `json:"signal"`
}

type answer struct {
	Error    string          `json:"error,omitempty"`
	Services []ServiceStatus `json:"services,omitempty"`
}

// Hook must be the first thing that main, or a TestMain, calls: the program is
// started anew as process 1 of each host, and then Hook does not return.
func Hook() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == initWord:
		err = hostInit()
	case len(os.Args) > 3 && os.Args[1] == unitWord:
		err = unitInit(os.Args[2], os.Args[3:])
	default:
		return
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", strings.Join(os.Args[1:], " "), err)
	os.Exit(1)
}

func hostInit() error {
	if text, ok := os.LookupEnv(initEnv); ok {
		os.Unsetenv(initEnv)
		var cfg initConfig
		if err := json.Unmarshal([]byte(text), &cfg); err != nil {
			return err
		}
		return hostMain(cfg)
	}
	// First stage. We are in our groups once the configuration is here, so now
	// they can become the roots of our view.
	text, err := io.ReadAll(os.NewFile(cfgFD, "configuration"))
	if err != nil {
		return err
	}
	var cfg initConfig
	if err := json.Unmarshal(text, &cfg); err != nil {
		return fmt.Errorf("nobody wants me: %w", err) // who started us has died
	}
	// This changes one thread only; by executing, that thread becomes all of the
	// process.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare control groups: %w", err)
	}
	env := append(os.Environ(), initEnv+"="+string(text))
	return fmt.Errorf("execute %s: %w", cfg.Exe, syscall.Exec(cfg.Exe, os.Args, env))
}

// hostMain is process 1. It returns only if the host can't come up.
func hostMain(cfg initConfig) error {
	syscall.CloseOnExec(readyFD)
	ready := os.NewFile(readyFD, "ready")
	if err := mountHost(cfg); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(cfg.Host)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := networkHost(cfg); err != nil {
		return err
	}
	ln, err := net.Listen("unix", controlSocket)
	if err != nil {
		return err
	}
	in := &hostServices{running: map[string]*running{}, unified: cfg.Unified}
	// Signals that end other processes are ignored by the kernel for process 1
	// as long as it has no handler; SIGCHLD has one.
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			in.reap()
		}
	}()
	if err := in.boot(); err != nil {
		return err
	}
	if _, err := ready.Write([]byte{1}); err != nil {
		return err
	}
	ready.Close()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go in.serve(conn)
	}
}

// networkHost sets up the link that was put into our namespace before we got
// our configuration, or is about to be.
func networkHost(cfg initConfig) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	var eth netlink.Link
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if eth, err = netlink.LinkByName("eth0"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("eth0: %w", err)
		}
	}
	addr, err := netlink.ParseAddr(cfg.Address.String())
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.AddrAdd(eth, addr), netlink.LinkSetUp(eth)); err != nil {
		return fmt.Errorf("set up eth0: %w", err)
	}
	return nil
}

// hostServices starts, restarts and reaps.
type hostServices struct {
	unified bool

	mu      sync.Mutex // also held while a child is started, so that reap knows each
	running map[string]*running
}

type running struct {
	service  Service
	pid      int           // 0: does not run
	gone     chan struct{} // closed when pid has ended
	stopping bool
	restarts int
	exit     string
}

func serviceFile(name string) string {
	return filepath.Join("/run/lab/host/services", name+".json")
}

// boot starts the services that were on when the host went off.
func (in *hostServices) boot() error {
	files, err := filepath.Glob(serviceFile("*"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, f := range files {
		var s Service
		data, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		if err == nil {
			err = in.start(s)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "service %s: %v\n", f, err)
		}
	}
	return nil
}

func (in *hostServices) serve(conn net.Conn) {
	defer conn.Close()
	var (
		o order
		a answer
	)
	err := json.NewDecoder(conn).Decode(&o)
	if err == nil {
		switch o.Do {
		case "start":
			if err = in.stop(o.Service.Name); err == nil {
				err = in.start(o.Service)
			}
		case "stop":
			err = in.stop(o.Service.Name)
			if rerr := os.Remove(serviceFile(o.Service.Name)); err == nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = rerr
			}
		case "signal":
			err = in.signal(o.Service.Name, o.Signal)
		case "list":
			a.Services = in.list()
		default:
			err = fmt.Errorf("%q: unknown order", o.Do)
		}
	}
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(a) // who asked may be gone
}

// start starts a service and remembers it for the next boot.
func (in *hostServices) start(s Service) error {
	if strings.ContainsAny(s.Name, "/.") || s.Name == "" {
		return fmt.Errorf("%q: not a name", s.Name)
	}
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	r := &running{service: s}
	if err := in.spawn(r); err != nil {
		return err
	}
	in.running[s.Name] = r
	return os.WriteFile(serviceFile(s.Name), data, 0o600)
}

// spawn starts the process of a service. in.mu is held.
func (in *hostServices) spawn(r *running) error {
	log, err := os.OpenFile(filepath.Join("/run/lab/host/log", r.service.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	path, err := lookPath(r.service.Args[0])
	if err != nil {
		return err
	}
	attr := &os.ProcAttr{
		Dir: "/", Env: slices.Concat(hostEnv(), []string{hostmount.Variable + "=/proc/1/ns/mnt"}, r.service.Env),
		Files: []*os.File{null, log, log},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if in.unified {
		// As an init system does: each service in a group of its own.
		group := filepath.Join(cgroupRoot, r.service.Name+".service")
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		dir, err := os.Open(group)
		if err != nil {
			return err
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	p, err := os.StartProcess("/proc/self/exe", append([]string{"lab", unitWord, path}, r.service.Args...), attr)
	if err != nil {
		return err
	}
	r.pid, r.gone = p.Pid, make(chan struct{})
	return p.Release() // reap waits for all children alike
}

// unitInit becomes a service whose mounts are its own, as in the appliance's units: the
// host's show there, what it mounts itself shows nowhere else, and it can't write
// to the system.
func unitInit(path string, args []string) error {
	// As in the first stage: this thread becomes all of the process.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	m := &mounter{}
	m.mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	for _, dir := range []string{"/", "/etc"} {
		m.mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	if m.err != nil {
		return m.err
	}
	return fmt.Errorf("execute %s: %w", path, syscall.Exec(path, args, os.Environ()))
}

func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for dir := range strings.SplitSeq(hostPath, ":") {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s: no such command", name)
}

// reap asks for every child that has ended, services and orphans alike.
func (in *hostServices) reap() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, r := range in.running {
			if r.pid != pid {
				continue
			}
			r.pid = 0
			r.exit = fmt.Sprintf("status %d", status.ExitStatus())
			if status.Signaled() {
				r.exit = status.Signal().String()
			}
			close(r.gone)
			if !r.stopping && !r.service.Once {
				time.AfterFunc(restartPause, func() { in.restart(r) })
			}
		}
	}
}

func (in *hostServices) restart(r *running) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if r.stopping || r.pid != 0 || in.running[r.service.Name] != r {
		return
	}
	r.restarts++
	if err := in.spawn(r); err != nil {
		fmt.Fprintf(os.Stderr, "restart %s: %v\n", r.service.Name, err)
		time.AfterFunc(restartPause, func() { in.restart(r) })
	}
}

func (in *hostServices) stop(name string) error {
	in.mu.Lock()
	r, ok := in.running[name]
	if !ok {
		in.mu.Unlock()
		return nil
	}
	r.stopping = true
	pid, gone := r.pid, r.gone
	if pid != 0 {
		_ = unix.Kill(pid, unix.SIGTERM)
	}
	delete(in.running, name)
	if pid != 0 {
		in.running[name] = r // until it is gone, so that reap finds it
	}
	in.mu.Unlock()
	if pid == 0 {
		return nil
	}
	select {
	case <-gone:
	case <-time.After(stopTime):
		_ = unix.Kill(pid, unix.SIGKILL)
		<-gone
		return fmt.Errorf("did not stop within %s, killed", stopTime)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.running[name] == r {
		delete(in.running, name)
	}
	return nil
}

func (in *hostServices) signal(name string, sig syscall.Signal) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	r, ok := in.running[name]
	if !ok || r.pid == 0 {
		return errors.New("does not run")
	}
	return unix.Kill(r.pid, sig)
}

func (in *hostServices) list() []ServiceStatus {
	in.mu.Lock()
	defer in.mu.Unlock()
	var all []ServiceStatus
	for _, r := range in.running {
		all = append(all, ServiceStatus{Name: r.service.Name, PID: r.pid, Restarts: r.restarts, Exit: r.exit})
	}
	slices.SortFunc(all, func(a, b ServiceStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}
