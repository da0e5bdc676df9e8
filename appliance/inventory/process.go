package inventory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
)

// groups looks at the control groups of planes and machines.
func (s *scan) groups() error {
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
	all, err := procfs.AllProcs()
	if err != nil {
		return err
	}
	parents := map[int]int{}
	var found []Item
	for _, p := range all {
		st, err := p.Stat()
		if err != nil || st.State == "Z" || st.State == "X" {
			continue // gone, or waits for its parent to look
		}
		parents[p.PID] = st.PPID
		owner, of := s.owners[p.PID], true
		if owner == Nobody {
			owner, of = s.byNamespace(p.PID)
		}
		if !of {
			exe, err := p.Executable()
			if err != nil || !strings.HasPrefix(exe, s.p.Payload()+"/") {
				continue
			}
		}
		item := process(st)
		item.Owner = owner
		item.Name = strconv.Itoa(p.PID) + " " + st.Comm
		item.Like = strings.TrimSpace(string(owner) + " " + st.Comm)
		item.Identity = ticks(st)
		found = append(found, item)
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
	if s.answer == nil {
		return nil
	}
	// One that ends meanwhile is noticed when it is asked again.
	st, _ := readStat(s.answer.PID)
	item := process(st)
	item.PID, item.Owner, item.Like = s.answer.PID, Appliance, "multipaas "+s.answer.Role
	item.Name = strconv.Itoa(item.PID) + " " + item.Like
	s.add(item)
	return nil
}

// process is what the kernel says about one.
func process(st procfs.ProcStat) Item {
	i := Item{Kind: Process, PID: st.PID, Bytes: int64(st.ResidentMemory())}
	// The kernel counts a hundred ticks a second from its start, on every
	// machine that we run on.
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) == nil {
		up := time.Duration(now.Nano())
		i.Since = time.Now().Add(time.Duration(st.Starttime)*10*time.Millisecond - up).Truncate(time.Second)
	}
	return i
}

// byNamespace tells whose network namespace a process is in. The host's own is
// nobody's.
func (s *scan) byNamespace(pid int) (Owner, bool) {
	info, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return Nobody, false
	}
	owner, ok := s.namespaces[FileIdentity(info)]
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

// ProcessIdentity tells a process from a later one with its id: by the time in the
// kernel's ticks at which it was started. "": there is none.
func ProcessIdentity(pid int) string {
	st, err := readStat(pid)
	if err != nil || st.State == "Z" {
		return ""
	}
	return ticks(st)
}

func ticks(st procfs.ProcStat) string { return fmt.Sprintf("%d %d", st.PID, st.Starttime) }

func readStat(pid int) (procfs.ProcStat, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return procfs.ProcStat{}, err
	}
	return p.Stat()
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
