// Package inventory says what MultiPaaS has made on a host: processes, network
// namespaces and what is in them, firewall tables, mounts, control groups, loop
// devices, sockets and files; and, asked from the appliance that runs there, what
// is wanted of it and what stands in the datastore. It changes nothing.
//
// Take looks at the host first and asks the appliance then. Everything that the
// platform makes has a record before it is made and until it is gone, so what a
// look has found and an answer asked for later does not want, nobody is making.
//
// Parties: package doctor, which judges; the appliance, which answers by Answer;
// tests, which compare two inventories. Any package may import it; it needs root.
package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/paths"
	"github.com/multipaas/multipaas/appliance/status"
)

// Kind is what an item is.
type Kind string

// The kinds, in the order in which orphans of them can be removed.
const (
	Process Kind = "process"
	Cgroup  Kind = "cgroup"
	Mount   Kind = "mount"
	Mapped  Kind = "mapped device" // an encrypted disk as it is readable
	Loop    Kind = "loop device"
	Link    Kind = "interface"
	Route   Kind = "route"
	Rules   Kind = "nft table"
	Netns   Kind = "network namespace"
	Socket  Kind = "socket"
	Folder  Kind = "folder"
	File    Kind = "file"
	EtcdKey Kind = "etcd keys"
	User    Kind = "etcd user"
)

// Kinds are all kinds, in that order.
var kinds = []Kind{Process, Cgroup, Mount, Mapped, Loop, Link, Route, Rules, Netns, Socket, Folder, File, EtcdKey, User}

// Order is where a kind stands among all.
func (k Kind) Order() int { return slices.Index(kinds, k) }

// Owner is what an item belongs to: "workspace ID", "machine UID", "volume UID", "appliance"
// for what is the host's own, "former run" for what a run that is over has left;
// "" if nobody can tell.
type Owner string

const (
	Appliance Owner = "appliance"
	FormerRun Owner = "former run"
	Nobody    Owner = ""
)

// Workspace is the owner of a plane and a network, by the workspace's id.
func Workspace(id string) Owner { return Owner("workspace " + id) }

// Machine is the owner of everything of a machine.
func Machine(uid string) Owner { return Owner("machine " + uid) }

// Volume is the owner of everything of a volume.
func Volume(uid string) Owner { return Owner("volume " + uid) }

// Split takes an owner apart: "workspace", "machine" or "volume", and which.
func (o Owner) Split() (what, id string) {
	what, id, _ = strings.Cut(string(o), " ")
	return what, id
}

// Item is one thing on the host.
type Item struct {
	Kind  Kind   `json:"kind"`
	Name  string `json:"name"` // by which people find it
	Owner Owner  `json:"owner,omitempty"`
	// Identity tells it from a later one of the same name: a start time, an inode.
	Identity string    `json:"identity,omitempty"`
	Bytes    int64     `json:"bytes,omitempty"`
	Since    time.Time `json:"since,omitzero"` // zero: the kernel doesn't say
	// Like is the same for things that take each other's place, so that two
	// inventories can be compared: a process' name and not its id. "": Name.
	Like   string `json:"like,omitempty"`
	Detail string `json:"detail,omitempty"`

	// What it takes to remove it.
	PID       int    `json:"pid,omitempty"`
	Namespace string `json:"namespace,omitempty"` // of a link or route; "": the host's
}

// Answer is what a running appliance says about itself.
type Answer struct {
	Role    string    `json:"role"` // server or node
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Unknown says why the appliance can't tell yet what is wanted; then nothing
	// may be judged.
	Unknown string `json:"unknown,omitempty"`
	// Workspaces are the ids of those whose network, or plane, is wanted here;
	// Machines the UIDs of machines, and Volumes of volumes.
	Workspaces []string `json:"workspaces,omitempty"`
	Machines   []string `json:"machines,omitempty"`
	Volumes    []string `json:"volumes,omitempty"`
	// Orphans are what of the datastore belongs to nothing; Detail says why.
	Orphans []Item `json:"orphans,omitempty"`
	// Numbers are exact counts (etcd's keys by kind, its users), Gauges are
	// counts and sizes that vary by themselves.
	Numbers map[string]int64 `json:"numbers,omitempty"`
	Gauges  map[string]int64 `json:"gauges,omitempty"`
}

// Inventory is what was found on a host.
type Inventory struct {
	Taken  time.Time        `json:"taken"`
	Paths  paths.Paths      `json:"paths"`
	Items  []Item           `json:"items"`
	Answer *Answer          `json:"answer,omitempty"` // nil: no appliance runs
	Number map[string]int64 `json:"numbers"`
	// Gauges are what varies by itself: goroutines, live heap and open files of
	// the appliance, bytes of etcd.
	Gauges map[string]int64 `json:"gauges"`
}

// Take looks at the host for what has traces, and asks the appliance that runs on p,
// if one does. It takes a tenth of a second, seconds on a host with thousands of machines.
func Take(ctx context.Context, p paths.Paths, traces []Traces) (Inventory, error) {
	inv := Inventory{Paths: p, Number: map[string]int64{}, Gauges: map[string]int64{}}
	before, err := Ask(ctx, p.Socket())
	if err != nil && !errors.Is(err, status.ErrNotRunning) {
		return inv, err
	}
	s := &scan{
		p: p, traces: merged(traces), answer: before, inv: &inv,
		namespaces: map[string]Owner{}, inodes: map[inode]Owner{}, owners: map[int]Owner{},
	}
	for _, look := range []func() error{
		s.namespacesAndLinks, s.groups, s.processes, s.mounts, s.files, s.loops, s.mapped,
	} {
		if err := ctx.Err(); err != nil {
			return inv, err
		}
		if err := look(); err != nil {
			return inv, fmt.Errorf("take inventory: %w", err)
		}
	}
	s.traces.Count(inv.Number, inv.Gauges)
	// Asked again after the look: see the package's comment.
	if before != nil {
		a, err := Ask(ctx, p.Socket())
		if err != nil {
			return inv, err
		}
		if a.PID != before.PID {
			return inv, errors.New("the appliance was started again meanwhile: try again")
		}
		inv.Answer = a
		maps.Copy(inv.Number, a.Numbers)
		maps.Copy(inv.Gauges, a.Gauges)
		if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.PID)); err == nil {
			inv.Gauges["open files of "+a.Role] = int64(len(fds))
		}
		inv.Items = append(inv.Items, a.Orphans...)
	}
	slices.SortStableFunc(inv.Items, func(a, b Item) int {
		return cmp.Or(
			cmp.Compare(a.Kind.Order(), b.Kind.Order()),
			strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Name, b.Name),
		)
	})
	for _, k := range kinds {
		inv.Number[string(k)] = 0
	}
	for _, i := range inv.Items {
		inv.Number[string(i.Kind)]++
	}
	inv.Taken = time.Now()
	return inv, nil
}

// Ask asks the appliance at the socket. The error wraps status.ErrNotRunning if
// none listens there.
func Ask(ctx context.Context, socket string) (*Answer, error) {
	var a Answer
	if err := status.Ask(ctx, socket, http.MethodGet, "/inventory", nil, &a); err != nil {
		return nil, err
	}
	return &a, nil
}

// RemoveOrphans has the appliance remove orphans of its datastore. It looks
// itself whether they still are; it returns those that it has removed.
func RemoveOrphans(ctx context.Context, socket string, orphans []Item) (removed []Item, err error) {
	err = status.Ask(ctx, socket, http.MethodPost, "/inventory/remove", orphans, &removed)
	return removed, err
}

// scan is one look.
type scan struct {
	p      paths.Paths
	traces Traces
	answer *Answer
	inv    *Inventory

	namespaces map[string]Owner // of network namespaces, by identity
	inodes     map[inode]Owner  // of disks
	owners     map[int]Owner    // of processes, by control group
}

func (s *scan) add(i Item) { s.inv.Items = append(s.inv.Items, i) }
