package volumes

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// handle is something in the file system, held open without touching it.
type handle struct {
	fd    int
	mount uint64 // the mount that it is in
	stat  unix.Statx_t
	// stopped: its file system has given up, and stat is empty.
	stopped bool
}

// Close may be called again.
func (p *handle) Close() {
	_ = unix.Close(p.fd)
	p.fd = -1
}

// at is how the kernel names what is below p, without looking up the way to it again.
func (p *handle) at(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", p.fd, name) }

// openRoot opens a folder that the platform has made.
func openRoot(path string) (*handle, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return newHandle(fd, path)
}

// open opens what is below p, by no link.
func (p *handle) open(path string, flags uint64) (*handle, error) {
	fd, err := unix.Openat2(p.fd, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if errors.Is(err, unix.ELOOP) {
		err = errors.New("there is a symbolic link in it")
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	o, err := newHandle(fd, path)
	if err == nil && o.stopped && o.mount != p.mount {
		o.stat.Attributes |= unix.STATX_ATTR_MOUNT_ROOT // what is opened here is that, or in the machine's own file system
	}
	return o, err
}

// makeAll opens a folder below p, and makes what is missing on the way. The kubelet has made
// it, and takes empty ones away of pods that it doesn't know any more.
func (p *handle) makeAll(path string) (*handle, error) {
	at, err := p.open(".", unix.O_DIRECTORY)
	for name := range strings.SplitSeq(path, "/") {
		if err != nil {
			break
		}
		above := at
		if err = unix.Mkdirat(above.fd, name, 0o750); err == nil || errors.Is(err, fs.ErrExist) {
			at, err = above.open(name, unix.O_DIRECTORY)
		} else {
			err = &fs.PathError{Op: "mkdir", Path: path, Err: err}
		}
		above.Close()
	}
	if err != nil {
		return nil, err
	}
	return at, nil
}

func newHandle(fd int, path string) (*handle, error) {
	p := &handle{fd: fd}
	// What the file system last said will do: it may not answer.
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC,
		unix.STATX_INO|unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_SIZE|unix.STATX_MNT_ID, &p.stat)
	if errors.Is(err, unix.EIO) {
		// XFS that has stopped says nothing of what is in it; in which mount it is the kernel knows all the same.
		p.stopped = true
		p.mount, err = mountOf(fd)
		if err == nil {
			return p, nil
		}
	}
	if err == nil && p.stat.Mask&unix.STATX_MNT_ID == 0 {
		err = errors.New("the kernel doesn't say in which mount it is: want Linux 5.8 or newer")
	}
	if err != nil {
		p.Close()
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	p.mount = p.stat.Mnt_id
	return p, nil
}

// mountOf is the ID of the mount that a file is open in, without asking its file system (proc_pid_fdinfo(5)).
func mountOf(fd int) (id uint64, err error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if text, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.ParseUint(strings.TrimSpace(text), 10, 64)
		}
	}
	return 0, errors.New("the kernel doesn't say in which mount it is")
}

// sameAs says whether both are one folder, by whatever mount.
func (p *handle) sameAs(o *handle) bool {
	return p.stat.Ino == o.stat.Ino && p.stat.Dev_major == o.stat.Dev_major && p.stat.Dev_minor == o.stat.Dev_minor
}

func (p *handle) readOnly() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(p.fd, &st); err != nil {
		return false, fmt.Errorf("statfs: %w", err)
	}
	return st.Flags&unix.ST_RDONLY != 0, nil
}

// shown opens the root of a volume that the host shows this machine.
func (n *Node) shown(id string) (*handle, error) {
	folder, err := openRoot(n.cfg.Folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, status.Errorf(codes.FailedPrecondition,
			"this machine has no folder for volumes, %s: it runs since before there were any; have it started again", n.cfg.Folder)
	}
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	volume, err := folder.open(id, unix.O_DIRECTORY)
	if err == nil && volume.mount == folder.mount {
		volume.Close()
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, status.Errorf(codes.NotFound,
			"this machine does not see volume %s: it is on another host, or its host has not mounted it", id)
	}
	return volume, err
}

// publish binds a volume to target, or of one of raw blocks the node of its device.
func (n *Node) publish(id string, target place, readOnly bool, want *csi.VolumeCapability) error {
	mode := want.GetAccessMode().GetMode()
	volume, err := n.shown(id)
	if err != nil {
		return err
	}
	defer volume.Close()
	if _, err := volume.readOnly(); volume.stopped || errors.Is(err, unix.ENOTCONN) {
		return status.Errorf(codes.Unavailable, "the file system of volume %s has stopped; its host mounts it anew once it can, "+
			"and `mp volumes show` says what it waits for", id)
	}
	shown, blocks := volume, want.GetBlock() != nil
	switch {
	case blocks:
		if shown, err = blockIn(volume, id); err != nil {
			return err
		}
		defer shown.Close()
	case volume.onlyBlocks() == nil && volume.has(deviceName):
		return status.Errorf(codes.FailedPrecondition, "volume %s is raw blocks, and no file system: "+
			"its PersistentVolume and claim want volumeMode Block", id)
	}
	pods, err := openRoot(target.root)
	if err != nil {
		return err
	}
	defer pods.Close()
	parent, err := pods.makeAll(filepath.Dir(target.rel))
	if err != nil {
		return err
	}
	defer parent.Close()
	name := filepath.Base(target.rel)
	at, err := parent.makeTarget(name, blocks)
	if err != nil {
		return err
	}
	defer at.Close()
	if at.mount != parent.mount {
		has, err := at.readOnly()
		switch {
		case at.stopped || errors.Is(err, unix.ENOTCONN):
			// It was bound before its host has mounted it anew, and stays dead.
			at.Close()
			if err := n.takeOff(target); err != nil {
				return err
			}
			return n.publish(id, target, readOnly, want)
		case err != nil:
			return err
		case !at.sameAs(shown):
			return status.Errorf(codes.AlreadyExists, "at %s something else is mounted than volume %s: delete the pod", target, id)
		case readOnly && !has:
			return status.Errorf(codes.AlreadyExists, "at %s volume %s can be written, and shall be read-only: delete the pod", target, id)
		}
		return n.locks.with(volume, id, oneMachine(mode), func() error { return nil })
	}
	return n.locks.with(volume, id, oneMachine(mode), func() error {
		if mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER {
			if other, err := n.elsewhere(volume); err != nil || other != "" {
				return cmp.Or(err, status.Errorf(codes.FailedPrecondition,
					"volume %s is for one pod alone, and another has it, at %s: delete that one first", id, other))
			}
		}
		return bind(shown, at, readOnly)
	})
}

// makeTarget makes what a volume is bound to, a folder, or of raw blocks a file, or finds it there.
func (p *handle) makeTarget(name string, blocks bool) (*handle, error) {
	var err error
	if kind := uint64(unix.O_DIRECTORY); !blocks {
		if err = unix.Mkdirat(p.fd, name, 0o750); err == nil || errors.Is(err, fs.ErrExist) {
			return p.open(name, kind)
		}
	} else if err = unix.Mknodat(p.fd, name, unix.S_IFREG|0o600, 0); err == nil || errors.Is(err, fs.ErrExist) {
		at, err := p.open(name, unix.O_NOFOLLOW)
		if err == nil && at.mount == p.mount && at.stat.Mode&unix.S_IFMT != unix.S_IFREG {
			at.Close()
			err = status.Errorf(codes.AlreadyExists, "at %s something else is than the file of a device: delete the pod", name)
		}
		if err != nil {
			return nil, err
		}
		return at, nil
	}
	return nil, &fs.PathError{Op: "make", Path: name, Err: err}
}

// has says whether something is below p.
func (p *handle) has(name string) bool {
	at, err := p.open(name, unix.O_NOFOLLOW)
	if err == nil {
		at.Close()
	}
	return err == nil
}

// elsewhere is a folder of a pod at which a volume's file system is mounted; "": none.
func (n *Node) elsewhere(volume *handle) (string, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !n.ofPods(m) || uint32(m.Major) != volume.stat.Dev_major || uint32(m.Minor) != volume.stat.Dev_minor, false
	})
	if err != nil || len(mounts) == 0 {
		return "", err
	}
	return mounts[0].Mountpoint, nil
}

// ofPods says whether something is mounted for a pod.
func (n *Node) ofPods(m *mountinfo.Info) bool {
	_, err := n.inPods(m.Mountpoint)
	return err == nil
}

// bind mounts a volume on a folder. It appears there as it shall be: with what the source
// forbids, and never for a moment writable if it is to be read only.
func bind(volume, at *handle, readOnly bool) error {
	tree, err := unix.OpenTree(volume.fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone its mount: %w", err)
	}
	defer unix.Close(tree)
	if readOnly {
		err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if err != nil {
			return fmt.Errorf("make its mount read-only: %w", err)
		}
	}
	err = unix.MoveMount(tree, "", at.fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount it in the pod's folder: %w", err)
	}
	return nil
}

// unpublish takes off what is mounted at target, and removes the folder. A volume that no pod
// here has then is free for other machines.
func (n *Node) unpublish(target place) error {
	return cmp.Or(n.takeOff(target), n.taken(target.String(), false), n.release())
}

func (n *Node) takeOff(target place) error {
	pods, err := openRoot(target.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pods.Close()
	parent, err := pods.open(filepath.Dir(target.rel), unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	name, flags := filepath.Base(target.rel), unix.AT_REMOVEDIR
	for {
		at, err := parent.open(name, unix.O_NOFOLLOW)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		at.Close() // held open it would be in use
		if at.mount == parent.mount {
			if at.stat.Mode&unix.S_IFMT == unix.S_IFREG && at.stat.Size == 0 {
				flags = 0 // a device's
			}
			break
		}
		// Each pass takes one off: there may be several, one on another.
		if err := unix.Unmount(parent.at(name), unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	// Only empty: what is in it was written while no volume was mounted.
	if err := unix.Unlinkat(parent.fd, name, flags); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "rmdir", Path: target.String(), Err: err}
	}
	return nil
}

// stats looks at the volume mounted at target.
func (n *Node) stats(target place) (*csi.NodeGetVolumeStatsResponse, error) {
	pods, err := openRoot(target.root)
	if err != nil {
		return nil, err
	}
	defer pods.Close()
	at, err := pods.open(target.rel, unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) || err == nil && at.stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		if err == nil {
			at.Close()
		}
		return nil, status.Errorf(codes.NotFound, "no volume is mounted at %s", target)
	}
	if err != nil {
		return nil, err
	}
	defer at.Close()
	if at.stat.Mode&unix.S_IFMT == unix.S_IFBLK {
		return at.blockStats()
	}
	resp := &csi.NodeGetVolumeStatsResponse{VolumeCondition: &csi.VolumeCondition{Message: "its file system works"}}
	var st unix.Statfs_t
	err = unix.Fstatfs(at.fd, &st)
	if err == nil {
		size := st.Frsize
		resp.Usage = []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: int64(st.Blocks) * size, Used: int64(st.Blocks-st.Bfree) * size, Available: int64(st.Bavail) * size},
			{Unit: csi.VolumeUsage_INODES, Total: int64(st.Files), Used: int64(st.Files - st.Ffree), Available: int64(st.Ffree)},
		}
		err = at.works()
	}
	if broken(err) {
		resp.VolumeCondition = &csi.VolumeCondition{Abnormal: true, Message: fmt.Sprintf(
			"its file system has stopped (%v), as it does when the disk beneath fails: nothing can be read or written", err)}
		err = nil
	}
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// works has a file system say that what is in its root is on the disk. One that has stopped
// refuses that, and may still say how large it is and answer from memory. Where nothing was
// changed, nothing is written.
func (p *handle) works() error {
	fd, err := unix.Openat(p.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(fd)
	return os.NewSyscallError("fsync", unix.Fsync(fd))
}
