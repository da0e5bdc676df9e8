package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterVariable hands the filter of system calls from one tool to the next.
const filterVariable = "ATTACK_FILTER"

// walled tries walls as the process PID would: as its user, in its network and its
// file system, through its filter of system calls, with DIR to write in. Each wall is tried in a process
// of its own. It is started by root of the host.
func walled(ctx context.Context, args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("want PID DIR WALL..., have %q", args)
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if filter, ok := os.LookupEnv(filterVariable); ok {
		return walledOne(pid, args[1], args[2], filter)
	}
	filter, err := filterOf(pid)
	if err != nil {
		return err
	}
	for _, wall := range args[2:] {
		cmd := exec.CommandContext(ctx, "/proc/self/exe", "walled", args[0], args[1], wall)
		cmd.Env = append(os.Environ(), filterVariable+"="+hex.EncodeToString(filter))
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", wall, err, out)
		}
		if _, err := os.Stdout.Write(out); err != nil {
			return err
		}
	}
	return nil
}

// filterOf reads the filter of system calls of a process from the kernel.
func filterOf(pid int) ([]byte, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(pid); err != nil {
		return nil, fmt.Errorf("attach to %d: %w", pid, err)
	}
	defer func() { _ = unix.PtraceDetach(pid) }()
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		return nil, err
	}
	const getFilter = 0x420c // PTRACE_SECCOMP_GET_FILTER
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, getFilter, uintptr(pid), 0, 0, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("size of the filter of %d: %w", pid, errno)
	}
	filter := make([]byte, n*unsafe.Sizeof(unix.SockFilter{}))
	_, _, errno = unix.Syscall6(unix.SYS_PTRACE, getFilter, uintptr(pid), 0, uintptr(unsafe.Pointer(&filter[0])), 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("filter of %d: %w", pid, errno)
	}
	return filter, nil
}

func walledOne(pid int, dir, wall, filter string) error {
	kind, what, _ := strings.Cut(wall, ":")
	try, ok := breakers[kind]
	if !ok {
		return fmt.Errorf("unknown wall %q", wall)
	}
	code, err := hex.DecodeString(filter)
	if err != nil {
		return err
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		return err
	}
	user := uintptr(info.Sys().(*syscall.Stat_t).Uid)
	if user == 0 {
		return fmt.Errorf("%d is root's", pid)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for _, space := range []struct {
		name string
		kind int
	}{{"net", unix.CLONE_NEWNET}, {"mnt", unix.CLONE_NEWNS}} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, space.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(fd)
			err = unix.Setns(fd, space.kind)
		}
		if err != nil {
			return fmt.Errorf("enter %s of %d: %w", space.name, pid, err)
		}
	}
	// Raw calls: of this thread alone.
	for _, c := range [][4]uintptr{{unix.SYS_SETGROUPS, 0, 0}, {unix.SYS_SETRESGID, user, user, user},
		{unix.SYS_SETRESUID, user, user, user}, {unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1}} {
		if _, _, errno := unix.RawSyscall6(c[0], c[1], c[2], c[3], 0, 0, 0); errno != 0 {
			return fmt.Errorf("become user %d: call %d: %w", user, c[0], errno)
		}
	}
	program := unix.SockFprog{Len: uint16(len(code) / int(unsafe.Sizeof(unix.SockFilter{}))),
		Filter: (*unix.SockFilter)(unsafe.Pointer(&code[0]))}
	if _, _, errno := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER,
		uintptr(unsafe.Pointer(&program))); errno != 0 {
		return fmt.Errorf("take the filter: %w", errno)
	}
	own, err := os.MkdirTemp(dir, "break-")
	if err != nil {
		return err
	}
	defer os.Remove(own)
	if err := try(own, what); err != nil {
		fmt.Println(wall, "closed", err)
	} else {
		fmt.Println(wall, "open")
	}
	return nil
}
