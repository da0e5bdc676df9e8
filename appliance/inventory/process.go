package inventory

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
)

// groups looks at the control groups of planes and machines.
func (s *scan) groups() error {
	s.owners = map[int]Owner{}
	for dir, owner := range s.traces.Groups {
		names, err := cgroup.List(dir)
		if errors.Is(err, cgroup.ErrNone) {
			return nil
		} else if err != nil {
			return err
		}
		for _, name := range names {
			group := path.Join(dir, name)
			pids, err := cgroup.Procs(group)
			if err != nil {
				return err
			}
			s.add(Item{Kind: Cgroup, Name: group, Owner: owner(name), Detail: strconv.Itoa(len(pids)) + " processes"})
			for _, pid := range pids {
				s.owners[pid] = owner(name)
			}
		}
	}
	return nil
}

// processes looks at every process that is in a group or network namespace of
// ours, or runs a file of the payload.
func (s *scan) processes() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	parents := map[int]int{}
	var found []Item
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		st, ok := readStat(pid)
		if !ok || st.state == "Z" || st.state == "X" {
			continue // gone, or waits for its parent to look
		}
		parents[pid] = st.parent
		owner, of := s.owners[pid], true
		if owner == Nobody {
			owner, of = s.byNamespace(pid)
		}
		if !of {
			exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
			if err != nil || !strings.HasPrefix(exe, s.p.Payload()+"/") {
				continue
			}
		}
		found = append(found, Item{Kind: Process, Name: e.Name() + " " + st.name, Owner: owner, PID: pid, Since: st.since,
			Identity: e.Name() + " " + st.start, Like: strings.TrimSpace(string(owner) + " " + st.name), Bytes: resident(pid)})
	}
	for _, i := range found {
		if i.PID == os.Getpid() {
			continue
		}
		if i.Owner == Nobody && s.answer != nil && descends(parents, i.PID, s.answer.PID) {
			i.Owner = Appliance
		}
		s.add(i)
	}
	if s.answer != nil {
		st, _ := readStat(s.answer.PID)
		s.add(Item{Kind: Process, Name: strconv.Itoa(s.answer.PID) + " multipaas " + s.answer.Role, Owner: Appliance, PID: s.answer.PID,
			Since: st.since, Like: "multipaas " + s.answer.Role, Bytes: resident(s.answer.PID)})
	}
	return nil
}

// byNamespace tells whose network namespace a process is in. The host's own is
// nobody's.
func (s *scan) byNamespace(pid int) (Owner, bool) {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/net", &st) != nil {
		return Nobody, false
	}
	owner, ok := s.namespaces[st.Ino]
	return owner, ok
}

func descends(parents map[int]int, pid, from int) bool {
	for range len(parents) {
		if pid == from {
			return true
		}
		up, ok := parents[pid]
		if !ok || up == 0 {
			return false
		}
		pid = up
	}
	return false
}

type stat struct {
	name, state, start string
	parent             int
	since              time.Time
}

// Started is the time in the kernel's ticks at which a process was started,
// which tells it from a later one with its id. ok is false if there is none.
func Started(pid int) (ticks string, ok bool) {
	st, ok := readStat(pid)
	return st.start, ok && st.state != "Z"
}

func readStat(pid int) (stat, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return stat{}, false
	}
	f := strings.Fields(string(data[end+1:]))
	if len(f) < 22 {
		return stat{}, false
	}
	st := stat{name: string(data[open+1 : end]), state: f[0], start: f[19]}
	st.parent, _ = strconv.Atoi(f[1])
	// The kernel counts a hundred ticks a second from its start, on every
	// machine that we run on.
	if ticks, err := strconv.ParseInt(st.start, 10, 64); err == nil {
		var now unix.Timespec
		if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) == nil {
			up := time.Duration(now.Nano())
			st.since = time.Now().Add(time.Duration(ticks)*10*time.Millisecond - up).Truncate(time.Second)
		}
	}
	return st, true
}

func resident(pid int) int64 {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// diskUse is what the files at and below dir take of the disk; mounts are not
// entered. Nothing there: 0.
func diskUse(dir string) (bytes int64) {
	var top unix.Stat_t
	if unix.Lstat(dir, &top) != nil {
		return 0
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			return nil
		}
		if st.Dev != top.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		bytes += st.Blocks * 512
		return nil
	})
	return bytes
}
