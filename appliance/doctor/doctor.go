// Package doctor finds leftovers of MultiPaaS on a host, says why they are that,
// and removes them.
//
// What it promises is that it never takes what is wanted, or what is just being
// made. While the appliance runs, an orphan is what two looks in a row have found
// and what the appliance, asked after each, does not want: the platform records
// everything before it makes it, and never uses an id again. While it is
// stopped, the caller holds the locks that keep it from starting, and says what is
// wanted from the data directory.
//
// Parties: `multipaas doctor`, by way of package appliance. Any package may
// import it; it needs root.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/paths"
)

// Wanted is what shall be on this host.
type Wanted struct {
	Source string // who says so, for people
	// Workspaces are the ids of those that have a network here, Machines the UIDs
	// of machines, Volumes of volumes. nil: nobody can tell, and nothing of theirs is judged.
	Workspaces, Machines, Volumes map[string]bool
	// Planes says that Workspaces are all whose planes' data is kept here, and
	// not only those whose networks are.
	Planes bool
	// Stopped says that nothing of a plane may run: its server does not.
	Stopped bool
	Notes   []string // what can't be judged, and why
}

// Config is what to look at.
type Config struct {
	Paths  paths.Paths
	Traces []inventory.Traces // what to look for
	// Stopped says what is wanted while no appliance runs. The caller holds the
	// appliance's locks. nil: one runs, and is asked.
	Stopped *Wanted
	Fix     bool
	// Volumes are the UIDs of those whose data Fix may destroy, if nobody wants them. It
	// removes that of no other.
	Volumes map[string]bool
	// Removed is told of every removal, and of each that failed, once it happened.
	Removed func(o Orphan)
}

// Orphan is something that nobody wants.
type Orphan struct {
	inventory.Item
	Why string `json:"why"`
	// Kept says that it is listed and nothing else, since nobody has named it: it has a
	// tenant's data.
	Kept    bool   `json:"kept,omitempty"`
	Removed bool   `json:"removed,omitempty"`
	Error   string `json:"error,omitempty"` // why it could not be removed
}

// Report is what a look has found.
type Report struct {
	Source    string              `json:"source"` // who says what is wanted
	Looked    map[string]int64    `json:"looked"` // how many things there are, by kind
	Orphans   []Orphan            `json:"orphans"`
	NotJudged []string            `json:"not_judged,omitempty"`
	Inventory inventory.Inventory `json:"-"`
}

// Healthy says whether no orphan is left but those that are kept.
func (r Report) Healthy() bool {
	return !slices.ContainsFunc(r.Orphans, func(o Orphan) bool { return !o.Removed && !o.Kept })
}

// Look looks at the host, and with Config.Fix removes what it found. The error
// says that it could not look; what could not be removed is in the report.
func Look(ctx context.Context, cfg Config) (Report, error) {
	inv, w, err := look(ctx, cfg)
	if err != nil {
		return Report{}, err
	}
	orphans := judge(inv, w, cfg.Volumes)
	if cfg.Stopped == nil && len(orphans) > 0 {
		if inv, w, err = look(ctx, cfg); err != nil {
			return Report{}, err
		}
		orphans = both(orphans, judge(inv, w, cfg.Volumes))
	}
	r := Report{Source: w.Source, Looked: map[string]int64{}, Orphans: orphans, NotJudged: w.Notes, Inventory: inv}
	for _, i := range inv.Items {
		r.Looked[string(i.Kind)]++
	}
	if cfg.Fix {
		fix(ctx, cfg, inv, r.Orphans)
	}
	return r, nil
}

func look(ctx context.Context, cfg Config) (inventory.Inventory, Wanted, error) {
	inv, err := inventory.Take(ctx, cfg.Paths, cfg.Traces)
	if err != nil {
		return inv, Wanted{}, err
	}
	if cfg.Stopped != nil {
		if inv.Answer != nil {
			return inv, Wanted{}, errors.New("the server or node was started meanwhile: try again")
		}
		return inv, *cfg.Stopped, nil
	}
	a := inv.Answer
	if a == nil {
		return inv, Wanted{}, errors.New("the server or node has stopped meanwhile: try again")
	}
	w := Wanted{Source: fmt.Sprintf("the running %s, process %d", a.Role, a.PID), Planes: a.Role == "server"}
	if a.Unknown != "" {
		w.Notes = append(w.Notes, "workspaces and machines: "+a.Unknown)
		return inv, w, nil
	}
	w.Workspaces = Set(a.Workspaces)
	if a.Role == "node" {
		w.Machines, w.Volumes = Set(a.Machines), Set(a.Volumes)
	} else {
		w.Notes = append(w.Notes, "machines: this host is a server")
	}
	return inv, w, nil
}

// Set makes a set of names; it is never nil.
func Set(names []string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

// both are those of the second look that the first has found too.
func both(first, second []Orphan) []Orphan {
	return slices.DeleteFunc(second, func(o Orphan) bool {
		return !slices.ContainsFunc(first, func(f Orphan) bool {
			return f.Kind == o.Kind && f.Name == o.Name && f.Namespace == o.Namespace && f.Identity == o.Identity
		})
	})
}

// judge returns what of an inventory nobody wants. What goes with another orphan
// is not named beside it. Of volumes' folders those named may go.
func judge(inv inventory.Inventory, w Wanted, volumes map[string]bool) []Orphan {
	var orphans []Orphan
	for _, i := range inv.Items {
		if why := reason(i, inv, w); why != "" {
			o := Orphan{Item: i, Why: why}
			if what, uid := i.Owner.Split(); what == "volume" && i.Kind == inventory.Folder && !volumes[uid] {
				o.Kept = true
				o.Why += "; a tenant's data is in it (volume.json says whose), so it is kept: " +
					"to delete it, multipaas doctor --fix --volume " + uid
			}
			orphans = append(orphans, o)
		}
	}
	return slices.DeleteFunc(orphans, func(o Orphan) bool { return covered(o, orphans) })
}

func covered(o Orphan, all []Orphan) bool {
	return slices.ContainsFunc(all, func(by Orphan) bool {
		switch by.Kind {
		case inventory.Folder:
			return (o.Kind == inventory.File || o.Kind == inventory.Socket) && strings.HasPrefix(o.Name, by.Name+"/")
		case inventory.Netns:
			return (o.Kind == inventory.Route || o.Kind == inventory.Rules) && o.Namespace == by.Name
		case inventory.Link:
			return o.Kind == inventory.Route && o.Namespace == by.Namespace && strings.HasSuffix(o.Name, " dev "+by.Name)
		}
		return false
	})
}

// reason says why nobody wants an item; "" if somebody does, or nobody can tell.
func reason(i inventory.Item, inv inventory.Inventory, w Wanted) string {
	switch what, id := i.Owner.Split(); what {
	case "workspace":
		return workspaceReason(i, id, inv, w)
	case "machine":
		if w.Machines != nil && !w.Machines[id] {
			return "no machine of this node has this UID"
		}
		return ""
	case "volume":
		if w.Volumes != nil && !w.Volumes[id] {
			return "no volume of this node has this UID"
		}
		return ""
	}
	switch {
	case i.Kind == inventory.EtcdKey || i.Kind == inventory.User:
		return i.Detail // the server has judged
	case i.Owner == inventory.FormerRun:
		return "left by a run that was killed while it wrote"
	case i.Kind == inventory.Process && i.Owner == inventory.Nobody:
		return "runs a file of the payload, but no running server or node started it"
	case i.Kind == inventory.Link && i.Owner == inventory.Nobody:
		return "MultiPaaS gives no interface in a workspace's network this name"
	case i.Kind == inventory.Rules && i.Namespace == "" && w.Workspaces != nil && len(w.Workspaces) == 0:
		return "no workspace has a network here"
	case i.Kind == inventory.Folder && strings.HasSuffix(i.Name, ".partial") && free(filepath.Join(filepath.Dir(i.Name), "lock")):
		return "left by a run that was killed while it unpacked"
	}
	return ""
}

func workspaceReason(i inventory.Item, id string, inv inventory.Inventory, w Wanted) string {
	plane := strings.HasPrefix(i.Name, inv.Paths.Planes()+"/") || i.Kind == inventory.Cgroup
	if i.Kind == inventory.Process && w.Stopped {
		return "a plane's process that has outlived its server"
	}
	if w.Workspaces == nil || w.Workspaces[id] || plane && !w.Planes {
		return ""
	}
	return "no workspace has this id"
}

// free says whether nobody holds the lock of a folder.
func free(lock string) bool {
	f, err := os.OpenFile(lock, os.O_RDWR, 0)
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// Age is how long ago something began, short; "" if nobody knows.
func (o Orphan) Age(now time.Time) string {
	if o.Since.IsZero() {
		return ""
	}
	d := now.Sub(o.Since)
	switch {
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
