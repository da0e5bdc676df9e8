package main

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// daemon is a FUSE that stops answering.
type daemon struct {
	dir    string
	silent atomic.Bool
	asked  chan uint32 // operations that are never answered
}

// mountSilent mounts a FUSE below dir, which answers until it is told not to. The calling
// thread must be locked.
func mountSilent(dir string) (*daemon, error) {
	d := &daemon{dir: filepath.Join(dir, "fuse"), asked: make(chan uint32, 64)}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
		err = cmp.Or(os.Mkdir(d.dir, 0o755), unix.Mount("silent", d.dir, "fuse.silent", 0, options))
	}
	if err != nil {
		return nil, fmt.Errorf("mount a FUSE: %w", err)
	}
	go d.serve(fd)
	return d, nil
}

func (d *daemon) serve(fd int) {
	request := make([]byte, 1<<20)
	for {
		if _, err := unix.Read(fd, request); err != nil {
			return
		}
		const lookup, getattr, statfs, initialize = 1, 3, 17, 26
		op := binary.LittleEndian.Uint32(request[4:])
		if d.silent.Load() {
			d.asked <- op
			continue
		}
		answer := make([]byte, 16)
		put := func(size int, values map[int]uint32) {
			answer = append(answer, make([]byte, size)...)
			for at, value := range values {
				binary.LittleEndian.PutUint32(answer[16+at:], value)
			}
		}
		failed := func(errno unix.Errno) { binary.LittleEndian.PutUint32(answer[4:], ^uint32(errno)+1) }
		switch op {
		case initialize: // fuse_init_out
			put(64, map[int]uint32{0: 7, 4: 31, 20: 4096})
		case getattr: // fuse_attr_out: a folder, good for an hour
			put(104, map[int]uint32{0: 3600, 16: 1, 16 + 60: unix.S_IFDIR | 0o755, 16 + 64: 2})
		case statfs: // fuse_statfs_out
			put(80, map[int]uint32{40: 4096, 44: 255})
		case lookup:
			failed(unix.ENOENT)
		default:
			failed(unix.ENOSYS)
		}
		binary.LittleEndian.PutUint32(answer, uint32(len(answer)))
		copy(answer[8:16], request[8:16])
		_, _ = unix.Write(fd, answer) // who asked may have gone
	}
}

// silent makes the root of every process of the machine that has none of its own, of the first
// too, an overlay of a FUSE that answers nobody; and has processes wait for FUSE whose answers they
// owe themselves, so that no signal ends them: one for each of where, "mounted" or "nowhere". It does so
// until its input ends.
func silent(where []string) error {
	for _, how := range where {
		cmd := exec.Command("/proc/self/exe", "undead", how)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err := cmp.Or(err, cmd.Start()); err != nil {
			return err
		}
		line := make([]byte, 5)
		if _, err := io.ReadFull(out, line); err != nil {
			return fmt.Errorf("undead, %s: %w", how, err)
		}
	}
	const base = "/mnt"
	err := cmp.Or(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""), unix.Mount("none", base, "tmpfs", 0, ""))
	if err != nil {
		return err
	}
	d, err := mountSilent(base)
	if err != nil {
		return err
	}
	for _, name := range []string{"empty/run", "root"} {
		if err := os.MkdirAll(filepath.Join(base, name), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("over", base+"/root", "overlay", 0, "lowerdir="+d.dir+":"+base+"/empty"); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	if err := cmp.Or(os.Chdir(base+"/root"), unix.PivotRoot(".", ".")); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	d.silent.Store(true)
	fmt.Println("silent")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// undead waits for a FUSE of its own that is mounted, or nowhere any more.
func undead(how string) error {
	runtime.LockOSThread()
	dir, err := os.MkdirTemp("/run", "undead-")
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	d, err := mountSilent(dir)
	if err != nil {
		return err
	}
	inside, err := unix.Open(d.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	if how == "nowhere" {
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	d.silent.Store(true)
	go func() {
		<-d.asked
		fmt.Println("waits")
	}()
	var st unix.Stat_t
	return errors.Join(errors.New("it was answered"), unix.Fstatat(inside, "x", &st, 0))
}
