package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/resource"
)

// killPatience is how long a machine's processes may take to end by themselves. Thousands
// take a second or two.
const killPatience = 2 * time.Second

// kill ends every process of a machine, or returns an error when ctx is done. One that waits
// for a FUSE whose answers another process of the machine owes takes no signal: such file systems
// are told that there will be none.
func (s *Sandbox) kill(ctx context.Context, uid string) error {
	patient, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	err := cgroup.KillAll(patient, cgroupName(uid))
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if err := s.abortFUSE(ctx, uid); err != nil {
		s.cfg.Log.Warn("abort the FUSE file systems of a machine that does not end", "uid", uid, "err", err)
	}
	return cgroup.KillAll(ctx, cgroupName(uid))
}

// abortFUSE ends the FUSE file systems of a machine: those that its processes see mounted, and
// those of its workspace's users that no other of its machines sees, which may be mounted nowhere
// any more. What the host sees too is spared.
func (s *Sandbox) abortFUSE(ctx context.Context, uid string) error {
	spared, err := hostFUSE()
	if err != nil {
		return err
	}
	seen := map[uint32]bool{}
	errs := []error{seenFUSE(ctx, uid, seen)}
	first, others, err := s.sameUsers(uid)
	elsewhere := map[uint32]bool{}
	for _, other := range others {
		err = errors.Join(err, seenFUSE(ctx, other, elsewhere))
	}
	if err != nil { // what is another's isn't known
		errs, first = append(errs, err), 0
	}
	control, err := openFUSEControl()
	if errors.Is(err, unix.ENODEV) {
		return nil // this kernel has no FUSE
	}
	if err != nil {
		return err
	}
	defer control.Close()
	names, err := control.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		number, err := strconv.ParseUint(name, 10, 32)
		if err != nil || spared[uint32(number)] {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(control.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue // gone meanwhile
		}
		// It belongs to who mounted it: for the kernel of root in the machine, or of another of its users.
		ours := first != 0 && st.Uid >= first && st.Uid-first < resource.MachineUIDs && !elsewhere[uint32(number)]
		if !ours && !seen[uint32(number)] {
			continue
		}
		fd, err := unix.Openat(int(control.Fd()), name+"/abort", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte("1"))
			unix.Close(fd)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("abort FUSE %s: %w", name, err))
			continue
		}
		s.cfg.Log.Warn("aborted a FUSE file system, which kept a process of its machine from ending", "uid", uid, "connection", name)
	}
	return errors.Join(errs...)
}

// sameUsers are the first user of a machine's workspace, 0 if it has none of its own, and the
// other machines here that have those users.
func (s *Sandbox) sameUsers(uid string) (first uint32, others []string, err error) {
	rec, err := readRecord(s.home(uid).at(recordName))
	if first = rec.Machine.Spec.FirstUID; err != nil || first == 0 {
		return 0, nil, err
	}
	uids, err := cgroup.List(groups)
	for _, other := range uids {
		rec, err := readRecord(s.home(other).at(recordName))
		if other != uid && (err != nil || rec.Machine.Spec.FirstUID == first) {
			others = append(others, other)
		}
	}
	return first, others, err
}

// openFUSEControl opens a folder with a folder for each FUSE connection of the host, named for
// the minor number of its device. It is mounted nowhere. Linux 5.2 has such mounts.
func openFUSEControl() (*os.File, error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open fusectl: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("open fusectl: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open fusectl: %w", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open fusectl: %w", err)
	}
	return os.NewFile(uintptr(fd), "fusectl"), nil
}

// hostFUSE are the minor device numbers of what the host itself has mounted.
func hostFUSE() (map[uint32]bool, error) {
	minors := map[uint32]bool{}
	for _, at := range []func(func() error) error{hostmount.Do, func(fn func() error) error { return fn() }} {
		if err := at(func() error { return readMinors(context.Background(), "/proc/thread-self/mountinfo", minors) }); err != nil {
			return nil, fmt.Errorf("read what the host has mounted: %w", err)
		}
	}
	return minors, nil
}

// seenFUSE adds the minor device numbers of what processes of a machine see mounted.
func seenFUSE(ctx context.Context, uid string, minors map[uint32]bool) error {
	pids, err := cgroup.Procs(cgroupName(uid))
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, pid := range pids {
		// Each task: the first of a process may have ended, and others wait.
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, task := range tasks {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			ns, err := os.Readlink(task + "/ns/mnt")
			if err != nil || seen[ns] {
				continue
			}
			seen[ns] = true
			err = readMinors(ctx, task+"/mountinfo", minors)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
				return err
			}
		}
	}
	return nil
}

// readMinors adds the minor device numbers of FUSE mounts in a mountinfo file.
func readMinors(ctx context.Context, file string, minors map[uint32]bool) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 256<<20)) // 100,000 mounts, which is all that there may be, of 2.5 KiB
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fields, kind, _ := strings.Cut(lines.Text(), " - ") // proc_pid_mountinfo(5)
		f := strings.Fields(fields)
		if len(f) < 3 || !strings.HasPrefix(kind, "fuse") {
			continue
		}
		_, minor, _ := strings.Cut(f[2], ":")
		if n, err := strconv.ParseUint(minor, 10, 32); err == nil {
			minors[uint32(n)] = true
		}
	}
	return lines.Err()
}
