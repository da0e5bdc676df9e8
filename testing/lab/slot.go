package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

// registryDir holds a file for each lab on this machine. Everything a lab has
// made is named after its slot, so it can be found and removed when the lab's
// own folder, and its owner, are gone.
const registryDir = "/run/multipaas-lab"

// maxSlots: 10.96.0.0/11 has 32 x 256 networks of 256 addresses.
const maxSlots = 32 * 256

// slot is one lab's entry in the registry.
type slot struct {
	Number int    `json:"slot"`
	Name   string `json:"name"`
	Dir    string `json:"dir"`
	// Owner is the process that ends the lab. A lab with Keep outlives it.
	Owner process `json:"owner"`
	Keep  bool    `json:"keep,omitempty"`
	// Scratch says that Dir goes with the lab.
	Scratch bool      `json:"scratch,omitempty"`
	Created time.Time `json:"created"`
}

// process names a process for all time: ids are used again, but not with the
// same start time.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"`
}

func thisProcess() process { return findProcess(os.Getpid()) }

// findProcess describes a process; its Start is "" if there is none, or only
// what is left of one until its parent asks for it.
func findProcess(pid int) process {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{PID: pid}
	}
	// The name in parentheses may hold anything, so count from its end: the
	// state is first, the start time 20th.
	i := strings.LastIndexByte(string(data), ')')
	fields := strings.Fields(string(data[i+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return process{PID: pid}
	}
	return process{PID: pid, Start: fields[19]}
}

func (p process) alive() bool {
	return p.PID > 0 && p.Start != "" && findProcess(p.PID).Start == p.Start
}

// prefix begins the name of every link, table and group of the slot.
func (s slot) prefix() string { return fmt.Sprintf("lab%d", s.Number) }

// bridge is the slot's network device in our namespace.
func (s slot) bridge() string { return s.prefix() }

// link is our end of the link to a host.
func (s slot) link(index int) string { return fmt.Sprintf("%sh%d", s.prefix(), index) }

// subnet is the slot's network.
func (s slot) subnet() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(96 + s.Number/256), byte(s.Number % 256), 0}), 24)
}

// address is the n-th address of the slot's network.
func (s slot) address(n int) netip.Addr {
	a := s.subnet().Addr().As4()
	a[3] = byte(n)
	return netip.AddrFrom4(a)
}

func (s slot) file() string { return filepath.Join(registryDir, strconv.Itoa(s.Number)+".json") }

func (s slot) write() error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(s.file(), append(data, '\n'), 0o600)
}

// lockRegistry locks the registry among all labs of this machine.
func lockRegistry() (unlock func(), err error) {
	if err := os.MkdirAll(registryDir, 0o700); err != nil {
		return nil, err
	}
	return lockFile(filepath.Join(registryDir, "lock"))
}

func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	return func() { f.Close() }, nil
}

// slots reads the registry.
func slots() ([]slot, error) {
	entries, err := os.ReadDir(registryDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []slot
	for _, e := range entries {
		n, err := strconv.Atoi(strings.TrimSuffix(e.Name(), ".json"))
		if err != nil {
			continue
		}
		s := slot{Number: n}
		data, err := os.ReadFile(filepath.Join(registryDir, e.Name()))
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		if err != nil {
			// Unreadable: what it names can still be removed by its number.
			s = slot{Number: n}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b slot) int { return a.Number - b.Number })
	return all, nil
}

// takeSlot finds a free slot for s and enters it, the wanted one if it can be. A
// slot whose names are in use by others, or whose network is, is not free.
func takeSlot(s slot, wanted int) (slot, error) {
	unlock, err := lockRegistry()
	if err != nil {
		return s, err
	}
	defer unlock()
	taken, err := slots()
	if err != nil {
		return s, err
	}
	if slices.ContainsFunc(taken, func(o slot) bool { return o.Dir == s.Dir }) {
		return s, fmt.Errorf("there is a lab in %s already; `lab -C %[1]s down` ends it", s.Dir)
	}
	for i := range maxSlots {
		s.Number = (wanted + i) % maxSlots
		if slices.ContainsFunc(taken, func(o slot) bool { return o.Number == s.Number }) || s.networkInUse() {
			continue
		}
		return s, s.write()
	}
	return s, errors.New("every lab network is in use; `lab sweep` frees those of ended labs")
}
