// Package seal gives up, for all threads of this process and for good, every system
// call that the control plane of a workspace doesn't need.
//
// It promises that a process that is sealed starts no other, runs no other program,
// becomes nobody else, makes no namespace and no mount, looks into no other process,
// and opens no sockets but unix, IPv4, IPv6 and the kernel's list of routes. What is
// refused gets EPERM.
//
// The process does it itself, before it reads anything of a tenant's: whoever
// started it would have to leave it what a start needs, execve and clone3 among
// it, whose arguments a filter can't see. Only command kube imports it.
package seal

import (
	"fmt"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// allowed are those that Go's runtime and library, SQLite and the API server's
// watches of its files make.
var allowed = []string{
	// Often: kernels before 5.11 look through the list for each call.
	"futex", "epoll_pwait", "nanosleep", "read", "write", "tgkill", "madvise", "sched_yield", "getpid", "rt_sigreturn",

	// Memory and threads.
	"mmap", "munmap", "mprotect", "mremap", "brk", "mincore", "exit", "exit_group", "gettid",
	"set_robust_list", "set_tid_address",
	"sched_getaffinity", "arch_prctl", "membarrier", "rseq", "sigaltstack", "rt_sigaction", "rt_sigprocmask", "rt_sigpending",
	"restart_syscall", "kill",

	// Time, chance, and what is known of this process.
	"clock_gettime", "clock_getres", "clock_nanosleep", "gettimeofday", "time", "getrandom", "getppid", "getpgrp", "getpgid",
	"getuid", "geteuid", "getgid", "getegid", "getgroups", "getresuid", "getresgid", "uname", "sysinfo",
	"getrlimit", "getrusage", "times",

	// Files.
	"open", "openat", "close", "close_range", "lseek", "pread64", "pwrite64", "readv", "writev", "preadv", "pwritev",
	"stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs",
	"access", "faccessat", "readlink", "readlinkat", "getcwd",
	"getdents64", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2", "truncate", "ftruncate",
	"fallocate", "fsync", "fdatasync", "fcntl", "flock", "umask", "chmod", "fchmod", "fchmodat", "utimensat",
	"copy_file_range", "sendfile", "splice", "pipe", "pipe2", "dup", "dup2", "dup3",
	"inotify_init1", "inotify_add_watch", "inotify_rm_watch",

	// Waiting and sockets.
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait2", "eventfd2", "poll", "ppoll", "select", "pselect6",
	"bind", "connect", "listen", "accept", "accept4", "getsockname", "getpeername", "getsockopt", "setsockopt",
	"sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "shutdown",
}

// when are calls that are allowed for one argument only.
func when(
	name string, argument uint32, op seccomp.Operation, value uint64, more ...seccomp.Condition,
) seccomp.NameWithConditions {
	first := seccomp.Condition{Argument: argument, Operation: op, Value: value}
	return seccomp.NameWithConditions{Name: name, Conditions: append(seccomp.ArgumentConditions{first}, more...)}
}

// namespaces are the flags of clone that make some.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET

// specAllow leaves speculative execution as it is elsewhere: kernels before 5.16 else
// slow a filtered process down, to guard it from code that it runs itself.
const specAllow = seccomp.FilterFlag(unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)

// Process seals this process. It can't be undone.
func Process() error {
	err := seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync | specAllow,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno,
			Syscalls: []seccomp.SyscallGroup{
				{Action: seccomp.ActionAllow, Names: allowed, NamesWithCondtions: []seccomp.NameWithConditions{
					when("clone", 0, seccomp.BitsSet, unix.CLONE_THREAD,
						seccomp.Condition{Argument: 0, Operation: seccomp.BitsNotSet, Value: namespaces}),
					when("prctl", 0, seccomp.Equal, unix.PR_SET_NAME),
					when("prctl", 0, seccomp.Equal, unix.PR_SET_VMA), // Go names its memory
					when("prlimit64", 0, seccomp.Equal, 0),
					when("socket", 0, seccomp.Equal, unix.AF_UNIX),
					when("socket", 0, seccomp.Equal, unix.AF_INET),
					when("socket", 0, seccomp.Equal, unix.AF_INET6),
					when("socket", 0, seccomp.Equal, unix.AF_NETLINK,
						seccomp.Condition{Argument: 2, Operation: seccomp.Equal, Value: unix.NETLINK_ROUTE}),
				}},
				// Who is told that a kernel is older asks in another way.
				{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3", "openat2", "faccessat2"}},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("give up system calls: %w: the kernel must have CONFIG_SECCOMP_FILTER", err)
	}
	return nil
}
