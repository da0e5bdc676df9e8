package machine

import (
	"slices"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// syscalls is what all that runs in a machine may ask the kernel for: its services,
// its pods with a filter of their own or without, and who has become root in it.
// It is what containers commonly may that have the machine's capabilities, less
// what opens the kernel wide and nothing in a machine needs. mapped says that
// the machine has a user namespace, in which runc leaves device filters alone.
func syscalls(b *specs.Spec, mapped bool) (*specs.LinuxSeccomp, error) {
	filter, err := seccomp.GetDefaultProfile(b)
	if err != nil {
		return nil, err
	}
	refused := []string{
		// Below and in ioctls.go, by what they are asked for; socketcall is the same behind a pointer, for
		// old programs of 32 bits.
		"socket", "socketcall", "keyctl", "ioctl",
		// Where kernels have been broken into.
		"perf_event_open", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd",
		"fanotify_init", "fanotify_mark", "lookup_dcookie", "quotactl", "quotactl_fd", "syslog", "open_by_handle_at",
	}
	if mapped {
		refused = append(refused, "bpf")
	}
	for i := range filter.Syscalls {
		s := &filter.Syscalls[i]
		s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(name string) bool { return slices.Contains(refused, name) })
	}
	filter.Syscalls = slices.DeleteFunc(filter.Syscalls, func(s specs.LinuxSyscall) bool { return len(s.Names) == 0 })
	allow := func(name string, first ...uint64) {
		for _, v := range first {
			filter.Syscalls = append(filter.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 0, Value: v, Op: specs.OpEqualTo}}})
		}
	}
	// Other families would have the host load modules that hardly anybody looks after.
	allow("socket", unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET)
	// runc gives each container a keyring of its own.
	allow("keyctl", unix.KEYCTL_GET_KEYRING_ID, unix.KEYCTL_JOIN_SESSION_KEYRING, unix.KEYCTL_SETPERM, unix.KEYCTL_DESCRIBE)
	for _, arg := range ioctls() {
		filter.Syscalls = append(filter.Syscalls, specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{arg}})
	}
	// runc, for pods.
	filter.Syscalls = append(filter.Syscalls, specs.LinuxSyscall{Names: []string{"pivot_root"}, Action: specs.ActAllow})
	return filter, nil
}
