package client

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestNoRoom has the platform say that there is no room. A command that waits
// says so at once. It ends soon unless room comes or the user has said how long to
// wait; following a task waits on.
func TestNoRoom(t *testing.T) {
	const grace = 300 * time.Millisecond
	var room atomic.Int64 // after how long it comes; 0 is never
	serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprint(w, `{"resource":{"name":"shop"},"task":"t1"}`)
			return
		}
		if !strings.HasSuffix(r.URL.Path, "/events") {
			fmt.Fprint(w, `{"name":"shop"}`)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		say := func(state, step string) {
			fmt.Fprintf(w, `data: {"name":"t1","spec":{"operation":"workspace.update","target":"acme/web/shop"},"status":{"state":%q,"steps":[`+
				`{"type":"PlaneReady","status":"True"},{"type":"Scheduled",%s},{"type":"MachinesReady","status":"False","message":"1 of 9"}]}}`+"\n", state, step)
			fmt.Fprint(w, "event: task\n\n")
			w.(http.Flusher).Flush()
		}
		say("running", `"status":"False","reason":"NoCapacity","message":"no node has room"`)
		comes := time.Duration(room.Load())
		if comes == 0 {
			<-r.Context().Done()
			return
		}
		time.Sleep(comes)
		say("running", `"status":"True"`)
		time.Sleep(2 * grace)
		say("done", `"status":"True"`)
	})
	for name, tt := range map[string]struct {
		room    time.Duration
		args    string
		code    int
		atLeast time.Duration
		want    string
	}{
		"none comes": {
			args: "cluster scale -n 9", code: ExitTimeout, atLeast: grace,
			want: "mp: workspace.update of acme/web/shop waits: no node has room\n  the platform goes on; come back with 'mp tasks follow t1'\n",
		},
		"it comes": {
			room: grace / 10, args: "cluster scale -n 9", code: ExitOK, atLeast: 2 * grace,
			want: "ok    scheduled\n",
		},
		"none comes, but the user has time": {
			args: "cluster scale -n 9 --timeout 1s", code: ExitTimeout, atLeast: time.Second,
			want: "mp: task t1 has not ended within 1s: no node has room\n",
		},
		"none comes for who follows": {
			args: "tasks follow t1 --timeout 1s", code: ExitTimeout, atLeast: time.Second,
			want: "mp: task t1 has not ended within 1s: no node has room\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			room.Store(int64(tt.room))
			var out, errw strings.Builder
			p := newProgram("mp", nil, &out, &errw)
			p.roomGrace = grace
			began := time.Now()
			code := p.run(t.Context(), p.commands(), strings.Fields(tt.args))
			if code != tt.code || !strings.Contains(errw.String(), tt.want) {
				t.Errorf("code %d, want %d with %q, got\n%s", code, tt.code, tt.want, errw.String())
			}
			if !strings.HasPrefix(errw.String(), "ok    plane ready\n..    scheduled: no node has room\n") {
				t.Errorf("not told at once:\n%s", errw.String())
			}
			if took := time.Since(began); took < tt.atLeast {
				t.Errorf("ended after %v, want at least %v", took, tt.atLeast)
			}
		})
	}
}
