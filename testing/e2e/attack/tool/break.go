package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// breakers are ways to reach from a machine to what is its host's, each with what it
// is tried on: "socket:38". What succeeds changes nothing, or what was there already.
var breakers = map[string]func(dir, what string) error{
	// A family of sockets, whose module the host may load.
	"socket": func(_, family string) error {
		n, err := strconv.Atoi(family)
		if err != nil {
			return err
		}
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET} {
			var fd int
			if fd, err = unix.Socket(n, kind, 0); err == nil {
				return unix.Close(fd)
			}
			if !errors.Is(err, unix.EPERM) { // asked, and found none of that kind: the kernel went to look
				return nil
			}
		}
		return err
	},
	// A device, by a node of one's own: KIND:MAJOR:MINOR.
	"device": func(dir, what string) error {
		f := strings.Split(what, ":")
		major, err1 := strconv.ParseUint(f[1], 10, 32)
		minor, err2 := strconv.ParseUint(f[2], 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		kind := map[string]uint32{"b": unix.S_IFBLK, "c": unix.S_IFCHR}[f[0]]
		return device(dir, kind, uint32(major), uint32(minor))
	},
	// A file of the kernel's, under a mount of one's own if there can be one.
	"proc":  func(dir, name string) error { return fresh("proc", dir, name, os.O_WRONLY) },
	"sys":   func(dir, name string) error { return fresh("sysfs", dir, name, os.O_WRONLY) },
	"readp": func(dir, name string) error { return fresh("proc", dir, name, os.O_RDONLY) },
	// A file system that shows the host's kernel.
	"mount": func(dir, kind string) error { return unix.Mount(kind, dir, kind, 0, "") },
	// A limit of the machine's own, in its control group: CONTROLLER/FILE.
	"limit": func(_, name string) error {
		controller, file := filepath.Split(name)
		var err error
		for _, place := range []string{filepath.Join("/sys/fs/cgroup", controller), "/sys/fs/cgroup"} {
			target := filepath.Join(place, file)
			_ = unix.Mount("", place, "", unix.MS_REMOUNT|unix.MS_BIND, "")
			var f *os.File
			if f, err = os.OpenFile(target, os.O_WRONLY, 0); err == nil {
				return f.Close()
			}
		}
		return err
	},
	// A file of the host's that the machine is shown, read-only.
	"shown": func(_, name string) error {
		_ = unix.Mount("", name, "", unix.MS_REMOUNT|unix.MS_BIND, "")
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if errors.Is(err, unix.ETXTBSY) { // it runs: only who may write it is told so
			return nil
		}
		if err == nil {
			f.Close()
		}
		return err
	},
	// A file or a folder of the host's, and a socket.
	"read":  func(_, name string) error { _, err := os.Open(name); return err },
	"write": func(_, name string) error { _, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0); return err },
	"talk": func(_, name string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrUnix{Name: name})
	},
	// A process of the host's, by its id.
	"signal": func(_, pid string) error { n, err := strconv.Atoi(pid); return errors.Join(err, unix.Kill(n, 0)) },
	"trace":  func(_, pid string) error { n, err := strconv.Atoi(pid); return errors.Join(err, unix.PtraceAttach(n)) },
	"memory": func(_, pid string) error { _, err := os.Open("/proc/" + pid + "/mem"); return err },
	"seen":   func(_, pid string) error { _, err := os.ReadFile("/proc/" + pid + "/cmdline"); return err },
	"root":   func(_, pid string) error { _, err := os.ReadDir("/proc/" + pid + "/root"); return err },
	// A program.
	"run": func(_, name string) error { return unix.Exec(name, []string{name}, nil) },
	// A protocol of netlink but the list of routes.
	"netlink": func(_, protocol string) error {
		n, err := strconv.Atoi(protocol)
		if err != nil {
			return err
		}
		_, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, n)
		return err
	},
	// A system call, by its name in calls.
	"call": func(dir, name string) error {
		c, ok := calls[name]
		if !ok {
			return fmt.Errorf("unknown call %q", name)
		}
		return c(dir)
	},
}

// fresh opens a file of the kernel's, of a mount of one's own, or of the one there is.
func fresh(kind, dir, name string, how int) error {
	root := map[string]string{"proc": "/proc", "sysfs": "/sys"}[kind]
	if unix.Mount(kind, dir, kind, 0, "") == nil {
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
		root = dir
	}
	f, err := os.OpenFile(filepath.Join(root, name), how|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if how == os.O_RDONLY { // some are open to all and tell nobody
		var b [1]byte
		n, err := f.Read(b[:])
		if n == 0 {
			return fmt.Errorf("it is empty: %w", err)
		}
	}
	return nil
}

func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	return none(errno)
}

func pointer[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }

var nosuch = [8]byte{'/', 'n', 'o', 's', 'u', 'c', 'h', 0}

// refusedOnly says whether a call was refused: one that found its arguments
// bad had been let in.
func refusedOnly(err error) error {
	if err == nil || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EACCES) {
		return err
	}
	return nil
}

// calls are system calls that a machine's host allows none of its machines.
var calls = map[string]func(dir string) error{
	"init_module":  gains["kernel-module"],
	"finit_module": func(string) error { return refusedOnly(call(unix.SYS_FINIT_MODULE, 0, pointer(&nosuch), 0)) },
	"delete_module": func(string) error {
		return refusedOnly(call(unix.SYS_DELETE_MODULE, pointer(&nosuch), unix.O_NONBLOCK))
	},
	"kexec_load":        func(string) error { return refusedOnly(call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 1<<31)) },
	"kexec_file_load":   func(string) error { return refusedOnly(call(unix.SYS_KEXEC_FILE_LOAD, 0, 0, 0, 0, 0)) },
	"swapon":            func(string) error { return refusedOnly(call(unix.SYS_SWAPON, pointer(&nosuch), 0)) },
	"swapoff":           gains["swap-off"],
	"clock_settime":     gains["clock"],
	"settimeofday":      func(string) error { var now unix.Timeval; _ = unix.Gettimeofday(&now); return unix.Settimeofday(&now) },
	"adjtimex":          func(string) error { x := unix.Timex{Modes: 2}; _, err := unix.Adjtimex(&x); return refusedOnly(err) },
	"iopl":              gains["ports"],
	"ioperm":            func(string) error { return call(unix.SYS_IOPERM, 0x80, 1, 1) },
	"syslog":            gains["kernel-log"],
	"acct":              func(string) error { return refusedOnly(call(unix.SYS_ACCT, 0)) },
	"quotactl":          func(string) error { return refusedOnly(call(unix.SYS_QUOTACTL, 0x800001<<8, pointer(&nosuch), 0, 0)) },
	"open_by_handle_at": gains["file-handle"],
	"bpf":               gains["bpf"],
	"bpf_detach": func(string) error { // of a device filter, from a control group
		group, err := unix.Open("/sys/fs/cgroup", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		attr := [32]uint32{uint32(group), 0, 6} // BPF_CGROUP_DEVICE
		return refusedOnly(call(unix.SYS_BPF, 9, pointer(&attr), unsafe.Sizeof(attr)))
	},
	"perf_event_open": gains["performance-events"],
	"io_uring_setup":  func(string) error { var p [128]byte; return refusedOnly(call(unix.SYS_IO_URING_SETUP, 1, pointer(&p))) },
	"userfaultfd":     func(string) error { return refusedOnly(call(unix.SYS_USERFAULTFD, 1)) }, // of its own process only
	"fanotify_init":   func(string) error { return refusedOnly(call(unix.SYS_FANOTIFY_INIT, 0, 0)) },
	"lookup_dcookie":  func(string) error { return refusedOnly(call(unix.SYS_LOOKUP_DCOOKIE, 0, 0, 0)) },
	"add_key": func(string) error {
		_, err := unix.AddKey("user", "attack", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
		return refusedOnly(err)
	},
	"request_key": func(string) error {
		_, err := unix.RequestKey("user", "attack", "", unix.KEY_SPEC_PROCESS_KEYRING)
		return refusedOnly(err)
	},
	"keyctl_search": func(string) error {
		_, err := unix.KeyctlSearch(unix.KEY_SPEC_USER_KEYRING, "user", "attack", 0)
		return refusedOnly(err)
	},
	"keyctl_persist": func(string) error { return refusedOnly(call(unix.SYS_KEYCTL, unix.KEYCTL_GET_PERSISTENT, 0, 0)) },
	"reboot": func(string) error { // no more than what Ctrl-Alt-Del does
		return refusedOnly(call(unix.SYS_REBOOT, 0xfee1dead, 672274793, 0, 0))
	},
	"other_mounts": func(string) error { // from our own to all that our user namespace owns
		own, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		const getNext = 0x8010b70b // NS_MNT_GET_NEXT
		var info [16]byte
		return refusedOnly(call(unix.SYS_IOCTL, uintptr(own), getNext, pointer(&info)))
	},
	"nice":            func(string) error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) },
	"realtime":        func(string) error { p := [1]int32{50}; return call(unix.SYS_SCHED_SETSCHEDULER, 0, 1, pointer(&p)) },
	"ioprio_realtime": func(string) error { return call(unix.SYS_IOPRIO_SET, 1, 0, 1<<13) },
	"oom_score":       func(string) error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) },
	"open_files": func(string) error {
		l := unix.Rlimit{Cur: 1 << 29, Max: 1 << 29}
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	},
	"locked_memory": func(string) error {
		l := unix.Rlimit{Cur: 1 << 40, Max: 1 << 40}
		return raise(unix.RLIMIT_MEMLOCK, &l)
	},
	"messages": func(string) error {
		l := unix.Rlimit{Cur: 1 << 40, Max: 1 << 40}
		return raise(unix.RLIMIT_MSGQUEUE, &l)
	},
	"mount_disk":    func(dir string) error { return unix.Mount("/dev/loop0", dir, "xfs", 0, "") },
	"mount_image":   func(dir string) error { return unix.Mount("/dev/vda", dir, "ext4", unix.MS_RDONLY, "") },
	"owner_of_host": func(dir string) error { return unix.Lchown(dir, 1<<31, 1<<31) }, // nobody of the machine's
	"user_of_host":  func(string) error { return call(unix.SYS_SETRESUID, 1<<31, 1<<31, 1<<31) },
}

// raise lifts a limit that is not there already.
func raise(what int, to *unix.Rlimit) error {
	var have unix.Rlimit
	if err := unix.Getrlimit(what, &have); err != nil {
		return err
	}
	if have.Max == unix.RLIM_INFINITY {
		return errors.New("there is no limit to lift")
	}
	return unix.Setrlimit(what, to)
}

// breakAll tries each wall in a process of its own, with mounts of its own if it can
// have them.
func breakAll(ctx context.Context, walls []string) error {
	if len(walls) == 1 {
		return breakOne(walls[0])
	}
	for _, wall := range walls {
		out, err := exec.CommandContext(ctx, "/proc/self/exe", "break", wall).CombinedOutput()
		if err != nil {
			out = fmt.Appendf(nil, "%s closed it ended with %v: %s\n", wall, err, strings.Join(strings.Fields(string(out)), " "))
		}
		if _, err := os.Stdout.Write(out); err != nil {
			return err
		}
	}
	return nil
}

func breakOne(wall string) error {
	kind, what, _ := strings.Cut(wall, ":")
	try, ok := breakers[kind]
	if !ok {
		return fmt.Errorf("unknown wall %q", wall)
	}
	dir, err := os.MkdirTemp("/dev/shm", "break-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	runtime.LockOSThread()
	if unix.Unshare(unix.CLONE_NEWNS) == nil {
		_ = unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
	}
	if err := try(dir, what); err != nil {
		fmt.Println(wall, "closed", err)
	} else {
		fmt.Println(wall, "open")
	}
	return nil
}
