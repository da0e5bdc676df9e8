package inventory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

type inode struct{ device, number uint64 }

// FileIdentity tells a file from a later one of its name: by its inode.
func FileIdentity(info fs.FileInfo) string {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(st.Ino, 10)
	}
	return ""
}

// MountPoint is something mounted. The ID tells it from a later one on its path.
type MountPoint struct{ ID, Path string }

func (m MountPoint) String() string { return m.Path }

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`) // see proc(5)

// Mounts are what is mounted at and below a folder.
func Mounts(dir string) (all []MountPoint, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		m := MountPoint{fields[0], unescape.Replace(fields[4])}
		if m.Path == dir || strings.HasPrefix(m.Path, dir+"/") {
			all = append(all, m)
		}
	}
	return all, err
}

// mounts looks at what is mounted below the two directories.
func (s *scan) mounts() error {
	for _, root := range []string{s.p.Data, s.p.Run} {
		mounts, err := Mounts(root)
		if err != nil {
			return err
		}
		for _, m := range mounts {
			if m.Path != root {
				s.add(Item{Kind: Mount, Name: m.Path, Owner: s.ownerOf(m.Path), Identity: m.ID})
			}
		}
	}
	return nil
}

// ownerOf tells by its place whose a file or mount is.
func (s *scan) ownerOf(point string) Owner {
	for _, f := range s.traces.Folders {
		if rest, ok := strings.CutPrefix(point, f.Dir+"/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			return f.Owner(name)
		}
	}
	return Appliance
}

// temporary are the names that appliance/atomicfile writes under first.
var temporary = regexp.MustCompile(`^\..+\.tmp-[0-9]+$`)

// onDisk is a file or folder as an item; a folder's size is left open.
func (s *scan) onDisk(kind Kind, name string, info fs.FileInfo) Item {
	i := Item{Kind: kind, Name: name, Owner: s.ownerOf(name), Since: info.ModTime(), Identity: FileIdentity(info)}
	if kind != Folder {
		i.Bytes = info.Size()
	}
	return i
}

// entries are what is in a folder; none if it is not there, or gone meanwhile.
func entries(dir string) ([]os.DirEntry, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}

// files looks at what is kept below the two directories.
func (s *scan) files() error {
	for _, f := range s.traces.Folders {
		all, err := entries(f.Dir)
		if err != nil {
			return err
		}
		for _, e := range all {
			name := filepath.Join(f.Dir, e.Name())
			info, err := e.Info()
			if err != nil {
				continue // gone meanwhile
			}
			item := s.onDisk(Folder, name, info)
			item.Bytes = diskUse(name)
			if slices.ContainsFunc(s.inv.Items, func(m Item) bool { return m.Kind == Mount && m.Name == name }) {
				item.Identity = "" // it is the mounted one's
			}
			s.add(item)
			for _, image := range []string{"disk.img", "blocks.img"} {
				var st unix.Stat_t
				if unix.Lstat(filepath.Join(name, image), &st) == nil {
					s.inodes[inode{st.Dev, st.Ino}] = f.Owner(e.Name())
				}
			}
			if f.HalfWritten && e.IsDir() {
				// What is below, a whole Debian among it, is the owner's.
				if err := s.halfWritten(name); err != nil {
					return err
				}
			}
		}
	}
	// What was left there goes when a payload is unpacked next.
	for _, dir := range s.traces.Temporary {
		if err := s.halfWritten(dir); err != nil {
			return err
		}
	}
	for _, dir := range s.traces.Trees {
		all, err := entries(dir)
		if err != nil {
			return err
		}
		for _, e := range all {
			if info, err := e.Info(); err == nil && e.IsDir() {
				s.add(s.onDisk(Folder, filepath.Join(dir, e.Name()), info))
			}
		}
	}
	for _, root := range []string{s.p.Data, s.p.Run} {
		if err := s.walk(root); err != nil {
			return err
		}
	}
	return nil
}

// halfWritten adds what in a folder is not whole yet: all of it in one for
// that, temporary files in others.
func (s *scan) halfWritten(dir string) error {
	all, err := entries(dir)
	for _, e := range all {
		if !slices.Contains(s.traces.Temporary, dir) && !temporary.MatchString(e.Name()) && !strings.HasSuffix(e.Name(), ".partial") {
			continue
		}
		if info, err := e.Info(); err == nil {
			item := s.onDisk(File, filepath.Join(dir, e.Name()), info)
			item.Detail = "temporary file"
			s.add(item)
		}
	}
	return err
}

func (s *scan) walk(root string) error {
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile, or not there at all
		} else if err != nil {
			return err
		}
		if d.IsDir() {
			// Looked at before, or counted later, or their owner's business inside.
			if slices.Contains(s.traces.Closed, name) {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		item := s.onDisk(File, name, info)
		switch {
		case info.Mode()&fs.ModeSocket != 0:
			item.Kind = Socket
		case temporary.MatchString(d.Name()):
			item.Detail = "temporary file"
			// Who holds the data directory's lock now is not who made it.
			if s.answer == nil || info.ModTime().Before(s.answer.Started) {
				item.Owner = FormerRun
			}
		case strings.Contains(d.Name(), "-wal") || strings.Contains(d.Name(), "-shm"):
			return nil // SQLite's own, come and go
		}
		s.add(item)
		return nil
	})
}

// loops looks at loop devices of machines' disks and of volumes. A device says which file it
// has by inode, for the name may be from another mount namespace; a file that
// was removed is told by the name it had.
func (s *scan) loops() error {
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, device := range devices {
		data, err := os.ReadFile(device)
		if err != nil {
			continue // freed meanwhile
		}
		name := "/dev/" + strings.Split(device, "/")[3]
		backing := strings.TrimSpace(string(data))
		item := Item{Kind: Loop, Name: name, Detail: backing, Like: backing}
		removed, gone := strings.CutSuffix(backing, " (deleted)")
		if gone && strings.HasPrefix(removed, s.p.Data+"/") {
			item.Owner = s.ownerOf(removed)
			s.add(item)
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		f.Close()
		if err != nil {
			continue
		}
		file := inode{info.Device, info.Inode}
		if owner, ok := s.inodes[file]; ok {
			item.Owner = owner
		} else if s.isKept(backing, file) {
			item.Owner = s.ownerOf(backing)
		} else {
			continue
		}
		item.Identity = strconv.FormatUint(info.Inode, 10)
		s.add(item)
	}
	return nil
}

// mapped looks at the mapped devices that are on loop devices which it has seen.
func (s *scan) mapped() error {
	devices, err := mappedOn("/sys/block")
	for _, d := range devices {
		i := slices.IndexFunc(s.inv.Items, func(i Item) bool { return i.Kind == Loop && i.Name == "/dev/"+d.on })
		if i >= 0 {
			loop := s.inv.Items[i]
			s.add(Item{Kind: Mapped, Name: d.name, Detail: loop.Detail, Like: loop.Like, Owner: loop.Owner, Identity: d.number})
		}
	}
	return err
}

// mappedDevice is one of the kernel's device-mapper, with the device that it is on.
type mappedDevice struct{ name, number, on string }

// mappedOn are those below a folder as /sys/block.
func mappedOn(dir string) (all []mappedDevice, err error) {
	slaves, err := filepath.Glob(filepath.Join(dir, "dm-*", "slaves", "*"))
	for _, slave := range slaves {
		device := filepath.Dir(filepath.Dir(slave))
		name, err := os.ReadFile(filepath.Join(device, "dm", "name"))
		if err != nil {
			continue // it went meanwhile
		}
		all = append(all, mappedDevice{strings.TrimSpace(string(name)), filepath.Base(device), filepath.Base(slave)})
	}
	return all, err
}

// isKept says whether the file of a loop device is below the data directory.
func (s *scan) isKept(name string, file inode) bool {
	var st unix.Stat_t
	return strings.HasPrefix(name, s.p.Data+"/") && unix.Lstat(name, &st) == nil && file == inode{st.Dev, st.Ino}
}
