package inventory

import (
	"bufio"
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

// mounts looks at what is mounted below the two directories.
func (s *scan) mounts() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		// See proc(5).
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		if !strings.HasPrefix(point, s.p.Data+"/") && !strings.HasPrefix(point, s.p.Run+"/") {
			continue
		}
		s.add(Item{Kind: Mount, Name: point, Owner: s.ownerOf(point), Identity: fields[0]})
	}
	return lines.Err()
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

// files looks at what is kept below the two directories.
func (s *scan) files() error {
	for _, f := range s.traces.Folders {
		entries, err := os.ReadDir(f.Dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		for _, e := range entries {
			name := filepath.Join(f.Dir, e.Name())
			info, err := e.Info()
			if err != nil {
				continue // gone meanwhile
			}
			item := Item{
				Kind:     Folder,
				Name:     name,
				Owner:    s.ownerOf(name),
				Bytes:    diskUse(name),
				Since:    info.ModTime(),
				Identity: FileIdentity(info),
			}
			if slices.ContainsFunc(s.inv.Items, func(m Item) bool { return m.Kind == Mount && m.Name == name }) {
				item.Identity = "" // it is the mounted one's
			}
			s.add(item)
			var st unix.Stat_t
			if unix.Lstat(filepath.Join(name, "disk.img"), &st) == nil {
				s.inodes[inode{st.Dev, st.Ino}] = e.Name()
			}
			if f.HalfWritten && e.IsDir() {
				// What is below, a whole Debian among it, is the machine's.
				if err := s.halfWritten(name, item.Owner); err != nil {
					return err
				}
			}
		}
	}
	// What was left there goes when a payload is unpacked next.
	for _, dir := range s.traces.Temporary {
		if err := s.halfWritten(dir, Appliance); err != nil {
			return err
		}
	}
	for _, dir := range s.traces.Trees {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && e.IsDir() {
				s.add(Item{
					Kind:     Folder,
					Name:     filepath.Join(dir, e.Name()),
					Owner:    Appliance,
					Since:    info.ModTime(),
					Identity: FileIdentity(info),
				})
			}
		}
	}
	// Looked at above, or counted below, or their owner's business inside.
	for _, root := range []string{s.p.Data, s.p.Run} {
		if err := s.walk(root, s.traces.Closed); err != nil {
			return err
		}
	}
	return nil
}

// halfWritten adds what in a folder is not whole yet: all of it in one for
// that, temporary files in others.
func (s *scan) halfWritten(dir string, owner Owner) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone meanwhile, or not there at all
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(s.traces.Temporary, dir) && !temporary.MatchString(e.Name()) && !strings.HasSuffix(e.Name(), ".partial") {
			continue
		}
		if info, err := e.Info(); err == nil {
			s.add(Item{
				Kind:     File,
				Name:     filepath.Join(dir, e.Name()),
				Owner:    owner,
				Bytes:    info.Size(),
				Since:    info.ModTime(),
				Identity: FileIdentity(info),
				Detail:   "temporary file",
			})
		}
	}
	return nil
}

func (s *scan) walk(root string, leaveOut []string) error {
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile, or not there at all
		} else if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains(leaveOut, name) {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		item := Item{
			Kind:     File,
			Name:     name,
			Owner:    s.ownerOf(name),
			Bytes:    info.Size(),
			Since:    info.ModTime(),
			Identity: FileIdentity(info),
		}
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
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// loops looks at loop devices of machines' disks. A device says which file it
// has by inode, for the name may be from another mount namespace; a file that
// was removed is told by the name it had.
func (s *scan) loops() error {
	devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, file := range devices {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // freed meanwhile
		}
		name := "/dev/" + strings.Split(file, "/")[3]
		backing := strings.TrimSpace(string(data))
		item := Item{Kind: Loop, Name: name, Detail: backing, Like: backing}
		removed, gone := strings.CutSuffix(backing, " (deleted)")
		switch {
		case gone && strings.HasPrefix(removed, s.p.Data+"/"):
			item.Owner = s.ownerOf(removed)
		default:
			f, err := os.Open(name)
			if err != nil {
				continue
			}
			info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
			f.Close()
			if err != nil {
				continue
			}
			uid, ok := s.inodes[inode{info.Device, info.Inode}]
			if ok {
				item.Owner = Machine(uid)
			} else if at, ok := s.below(backing, info.Device, info.Inode); ok {
				item.Owner = s.ownerOf(at)
			} else {
				continue
			}
			item.Identity = strconv.FormatUint(info.Inode, 10)
		}
		s.add(item)
	}
	return nil
}

// below says whether the file of a loop device is below the data directory.
func (s *scan) below(file string, device, number uint64) (string, bool) {
	var st unix.Stat_t
	if !strings.HasPrefix(file, s.p.Data+"/") || unix.Lstat(file, &st) != nil {
		return "", false
	}
	return file, st.Dev == device && st.Ino == number
}
