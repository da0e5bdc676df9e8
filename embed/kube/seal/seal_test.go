package seal

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMain lets this program be one that is sealed, that tries the walls and tells.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "sealed" {
		os.Exit(sealed(os.Args[2]))
	}
	os.Exit(m.Run())
}

func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}

func address[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }

func socket(family, kind, protocol int) func() error {
	return func() error { _, err := unix.Socket(family, kind, protocol); return err }
}

var (
	nowhere = [9]byte{'/', 'n', 'o', 'w', 'h', 'e', 'r', 'e', 0}
	slash   = [2]byte{'/', 0}
	proc    = [5]byte{'p', 'r', 'o', 'c', 0}
	zeros   [256]byte
)

// walls are what a sealed process may not do. The kernel lets root do nearly all of
// it, and this test is root.
var walls = map[string]func() error{
	"run a program":            func() error { return call(unix.SYS_EXECVE, address(&nowhere), 0, 0) },
	"run a program by a file":  func() error { return call(unix.SYS_EXECVEAT, ^uintptr(99), address(&nowhere), 0, 0, 0) },
	"start a process":          func() error { return call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)) },
	"start a process by fork":  func() error { return call(unix.SYS_FORK) },
	"start a process by vfork": func() error { return call(unix.SYS_VFORK) },
	"start a process, lately":  func() error { return call(unix.SYS_CLONE3, address(&zeros), 64) },
	"a thread with a network of its own": func() error {
		return call(unix.SYS_CLONE, unix.CLONE_THREAD|unix.CLONE_VM|unix.CLONE_SIGHAND|unix.CLONE_NEWNET)
	},
	"a user namespace":       func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"a mount namespace":      func() error { return unix.Unshare(unix.CLONE_NEWNS) },
	"a network namespace":    func() error { return unix.Unshare(unix.CLONE_NEWNET) },
	"a file table":           func() error { return unix.Unshare(unix.CLONE_FILES) },
	"another's namespace":    func() error { return call(unix.SYS_SETNS, 0, 0) },
	"mount":                  func() error { return call(unix.SYS_MOUNT, address(&proc), address(&slash), address(&proc), 0, 0) },
	"mount, lately":          func() error { return call(unix.SYS_FSOPEN, address(&proc), 0) },
	"copy a mount":           func() error { return call(unix.SYS_OPEN_TREE, 0, address(&slash), 1) },
	"move a mount":           func() error { return call(unix.SYS_MOVE_MOUNT, 0, address(&slash), 0, address(&slash), 0) },
	"settings of a mount":    func() error { return call(unix.SYS_MOUNT_SETATTR, 0, address(&slash), 0, address(&zeros), 32) },
	"unmount":                func() error { return call(unix.SYS_UMOUNT2, address(&nowhere), 0) },
	"another root":           func() error { return call(unix.SYS_CHROOT, address(&slash)) },
	"another root by pivot":  func() error { return call(unix.SYS_PIVOT_ROOT, address(&slash), address(&slash)) },
	"another user":           func() error { return call(unix.SYS_SETUID, 0) },
	"another group":          func() error { return call(unix.SYS_SETGID, 0) },
	"other groups":           func() error { return call(unix.SYS_SETGROUPS, 0, 0) },
	"another user for files": func() error { return call(unix.SYS_SETRESUID, 0, 0, 0) },
	"capabilities":           func() error { return call(unix.SYS_CAPSET, address(&zeros), address(&zeros)) },
	"give a file away":       func() error { return call(unix.SYS_CHOWN, address(&nowhere), 0, 0) },
	"give an open file away": func() error { return call(unix.SYS_FCHOWN, 0, 0, 0) },
	"make a device":          func() error { return call(unix.SYS_MKNOD, address(&nowhere), unix.S_IFCHR, 0x103) },
	"make a link":            func() error { return call(unix.SYS_LINK, address(&nowhere), address(&nowhere)) },
	"make a symbolic link":   func() error { return call(unix.SYS_SYMLINK, address(&nowhere), address(&nowhere)) },
	"attributes of a file":   func() error { return call(unix.SYS_SETXATTR, address(&nowhere), address(&proc), 0, 0, 0) },
	"look into a process":    func() error { return call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(os.Getppid())) },
	"be looked into":         func() error { return call(unix.SYS_PTRACE, unix.PTRACE_TRACEME) },
	"read another's memory":  func() error { return call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()), 0, 0, 0, 0, 0) },
	"write another's memory": func() error { return call(unix.SYS_PROCESS_VM_WRITEV, uintptr(os.Getppid()), 0, 0, 0, 0, 0) },
	"advise another's":       func() error { return call(unix.SYS_PROCESS_MADVISE, 0, 0, 0, 0, 0) },
	"compare processes":      func() error { return call(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(os.Getppid()), 0, 0, 0) },
	"hold a process":         func() error { return call(unix.SYS_PIDFD_OPEN, uintptr(os.Getppid()), 0) },
	"another's open file":    func() error { return call(unix.SYS_PIDFD_GETFD, 0, 0, 0) },
	"another's limits": func() error {
		return call(unix.SYS_PRLIMIT64, uintptr(os.Getppid()), unix.RLIMIT_NOFILE, 0, address(&zeros))
	},
	"limits, of old":         func() error { return call(unix.SYS_SETRLIMIT, unix.RLIMIT_NOFILE, address(&zeros)) },
	"io_uring":               func() error { return call(unix.SYS_IO_URING_SETUP, 1, address(&zeros)) },
	"enter an io_uring":      func() error { return call(unix.SYS_IO_URING_ENTER, 0, 0, 0, 0, 0, 0) },
	"register an io_uring":   func() error { return call(unix.SYS_IO_URING_REGISTER, 0, 0, 0, 0) },
	"asynchronous reads":     func() error { return call(unix.SYS_IO_SETUP, 1, address(&zeros)) },
	"performance events":     func() error { return call(unix.SYS_PERF_EVENT_OPEN, address(&zeros), 0, ^uintptr(0), ^uintptr(0), 0) },
	"programs in the kernel": func() error { return call(unix.SYS_BPF, 0, address(&zeros), 48) },
	"faults of one's own":    func() error { return call(unix.SYS_USERFAULTFD, 1) },
	"another kernel":         func() error { return call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 1<<31) },
	"another kernel, a file": func() error { return call(unix.SYS_KEXEC_FILE_LOAD, 0, 0, 0, 0, 0) },
	"a module":               func() error { return call(unix.SYS_INIT_MODULE, 0, 0, address(&slash)) },
	"a module from a file":   func() error { return call(unix.SYS_FINIT_MODULE, 0, address(&slash), 0) },
	"remove a module":        func() error { return call(unix.SYS_DELETE_MODULE, address(&nowhere), unix.O_NONBLOCK) },
	"reboot":                 func() error { return call(unix.SYS_REBOOT, 0, 0, 0, 0) },
	"swap":                   func() error { return call(unix.SYS_SWAPON, address(&nowhere), 0) },
	"swap off":               func() error { return call(unix.SYS_SWAPOFF, address(&nowhere)) },
	"the clock":              func() error { return call(unix.SYS_CLOCK_ADJTIME, 0, address(&zeros)) },
	"set the clock":          func() error { return call(unix.SYS_SETTIMEOFDAY, 0, 0) },
	"the host's name":        func() error { return call(unix.SYS_SETHOSTNAME, address(&slash), 0) },
	"the kernel's log":       func() error { return call(unix.SYS_SYSLOG, 10, 0, 0) },
	"accounting":             func() error { return call(unix.SYS_ACCT, address(&nowhere)) },
	"quotas":                 func() error { return call(unix.SYS_QUOTACTL, 0x800001<<8, address(&nowhere), 0, 0) },
	"ports":                  func() error { return call(unix.SYS_IOPL, 0) },
	"single ports":           func() error { return call(unix.SYS_IOPERM, 0x80, 1, 0) },
	"segments":               func() error { return call(unix.SYS_MODIFY_LDT, 0, 0, 0) },
	"files by handle":        func() error { return call(unix.SYS_OPEN_BY_HANDLE_AT, 0, address(&zeros), 0) },
	"a handle of a file": func() error {
		return call(unix.SYS_NAME_TO_HANDLE_AT, 0, address(&slash), address(&zeros), address(&zeros), 0)
	},
	"what others open":       func() error { return call(unix.SYS_FANOTIFY_INIT, 0, 0) },
	"keys":                   func() error { return call(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, 0, 0) },
	"a key":                  func() error { return call(unix.SYS_ADD_KEY, address(&proc), address(&proc), 0, 0, 0) },
	"a key of others":        func() error { return call(unix.SYS_REQUEST_KEY, address(&proc), address(&proc), 0, 0) },
	"shared memory":          func() error { return call(unix.SYS_SHMGET, 0, 4096, 0o1600) },
	"semaphores":             func() error { return call(unix.SYS_SEMGET, 0, 1, 0o1600) },
	"messages":               func() error { return call(unix.SYS_MSGGET, 0, 0o1600) },
	"message queues":         func() error { return call(unix.SYS_MQ_OPEN, address(&nowhere), unix.O_CREAT, 0o600, 0) },
	"memory as a file":       func() error { return call(unix.SYS_MEMFD_CREATE, address(&nowhere), 0) },
	"secret memory":          func() error { return call(unix.SYS_MEMFD_SECRET, 0) },
	"a device's controls":    func() error { return call(unix.SYS_IOCTL, 0, 0x5412, address(&zeros)) }, // TIOCSTI
	"be more important":      func() error { return call(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, 0) },
	"be real-time":           func() error { return call(unix.SYS_SCHED_SETSCHEDULER, 0, 0, address(&zeros)) },
	"be first at the disk":   func() error { return call(unix.SYS_IOPRIO_SET, 1, 0, 1<<13) },
	"lock memory":            func() error { return call(unix.SYS_MLOCKALL, 1) },
	"move memory to nodes":   func() error { return call(unix.SYS_MBIND, 0, 0, 0, 0, 0, 0) },
	"move pages":             func() error { return call(unix.SYS_MOVE_PAGES, 0, 0, 0, 0, 0, 0) },
	"a personality":          func() error { return call(unix.SYS_PERSONALITY, 0) },
	"another filter":         func() error { return call(unix.SYS_SECCOMP, 2, 0, 0) }, // asks what there is
	"a filter by prctl":      func() error { return call(unix.SYS_PRCTL, unix.PR_GET_SECCOMP) },
	"be a subreaper":         func() error { return call(unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 0) },
	"outlive the server":     func() error { return call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0) },
	"be dumped":              func() error { return call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1) },
	"a bus of virtual hosts": socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
	"packets":                socket(unix.AF_PACKET, unix.SOCK_RAW, 0),
	"the kernel's crypto":    socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
	"bluetooth":              socket(unix.AF_BLUETOOTH, unix.SOCK_RAW, 0),
	"a bus of cars":          socket(unix.AF_CAN, unix.SOCK_RAW, 1),
	"TIPC":                   socket(unix.AF_TIPC, unix.SOCK_SEQPACKET, 0),
	"RDS":                    socket(unix.AF_RDS, unix.SOCK_SEQPACKET, 0),
	"SMC":                    socket(unix.AF_SMC, unix.SOCK_STREAM, 0),
	"XDP":                    socket(unix.AF_XDP, unix.SOCK_RAW, 0),
	"keys of IPsec":          socket(unix.AF_KEY, unix.SOCK_RAW, 2),
	"rules of netfilter":     socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER),
	"events of the kernel":   socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT),
	"audit":                  socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT),
	"generic netlink":        socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC),
	"a pair of sockets":      func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	// The kernel's two other tables of calls: 32 bits (none without a program of them), and x32.
	"a call of x32": func() error { return call(0x40000000+unix.SYS_GETPID, 0) },
}

// needs are what a sealed process goes on doing, in dir.
var needs = map[string]func(dir string) error{
	"files": func(dir string) error {
		name := filepath.Join(dir, "file")
		return errors.Join(os.WriteFile(name+".new", []byte("x"), 0o600), os.Rename(name+".new", name), os.Chmod(name, 0o640),
			os.Truncate(name, 0), os.Mkdir(filepath.Join(dir, "folder"), 0o700), os.RemoveAll(filepath.Join(dir, "folder")))
	},
	"threads": func(string) error {
		there, end := make(chan bool), make(chan bool)
		for range 20 {
			go func() { runtime.LockOSThread(); there <- true; <-end }()
		}
		for range 20 {
			<-there
		}
		close(end)
		runtime.GC()
		return nil
	},
	"connections": func(dir string) error {
		var errs []error
		for _, at := range []struct{ network, address string }{{"tcp", "127.0.0.1:0"}, {"unix", filepath.Join(dir, "socket")}} {
			ln, err := net.Listen(at.network, at.address)
			if err != nil {
				return err
			}
			go func() {
				if c, err := ln.Accept(); err == nil {
					_, _ = c.Write([]byte("hello"))
					c.Close()
				}
			}()
			c, err := net.Dial(at.network, ln.Addr().String())
			if err != nil {
				return err
			}
			var b [5]byte
			n, err := c.Read(b[:])
			if n != 5 {
				errs = append(errs, fmt.Errorf("%s: %d bytes, %w", at.network, n, err))
			}
			errs = append(errs, c.Close(), ln.Close())
		}
		return errors.Join(errs...)
	},
	"interfaces": func(string) error { _, err := net.Interfaces(); return err },
	"watches": func(dir string) error {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return err
		}
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY)
		return errors.Join(err, unix.Close(fd))
	},
	"signals": func(string) error { return unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGURG) },
}

// sealed is the sealed process: it tells a line for each wall and need.
func sealed(dir string) int {
	// A thread that was there before is sealed too.
	ask, answer := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread()
		for try := range ask {
			answer <- try()
		}
	}()
	ask <- func() error { return nil }
	<-answer
	if err := Process(); err != nil {
		fmt.Println(err)
		return 1
	}
	tell := func(name string, err error) {
		var errno unix.Errno
		switch {
		case err == nil:
			fmt.Printf("%s\tdone\n", name)
		case errors.As(err, &errno):
			fmt.Printf("%s\t%s\n", name, unix.ErrnoName(errno))
		default:
			fmt.Printf("%s\t%v\n", name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(walls)) {
		tell(name, walls[name]())
		ask <- walls[name]
		tell("an older thread: "+name, <-answer)
	}
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		tell("need: "+name, needs[name](dir))
	}
	return 0
}

func TestProcess(t *testing.T) {
	out, err := exec.Command(os.Args[0], "sealed", t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("the sealed process: %v\n%s", err, out)
	}
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		got[name] = what
	}
	older := []string{"start a process, lately", "a call of x32"} // they are told that the kernel is too old
	for name := range walls {
		want := "EPERM"
		if slices.Contains(older, name) {
			want = "ENOSYS"
		}
		for _, who := range []string{"", "an older thread: "} {
			if got[who+name] != want {
				t.Errorf("%s%s: %s, want %s", who, name, got[who+name], want)
			}
		}
	}
	for name := range needs {
		if got["need: "+name] != "done" {
			t.Errorf("%s: %s, want it done", name, got["need: "+name])
		}
	}
	if t.Failed() {
		t.Logf("it told\n%s", out)
	}
}

func TestAllowed(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range allowed {
		if seen[name] {
			t.Errorf("%s is in the list twice", name)
		}
		seen[name] = true
	}
	for _, name := range []string{"execve", "clone", "clone3", "ptrace", "mount", "setns", "unshare", "bpf", "ioctl", "socket"} {
		if seen[name] {
			t.Errorf("%s is allowed", name)
		}
	}
}
