package volume

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/modules/internal/archive"
	"github.com/multipaas/multipaas/modules/resource"
)

// attributes has an open file or folder be as it was.
func (u *unpacker) attributes(f *os.File, h *archive.Header) error {
	user, _ := u.owners.outside(h.UID)
	group, _ := u.owners.outside(h.GID)
	fd := int(f.Fd())
	for _, name := range []string{aclAccess, aclDefault} { // which it has from its folder
		if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return pathError("removexattr", h.Path, err)
		}
	}
	for _, x := range h.Xattrs {
		value, acl := []byte(x.Value), x.Name == aclAccess || x.Name == aclDefault
		if acl && u.mark != "" {
			return unfitError{"the file has access control lists in it, which no shared volume has: " +
				"delete the volume, and import into one of class " + resource.LocalVolume}
		}
		ok := acl || strings.HasPrefix(x.Name, "user.")
		if acl {
			value, ok = changeACL(value, u.owners.outside)
		}
		if !ok {
			return odd("%.200q has the attribute %.100q", h.Path, x.Name)
		}
		if err := unix.Fsetxattr(fd, x.Name, value, 0); err != nil {
			if u.mark != "" && (errors.Is(err, unix.ERANGE) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.E2BIG)) {
				return unfitError{"the file has an attribute in it that no shared volume takes: " +
					"delete the volume, and import into one of class " + resource.LocalVolume}
			}
			if errors.Is(err, unix.ERANGE) || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.E2BIG) {
				return odd("%.200q has the attribute %.100q: %v", h.Path, x.Name, err)
			}
			return pathError("setxattr", h.Path, err)
		}
	}
	// Who may do what comes after whose it is, which takes set-user-ID away; the time last.
	err := unix.Fchown(fd, int(user), int(group))
	if err == nil {
		err = unix.Fchmod(fd, h.Mode)
	}
	if err == nil {
		err = unix.UtimesNanoAt(fd, "", times(h), unix.AT_EMPTY_PATH)
	}
	if err != nil {
		return pathError("set owner", h.Path, err)
	}
	return nil
}

// named is attributes for what can't be opened.
func (u *unpacker) named(dir int, name string, h *archive.Header) error {
	user, _ := u.owners.outside(h.UID)
	group, _ := u.owners.outside(h.GID)
	err := unix.Fchownat(dir, name, int(user), int(group), unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && h.Kind == archive.Pipe { // nobody else has it: it is still what was made
		err = unix.Lremovexattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir, name), aclAccess)
		if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			err = unix.Fchmodat(dir, name, h.Mode, 0)
		}
	}
	if err == nil {
		err = unix.UtimesNanoAt(dir, name, times(h), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return pathError("set owner", h.Path, err)
	}
	return nil
}

// times are those of access and change.
func times(h *archive.Header) []unix.Timespec {
	t := unix.NsecToTimespec(h.ModTime.UnixNano())
	if s := h.ModTime.Unix(); s < -1<<31 || s > 1<<33 { // more than file systems have
		t = unix.Timespec{}
	}
	return []unix.Timespec{t, t}
}
