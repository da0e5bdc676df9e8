package machine

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// FirstUID is the host's user that root in the machine is: the one that the server
// gave it, or 0, the host's own root, on a host that can't do better. A machine
// keeps what its disk was made with. An error passes: the machine is not made as another
// because of it.
func (s *Sandbox) FirstUID(m wire.Machine) (uint32, error) {
	home := s.home(m.UID)
	if _, err := os.Stat(home.disk().File); err == nil {
		if rec, err := readRecord(home.at(recordName)); err == nil {
			return rec.Machine.Spec.FirstUID, nil
		}
	}
	return s.HostUser(m.Spec.FirstUID)
}

// UserOf is the host's user that root is in a machine that is made; 0: the host's own root.
func (s *Sandbox) UserOf(uid string) (uint32, error) {
	rec, err := readRecord(s.home(uid).at(recordName))
	return rec.Machine.Spec.FirstUID, err
}

// Users opens the user namespace of a machine that runs, and was seen to by Ensure: first and up, resource.MachineUIDs
// of the host's users, are 0 and up in it. nil: its users are the host's.
func (s *Sandbox) Users(uid string) (users *os.File, first uint32, err error) {
	if first, err = s.UserOf(uid); err != nil || first == 0 {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.watched[uid]
	if p.File == nil {
		return nil, 0, fmt.Errorf("machine %s does not run", uid)
	}
	if users, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", p.pid)); err != nil {
		return nil, 0, err
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.Fd()), Events: unix.POLLIN}}, 0); n != 0 || err != nil { // or it is another's
		return nil, 0, errors.Join(fmt.Errorf("machine %s has ended", uid), err, users.Close())
	}
	return users, first, nil
}

// HostUser is the host's user that root is in machines that are made now, of whom the server
// says that it is first. See FirstUID.
func (s *Sandbox) HostUser(first uint32) (uint32, error) {
	err := s.OwnUsers()
	if first == 0 || lacks(err) {
		return 0, nil
	}
	return first, err
}

// lacks says whether an error tells of what a kernel, or its settings, can't give;
// others pass.
func lacks(err error) bool {
	return slices.ContainsFunc([]error{unix.EINVAL, unix.ENOSYS, unix.EPERM, unix.EOPNOTSUPP, unix.EUSERS},
		func(e error) bool { return errors.Is(err, e) })
}

// OwnUsers says why machines that are made on this host get no users of their own.
// nil: they do. What the kernel can or can't is found out once.
func (s *Sandbox) OwnUsers() error {
	s.trying.Lock()
	defer s.trying.Unlock()
	if s.tried {
		return s.noUsers
	}
	err := tryOwnUsers(s.cfg.Images, s.cfg.Runc)
	s.tried, s.noUsers = err == nil || lacks(err), err
	return err
}

// SharedUsers says which machines here have no users of their own, or why those
// that are made here get none.
func (s *Sandbox) SharedUsers() error {
	records, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*", recordName))
	if err != nil {
		return err
	}
	var shared []string
	for _, file := range records {
		// One that can't be read is made anew by the next Ensure.
		if rec, err := readRecord(file); err == nil && rec.Machine.Spec.FirstUID == 0 {
			shared = append(shared, rec.Machine.Key)
		}
	}
	if len(shared) > 0 {
		return fmt.Errorf("machines without users of their own: %s", strings.Join(shared, ", "))
	}
	return s.OwnUsers()
}

// tryOwnUsers says what this host lacks to run machines in user namespaces. It
// mounts as a machine's root file system is mounted, out of everybody's sight.
func tryOwnUsers(images, scratch string) error {
	users, err := netns.NewUsers(firstTried, resource.MachineUIDs)
	if errors.Is(err, unix.ENOSPC) {
		// Not the disk's: user_namespaces(7) has it for a setting that allows no more.
		return fmt.Errorf("%w: %w", unix.EUSERS, err)
	}
	if err != nil {
		return err
	}
	defer users.Close()
	if err := cmp.Or(os.MkdirAll(images, 0o755), os.MkdirAll(scratch, 0o700)); err != nil {
		return err
	}
	// The thread ends, and its mounts with it.
	return netns.InNew(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare mounts: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("unshare mounts: %w", err)
		}
		if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
		at := func(name string) string { return filepath.Join(scratch, name) }
		return cmp.Or(mountMapped(images, at("image"), users),
			mountRoot(at("image"), at("upper"), at("work"), at("root")))
	})
}

// firstTried is in no workspace's range.
const firstTried = 0x0fff_0000

// openOwner opens the user namespace that a machine's network namespace belongs
// to: the machine's processes live in it, so that they may set up that network. nil
// is the host's own, of a machine whose users are the host's.
func openOwner(path string, first int) (*os.File, error) {
	ns, err := netns.OpenPath(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	owner, ours, err := ns.Owner()
	if err != nil {
		return nil, err
	}
	if ours && first == 0 {
		return nil, owner.Close()
	}
	if maker, err := unix.IoctlGetUint32(int(owner.Fd()), unix.NS_GET_OWNER_UID); err == nil && !ours && int(maker) == first {
		return owner, nil
	}
	err = fmt.Errorf("network namespace %s belongs to another user namespace than users from %d on", path, first)
	return nil, errors.Join(err, owner.Close())
}

// mountMapped shows a folder at target, read-only, with the owners of its files
// as they are called in a user namespace: what root owns, the machine's root owns.
// Overlayfs takes such a layer from Linux 5.19 on.
func mountMapped(dir, target string, owner *os.File) error {
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mount image %s: %w", dir, err)
	}
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE, Userns_fd: uint64(owner.Fd())})
	if err != nil {
		return fmt.Errorf("mount image %s for other users: %w", dir, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount image at %s: %w", target, err)
	}
	return nil
}
