package machine

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/testing/wait"
)

// holdFUSE mounts a FUSE of a machine's user, and serves it or, if it is "stuck", waits in one
// thread for what another never answers: no signal ends either.
func holdFUSE(t *testing.T, how string) error {
	runtime.LockOSThread() // and never unlocked
	dir := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=0,allow_other", fd, testFirst)
	err = cmp.Or(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
		unix.Mount("stuck", dir, "fuse.test", 0, options))
	if err != nil {
		return err
	}
	request := make([]byte, 1<<20)
	if _, err := unix.Read(fd, request); err != nil {
		return err
	}
	answer := make([]byte, 16+64) // fuse_out_header, fuse_init_out
	binary.LittleEndian.PutUint32(answer, uint32(len(answer)))
	copy(answer[8:16], request[8:16])
	binary.LittleEndian.PutUint32(answer[16:], 7)
	binary.LittleEndian.PutUint32(answer[20:], 31)
	binary.LittleEndian.PutUint32(answer[36:], 4096)
	if _, err := unix.Write(fd, answer); err != nil {
		return err
	}
	if strings.Contains(how, "over a namespace") {
		return holdOver(fd, request, filepath.Join(dir, "ns"), strings.Contains(how, "unread"))
	}
	inside, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	if strings.Contains(how, "nowhere") {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	taken := make(chan error, 1)
	go func() {
		_, err := unix.Read(fd, request)
		taken <- err
		if err == nil {
			select {}
		}
		fmt.Fprintln(os.Stderr, "read from FUSE:", err)
		os.Exit(1) // it was aborted
	}()
	if strings.Contains(how, "idle") {
		return nil
	}
	go func() {
		var st unix.Stat_t
		_ = unix.Fstatat(inside, "x", &st, 0)
	}()
	return <-taken
}

// holdOver mounts a network namespace on a file of the FUSE, which is never found again.
// unread: who looks for it isn't even read.
func holdOver(fd int, request []byte, path string, unread bool) error {
	mounted := make(chan bool)
	go func() {
		for {
			if _, err := unix.Read(fd, request); err != nil {
				fmt.Fprintln(os.Stderr, "read from FUSE:", err)
				os.Exit(1)
			}
			const lookup, getattr = 1, 3
			var answer []byte
			switch op := binary.LittleEndian.Uint32(request[4:]); op {
			case lookup: // fuse_entry_out, good for no time
				select {
				case <-mounted:
					if !unread {
						continue
					}
					answer = make([]byte, 16)
					binary.LittleEndian.PutUint32(answer, uint32(len(answer)))
					binary.LittleEndian.PutUint32(answer[4:], ^uint32(unix.ENOENT)+1)
					copy(answer[8:16], request[8:16])
					_, _ = unix.Write(fd, answer)
					select {}
				default:
				}
				answer = make([]byte, 16+128)
				binary.LittleEndian.PutUint64(answer[16:], 2)
				binary.LittleEndian.PutUint64(answer[16+40:], 2)
				binary.LittleEndian.PutUint32(answer[16+40+60:], unix.S_IFREG|0o644)
				binary.LittleEndian.PutUint32(answer[16+40+64:], 1)
			case getattr: // fuse_attr_out, good for an hour
				answer = make([]byte, 16+104)
				binary.LittleEndian.PutUint64(answer[16:], 3600)
				binary.LittleEndian.PutUint64(answer[16+16:], 1)
				binary.LittleEndian.PutUint32(answer[16+16+60:], unix.S_IFDIR|0o755)
				binary.LittleEndian.PutUint32(answer[16+16+64:], 2)
			default:
				answer = make([]byte, 16)
				binary.LittleEndian.PutUint32(answer[4:], ^uint32(unix.ENOSYS)+1)
			}
			binary.LittleEndian.PutUint32(answer, uint32(len(answer)))
			copy(answer[8:16], request[8:16])
			_, _ = unix.Write(fd, answer) // who asked may have gone
		}
	}()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	err = cmp.Or(unix.Unshare(unix.CLONE_NEWNET), unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""),
		unix.Setns(int(own.Fd()), unix.CLONE_NEWNET))
	close(mounted)
	if unread {
		var st unix.Stat_t
		_ = unix.Stat(filepath.Join(filepath.Dir(path), "last"), &st) // the last that is read
	}
	return err
}

// TestKillFUSE: a machine whose processes wait for each other in the kernel is ended; file systems
// of others go on.
func TestKillFUSE(t *testing.T) {
	s := NewSandbox(Config{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	idle := holder(t, s, "FUSE idle", 1<<30, testFirst)
	for _, how := range []string{"FUSE stuck", "FUSE stuck nowhere mounted"} {
		uid := holder(t, s, how, 1<<30, testFirst)
		short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := cgroup.KillAll(short, cgroupName(uid)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: it ended by itself, nothing was tried: %v", how, err)
		}
		cancel()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		began := time.Now()
		if err := s.kill(ctx, uid); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		cancel()
		t.Logf("%s: ended after %v", how, time.Since(began))
	}
	if pids, err := cgroup.Procs(cgroupName(idle)); err != nil || len(pids) != 1 {
		t.Errorf("a file system of the same workspace's other machine: its processes are %v: %v", pids, err)
	}
	// Its daemon lives, and is told when there is an end.
	if err := s.abortFUSE(t.Context(), idle); err != nil {
		t.Error(err)
	}
	wait.For(t, wait.Patience, "the daemon has ended", func(context.Context) error {
		if pids, err := cgroup.Procs(cgroupName(idle)); err != nil || len(pids) > 0 {
			return fmt.Errorf("processes %v: %w", pids, err)
		}
		return nil
	})
}
