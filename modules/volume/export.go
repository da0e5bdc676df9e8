package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/internal/archive"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

const (
	maxDepth  = 256 // of folders: each that is being read is open, and its path is remembered, of up to 64 KiB
	readNames = 64  // of a folder at a time
	// maxNames is how much is remembered of files that have several names, in octets: some 200,000 files. With the folders,
	// and maxFiles, a host remembers some 350 MiB at most.
	maxNames    = 32 << 20
	nameBytes   = 64 // besides the path
	maxExamples = 20
	readChunk   = 1 << 20
	// writePiece is what is written at a time: a server gives who reads 20 s for as much, so that a turn that is over ends then.
	writePiece = 64 << 10
	// findTime is how long the place to go on at may be looked for: servers wait 20 s for the first octet.
	findTime = 10 * time.Second
)

// Export writes a snapshot as a file to w, from an offset on. It ends after fileTurn in good order, where it is, and
// has written nothing if that was all there is. Nobody may change the snapshot, so that the same octets come again.
func (h *Host) Export(ctx context.Context, v wire.Volume, f wire.File, w io.Writer) error {
	err := checkUID("snapshot", v.UID)
	if err == nil {
		err = h.export(ctx, v, f, w)
	}
	return h.outward("export snapshot "+v.Key, err)
}

func (h *Host) export(ctx context.Context, v wire.Volume, f wire.File, w io.Writer) error {
	late := time.Now().Add(findTime)
	if err := h.locate(v); err != nil {
		return err
	}
	work, turn, err := h.beginFile(ctx, v.UID, v.NetworkID)
	if err != nil {
		return err
	}
	defer h.restFile(v.UID, work)
	if work.walk != nil && work.walk.at > f.From {
		work.walk.close()
		work.walk = nil
	}
	if work.walk == nil {
		work.mounted = true
		root, err := h.mountSnapshot(turn, v)
		if err != nil {
			return err
		}
		if f.Class == resource.SharedVolume {
			if root, err = openBrick(root); err != nil {
				return err
			}
		}
		rec, err := h.place(v.UID).record()
		if err != nil {
			return errors.Join(err, root.Close())
		}
		if work.walk, err = newWalker(root, rec.HostUsers, v, f); err != nil {
			return err
		}
	}
	walk := work.walk
	err = walk.run(turn, f.From, late, w)
	over := err == context.Cause(turn) // and nothing else: then it is between two octets, and nothing is left out
	switch {
	case err == nil:
		return nil
	case err == errFound: // who waits now has asked for too long, and the next finds it here
		return err
	case over && ctx.Err() == nil && walk.at > f.From:
		return nil // its turn is over
	case over && walk.at <= f.From: // and it goes on there
		return saidf("its host looks for where to go on: it is at %s of %s",
			resource.Bytes.Text(walk.at), resource.Bytes.Text(f.From))
	}
	walk.close() // nobody knows how much of it has come
	work.walk = nil
	return err
}

// mountSnapshot mounts a snapshot, for reading by this process alone, and opens its root.
func (h *Host) mountSnapshot(ctx context.Context, v wire.Volume) (*os.File, error) {
	disk := h.disk(v)
	if err := h.thaw(v.UID); err != nil {
		return nil, err
	}
	if err := h.mount(ctx, v, disk, true); err != nil {
		return nil, err
	}
	err := hostmount.Do(func() error {
		return unix.MountSetattr(unix.AT_FDCWD, disk.Mount, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY |
			unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC})
	})
	if err != nil {
		return nil, &os.PathError{Op: "mount_setattr", Path: disk.Mount, Err: err}
	}
	return openMount(disk.Mount)
}

// walker goes through a file system that nobody changes, always in the same order, and is at some octet of its file.
// Each name is opened in its folder, and no link is followed.
type walker struct {
	about   archive.About
	owners  owners
	root    *os.File
	at      int64
	stage   int
	folders []*folder
	names   map[uint64]*named // files with several names, by their inode
	named   int               // octets of it
	sum     archive.Summary
	member  *member // the one in which at is
	brick   bool    // it is one of a shared volume
	pace    pace
	began   time.Time // what the pace has not been told
	mapped  fiemap
}

// folder is one that is being read.
type folder struct {
	*os.File
	path string
	next []string
}

// named is a file with several names, of which some were met.
type named struct {
	path string
	left uint64
}

// member is one of the file, of which pos octets are through.
type member struct {
	head  []byte
	file  *os.File // of the data
	parts []archive.Extent
	data  int64
	pad   int64
	pos   int64
}

func (m *member) size() int64 { return int64(len(m.head)) + m.data + m.pad }

func (m *member) close() {
	if m.file != nil {
		_ = m.file.Close()
	}
}

// newWalker takes root over.
func newWalker(root *os.File, hostUsers bool, v wire.Volume, f wire.File) (*walker, error) {
	w := &walker{root: root, names: map[uint64]*named{}, brick: f.Class == resource.SharedVolume}
	w.about = archive.About{Format: archive.Format, Volume: f.Volume, UID: v.UID,
		Class: f.Class, SizeBytes: v.SizeBytes, TakenAt: f.TakenAt}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, errors.Join(&os.PathError{Op: "stat", Path: root.Name(), Err: err}, root.Close())
	}
	if !hostUsers { // see usersFor
		w.owners.first = st.Uid / resource.MachineUIDs * resource.MachineUIDs
	}
	return w, nil
}

func (w *walker) close() {
	for _, f := range w.folders {
		_ = f.Close()
	}
	if w.member != nil {
		w.member.close()
	}
	_ = w.root.Close()
}

// errFound is returned in place of what is to be written, when nobody may wait for that any more.
var errFound = saidf("its host has found where to go on")

// run writes from an offset on that is not before where it is, until ctx is done or all is written. From late on it does not
// begin to: errFound.
func (w *walker) run(ctx context.Context, from int64, late time.Time, out io.Writer) error {
	chunk := make([]byte, readChunk)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if w.member == nil {
			w.began = time.Now()
			m, err := w.next(ctx)
			if err != nil {
				return err
			}
			if m == nil {
				if w.at < from {
					return lasting{saidf("it has %d octets as a file, and not %d: begin anew with another file", w.at, from)}
				}
				return nil
			}
			w.member = m
			w.pace.did(ctx, w.began, 0)
		}
		m := w.member
		if skip := min(from-w.at, m.size()-m.pos); skip > 0 {
			m.pos, w.at = m.pos+skip, w.at+skip
		}
		if m.pos == m.size() {
			m.close()
			w.member = nil
			continue
		}
		if w.at == from && time.Now().After(late) {
			return errFound
		}
		began := time.Now()
		n, err := m.read(chunk)
		if err != nil {
			return err
		}
		w.pace.did(ctx, began, n)
		for rest := chunk[:n]; len(rest) > 0; {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n, err := out.Write(rest[:min(len(rest), writePiece)])
			m.pos, w.at, rest = m.pos+int64(n), w.at+int64(n), rest[n:]
			if err != nil {
				return err
			}
		}
	}
}

// rest has the disk rest within a member that takes long to make. The error is that ctx is done.
func (w *walker) rest(ctx context.Context) error {
	w.pace.did(ctx, w.began, 0)
	w.began = time.Now()
	return context.Cause(ctx)
}

// read reads what comes next of a member.
func (m *member) read(p []byte) (n int, err error) {
	at := m.pos
	if at < int64(len(m.head)) {
		return copy(p, m.head[at:]), nil
	}
	at -= int64(len(m.head))
	if at >= m.data {
		n = int(min(int64(len(p)), m.data+m.pad-at))
		clear(p[:n])
		return n, nil
	}
	for _, part := range m.parts {
		if at < part.Size {
			n, err := m.file.ReadAt(p[:min(int64(len(p)), part.Size-at)], part.Offset+at)
			if err != nil {
				return 0, fmt.Errorf("read what was there: %w", err)
			}
			return n, nil
		}
		at -= part.Size
	}
	return 0, io.ErrUnexpectedEOF
}

// next makes the next member; nil is the end. If ctx ends it, it may be called again.
func (w *walker) next(ctx context.Context) (*member, error) {
	switch w.stage {
	case 0:
		w.stage++
		head, err := archive.JSON(archive.AboutName, w.about.TakenAt, w.about)
		return &member{head: head}, err
	case 1:
		w.stage++
		root, err := openAt(w.root, ".", unix.O_DIRECTORY)
		if err != nil {
			return nil, err
		}
		return w.enter(root, archive.Root)
	case 2:
		if len(w.folders) > 0 {
			return w.inFolder(ctx)
		}
		w.stage++
		head, err := archive.JSON(archive.SummaryName, w.about.TakenAt, w.sum)
		return &member{head: head}, err
	}
	return nil, nil
}

// openAt opens a name in a folder. No time of access is changed by that.
func openAt(in *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(in.Fd()), name,
		unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// enter begins with a folder.
func (w *walker) enter(dir *os.File, at string) (*member, error) {
	m, err := w.folder(dir, at)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	w.folders = append(w.folders, &folder{File: dir, path: at})
	return m, nil
}

// leave ends with the folder at hand. Its header is read anew, and counted no more: all those that are open would take up to
// 1 MiB each.
func (w *walker) leave(f *folder) (*member, error) {
	was := w.sum
	was.LeftOut = maps.Clone(was.LeftOut)
	m, err := w.folder(f.File, f.path)
	w.sum = was
	w.folders = w.folders[:len(w.folders)-1]
	return m, errors.Join(err, f.Close())
}

func (w *walker) folder(dir *os.File, at string) (*member, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, fmt.Errorf("read a folder: %w", err)
	}
	if w.brick {
		brickTime(procPath(dir, "."), &st)
	}
	h := w.header(at, archive.Folder, &st)
	h.Xattrs = w.xattrs(dir, at)
	return encoded(h, nil, nil)
}

func (w *walker) header(at string, kind byte, st *unix.Stat_t) *archive.Header {
	h := &archive.Header{Path: at, Kind: kind, Mode: st.Mode & 0o7777, ModTime: time.Unix(st.Mtim.Unix())}
	var known, known2 bool
	h.UID, known = w.owners.inside(st.Uid)
	h.GID, known2 = w.owners.inside(st.Gid)
	if !known || !known2 {
		w.leaveOut("owners that are none of the workspace's", at)
	}
	w.sum.Members++
	return h
}

// leaveOut counts what is not in the file.
func (w *walker) leaveOut(what, at string) {
	if w.sum.LeftOut == nil {
		w.sum.LeftOut = map[string]int64{}
	}
	w.sum.LeftOut[what]++
	if len(w.sum.Examples) < maxExamples && len(at) < 1000 {
		w.sum.Examples = append(w.sum.Examples, at)
	}
}

// inFolder makes the next member of the folder at hand. The folder comes once more at its end, so that who
// unpacks it can give it its time, and who may write to it, when all of it is there.
func (w *walker) inFolder(ctx context.Context) (*member, error) {
	f := w.folders[len(w.folders)-1]
	for {
		if len(f.next) == 0 {
			names, err := f.Readdirnames(readNames)
			if errors.Is(err, io.EOF) {
				return w.leave(f)
			}
			if err != nil {
				return nil, fmt.Errorf("read a folder: %w", err)
			}
			f.next = names
		}
		if err := w.rest(ctx); err != nil {
			return nil, err
		}
		m, err := w.entry(ctx, f, f.next[0])
		if err != nil {
			return nil, err // if the turn is over, this name is the next still
		}
		f.next = f.next[1:]
		if m != nil {
			return m, nil
		}
	}
}

// entry makes the member of a name in a folder; nil: it is left out.
func (w *walker) entry(ctx context.Context, f *folder, name string) (*member, error) {
	if w.brick && f.path == archive.Root && ofGluster(name) {
		return nil, nil // which is no tenant's
	}
	at := path.Join(f.path, name)
	var st unix.Stat_t
	if err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fmt.Errorf("look at a file: %w", err)
	}
	if w.brick {
		brickTime(procPath(f.File, name), &st)
		if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
			st.Nlink-- // GlusterFS has a name for each
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if len(w.folders) == maxDepth {
			return nil, lasting{saidf("folders in it are more than %d deep: move them up, or copy what is in it by a pod: %.300q",
				maxDepth, at)}
		}
		dir, err := openAt(f.File, name, unix.O_DIRECTORY)
		if err != nil {
			return nil, err
		}
		return w.enter(dir, at)
	case unix.S_IFREG:
		if to := w.another(&st); to != "" {
			h := w.header(at, archive.Link, &st)
			h.Target = to
			return encoded(h, nil, nil)
		}
		return w.file(ctx, f, name, at, &st)
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(f.Fd()), name, target)
		h := w.header(at, archive.Symlink, &st)
		h.Target = string(target[:max(n, 0)])
		return encoded(h, nil, err)
	case unix.S_IFIFO:
		return encoded(w.header(at, archive.Pipe, &st), nil, nil)
	case unix.S_IFSOCK:
		w.leaveOut("sockets", at)
	default:
		w.leaveOut("devices", at)
	}
	return nil, nil
}

func encoded(h *archive.Header, file *os.File, err error) (*member, error) {
	var head []byte
	if err == nil {
		head, err = h.Encode()
	}
	if err != nil {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		return nil, fmt.Errorf("read a file: %w", err)
	}
	return &member{head: head, file: file, parts: h.Parts(), data: h.DataBytes(), pad: h.Padding()}, nil
}

// another is the name by which a file with several was met before; "" if this is the first.
func (w *walker) another(st *unix.Stat_t) string {
	n := w.names[st.Ino]
	if n == nil {
		return ""
	}
	if n.left--; n.left == 0 {
		w.named -= len(n.path) + nameBytes
		delete(w.names, st.Ino)
	}
	return n.path
}

// remember is for the first name of several.
func (w *walker) remember(at string, st *unix.Stat_t) error {
	if w.named += len(at) + nameBytes; w.named > maxNames {
		return lasting{saidf("it has too many files with several names (hard links): copy what is in it by a pod")}
	}
	w.names[st.Ino] = &named{at, uint64(st.Nlink) - 1}
	return nil
}

func (w *walker) file(ctx context.Context, f *folder, name, at string, st *unix.Stat_t) (*member, error) {
	file, err := openAt(f.File, name, 0)
	if err != nil {
		return nil, err
	}
	// Nothing is counted before this, which ends with the turn and is done again then.
	parts, err := w.extents(ctx, file, st.Size)
	if err == nil && st.Nlink > 1 {
		err = w.remember(at, st)
	}
	if err != nil {
		_ = file.Close()
		return nil, err // as it is: export looks at it
	}
	h := w.header(at, archive.File, st)
	h.Size, h.Xattrs, h.Extents = st.Size, w.xattrs(file, at), parts
	m, err := encoded(h, file, nil)
	if err == nil {
		w.sum.Bytes += m.data
	}
	return m, err
}

// xattrs are those extended attributes that mean the same elsewhere: the tenant's own, and access control lists.
func (w *walker) xattrs(file *os.File, at string) (all []archive.Xattr) {
	list := make([]byte, 64<<10) // as many as the kernel lists
	n, err := unix.Flistxattr(int(file.Fd()), list)
	if err != nil {
		if !errors.Is(err, unix.ENOTSUP) {
			w.leaveOut("attributes", at)
		}
		return nil
	}
	names := strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	value, total := make([]byte, 64<<10), 0
	for _, name := range names {
		acl := name == aclAccess || name == aclDefault
		host := strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "security.") && name != "security.capability"
		if name == "" || host { // those are nobody's in a machine
			continue
		}
		n, err := unix.Fgetxattr(int(file.Fd()), name, value)
		v, ok := value[:max(n, 0)], err == nil && (acl || strings.HasPrefix(name, "user."))
		if ok && acl {
			v, ok = changeACL(v, w.owners.inside)
		}
		if total += len(name) + len(v); !ok || strings.Contains(name, "=") || total > archive.MaxXattrs {
			w.leaveOut("attributes", at)
			continue
		}
		all = append(all, archive.Xattr{Name: name, Value: string(v)})
	}
	return all
}
