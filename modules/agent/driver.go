package agent

import (
	"context"
	"slices"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
)

// Driver keeps one kind of things on this host as the server wants them:
// networks, machines. Its methods may block for seconds, Wanted excepted, and
// are safe for concurrent use; Ensure, Remove and Drop of one item follow one another.
type Driver interface {
	// Kind is what its items are called, "network". No two drivers have the same.
	Kind() string
	// Wanted lists what s asks for, what s wants removed included.
	Wanted(s *wire.State) []Item
	// Drop takes all of an item away that a live state does not have, in whatever state
	// it is. None there is no error. A driver whose things nobody may lose for not being
	// named does nothing: those go by Item.Remove alone.
	Drop(ctx context.Context, key string) error
	// List returns the keys of the items of which something is on this host that may be
	// dropped.
	List(ctx context.Context) ([]string, error)
	// Report adds to r what is seen of the items that s wants, and what of any network
	// is here. progress says how far the agent has come with one. It returns the keys of those that were
	// ready and have fallen over, to be ensured again at once. The others are
	// tried again anyway, with growing pauses.
	Report(ctx context.Context, s *wire.State, progress func(key string) Progress, r *Report) (fallen []string, err error)
}

// hold adds to what a report says that the host holds, if it says that.
func hold(r *Report, networks ...string) {
	for _, id := range networks {
		if r.Holds != nil && !slices.Contains(r.Holds, id) {
			r.Holds = append(r.Holds, id)
		}
	}
}

// Item is one thing of a driver that a state wants.
type Item struct {
	// Key tells it from all others of its driver. One that can be removed and
	// wanted anew has another key then.
	Key string
	// Workspace is whose it is, the ID of its network: of one driver's items, one
	// workspace's hold one worker at most.
	Workspace string
	// Needs are items of earlier drivers. It is ensured once they are as the same
	// state wants them.
	Needs []Ref
	// Every is how often it is ensured though nothing has changed; 0 is never.
	Every time.Duration
	// Ensure makes it be as the state wants it. It is idempotent.
	Ensure func(ctx context.Context) error
	// Remove takes all of it away, in whatever state it is; none there is no error. nil: the
	// state wants it to be.
	Remove func(ctx context.Context) error
}

// Keeper is a driver of things that a host keeps when it leaves the platform.
type Keeper interface {
	// Leave lets go of them, once nothing stands on them any more, and says where they are. It
	// may block for seconds.
	Leave() (kept []string, err error)
}

// Ref names an item on this host.
type Ref struct{ Kind, Key string }

// String is for people.
func (r Ref) String() string { return r.Kind + " " + r.Key }

// Progress is how far the agent has come with an item.
type Progress struct {
	serial  uint64 // of the state that it was last made to be like; 0: of none
	Removed bool   // nothing of it is left
	Problem string // why it isn't as wanted, for people
}

// Ready says whether it was as wanted at the last look.
func (p Progress) Ready() bool { return p.serial > 0 && p.Problem == "" }

// plan is a state and what it wants of the drivers. It is not changed once made.
type plan struct {
	state  *wire.State // nil: nobody has said yet what shall be
	serial uint64      // counts states; the first is 1
	items  map[Ref]Item
}

func newPlan(drivers []Driver, s *wire.State, serial uint64) *plan {
	p := &plan{state: s, serial: serial, items: map[Ref]Item{}}
	for _, d := range drivers {
		for _, item := range d.Wanted(s) {
			p.items[Ref{d.Kind(), item.Key}] = item
		}
	}
	return p
}
