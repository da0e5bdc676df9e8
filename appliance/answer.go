package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/multipaas/multipaas/appliance/inventory"
)

// answerer says what of a role is wanted on this host, for `multipaas doctor`.
type answerer interface {
	// answer fills what the role knows. It may block for seconds.
	answer(ctx context.Context, a *inventory.Answer) error
	// removeOrphans removes those of the datastore that are orphans still.
	removeOrphans(ctx context.Context, orphans []inventory.Item) ([]inventory.Item, error)
}

// inventoryHandlers answer on the status socket, whose part runs after the role
// was made. started is before anything that this run has made.
func (b *base) inventoryHandlers(started time.Time) map[string]http.Handler {
	reply := func(w http.ResponseWriter, v any, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // who asked has gone
	}
	return map[string]http.Handler{
		"GET /inventory": http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			a := inventory.Answer{PID: os.Getpid(), Started: started, Numbers: map[string]int64{}, Gauges: map[string]int64{}}
			err := b.answers.answer(req.Context(), &a)
			gauges(a)
			reply(w, a, err)
		}),
		"POST /inventory/remove": http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			var orphans []inventory.Item
			if err := json.NewDecoder(io.LimitReader(req.Body, 64<<20)).Decode(&orphans); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			removed, err := b.answers.removeOrphans(req.Context(), orphans)
			reply(w, removed, err)
		}),
	}
}

// gauges measures this process. The collector runs first, so that what is left
// is what is in use.
func gauges(a inventory.Answer) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	a.Gauges["goroutines of "+a.Role] = int64(runtime.NumGoroutine())
	a.Gauges["live heap bytes of "+a.Role] = int64(m.HeapAlloc)
}

// answer: what the agent works for.
func (h *host) answer(_ context.Context, a *inventory.Answer) error {
	a.Role = "node"
	s := h.agent.State()
	if s == nil {
		a.Unknown = "the node has not heard from its server yet"
		return nil
	}
	a.Workspaces, a.Machines, a.Volumes = s.Wanted()
	return nil
}

func (h *host) removeOrphans(context.Context, []inventory.Item) ([]inventory.Item, error) {
	return nil, errors.New("a node keeps no datastore")
}
