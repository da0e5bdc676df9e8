package measure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc/PID/stat: the kernel tells 100 a second to
// every program, whatever it uses itself.
const tick = 10 * time.Millisecond

// stat is what of /proc/PID/stat is of use.
type stat struct {
	parent int
	cpu    time.Duration
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The name, in parentheses, may hold anything; numbers follow the last one.
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 13 {
		return stat{}, fmt.Errorf("read /proc/%d/stat: %q", pid, data)
	}
	var n [3]int64
	for i, column := range []int{1, 11, 12} { // parent, user, system
		if n[i], err = strconv.ParseInt(f[column], 10, 64); err != nil {
			return stat{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
		}
	}
	return stat{int(n[0]), time.Duration(n[1]+n[2]) * tick}, nil
}

// CPUAlone is the CPU time that a process has used so far without its
// descendants, to 10 ms.
func CPUAlone(pid int) (time.Duration, error) {
	s, err := readStat(pid)
	return s.cpu, err
}

// CPU is the CPU time, user and system, that a process and all its descendants
// have used so far, to 10 ms. Descendants that have ended don't count.
func CPU(pid int) (time.Duration, error) {
	pids, err := Tree(pid)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, p := range pids {
		if s, err := readStat(p); err == nil {
			sum += s.cpu
		}
	}
	return sum, nil
}

// Idle is the share of one core that a process and its descendants use while
// nobody asks anything of them: 0.01 is a hundredth.
func Idle(ctx context.Context, pid int, during time.Duration) (float64, error) {
	return idle(ctx, pid, during, CPU)
}

// IdleAlone is Idle of a process without its descendants.
func IdleAlone(ctx context.Context, pid int, during time.Duration) (float64, error) {
	return idle(ctx, pid, during, CPUAlone)
}

func idle(ctx context.Context, pid int, during time.Duration, cpu func(int) (time.Duration, error)) (float64, error) {
	before, err := cpu(pid)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-time.After(during):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := cpu(pid)
	return (after - before).Seconds() / time.Since(began).Seconds(), err
}

// Memory is what processes hold, in bytes.
type Memory struct {
	Anonymous    int64 // heap and stacks: nobody else has these pages
	Proportional int64 // with each shared page divided by those that share it
	Resident     int64 // everything
}

// MemoryOf sums a process and all its descendants.
func MemoryOf(pid int) (Memory, error) {
	pids, err := Tree(pid)
	if err != nil {
		return Memory{}, err
	}
	return MemoryOfEach(pids...)
}

// MemoryOfEach sums processes without their descendants.
func MemoryOfEach(pids ...int) (Memory, error) {
	var sum Memory
	for _, p := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return sum, fmt.Errorf("read memory of process %d: %w", p, err)
		}
		for line := range bytes.Lines(data) {
			f := bytes.Fields(line)
			if len(f) != 3 {
				continue
			}
			kb, err := strconv.ParseInt(string(f[1]), 10, 64)
			if err != nil {
				continue
			}
			switch string(f[0]) {
			case "Anonymous:":
				sum.Anonymous += kb << 10
			case "Pss:":
				sum.Proportional += kb << 10
			case "Rss:":
				sum.Resident += kb << 10
			}
		}
	}
	return sum, nil
}

// Tree is a process and all its descendants.
func Tree(pid int) ([]int, error) {
	dir, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	found := false
	for _, e := range dir {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		s, err := readStat(p)
		if err != nil {
			continue // it has ended
		}
		found = found || p == pid
		children[s.parent] = append(children[s.parent], p)
	}
	if !found {
		return nil, fmt.Errorf("process %d has ended", pid)
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}
