package attack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/wait"
)

// objects writes very many, and very large ones.
func (w *waste) objects(t *testing.T) {
	k := w.kube
	big := func(n int) string { return strings.Repeat("x", n) }
	deep := strings.Repeat(`{"a":`, 200_000) + "1" + strings.Repeat("}", 200_000)
	aliases := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'j'; c++ {
		p := string(c - 1)
		aliases += fmt.Sprintf("%c: &%c [*%s,*%s,*%s,*%s,*%s,*%s,*%s,*%s,*%s]\n", c, c, p, p, p, p, p, p, p, p, p)
	}
	k.must(t, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", `{"metadata":{"name":"blobs.attack.test"},"spec":{"group":"attack.test","scope":"Namespaced",
		"names":{"plural":"blobs","singular":"blob","kind":"Blob"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`)
	const blobs = "/apis/attack.test/v1/namespaces/waste/blobs"
	wait.For(t, wait.Patience, "A's own kind is served", func(ctx context.Context) error { return k.do(ctx, http.MethodGet, blobs, "", "").good() })
	blob := func(name, data string) string {
		return fmt.Sprintf(`{"apiVersion":"attack.test/v1","kind":"Blob","metadata":{"name":%q},"data":%q}`, name, data)
	}
	type giant struct {
		what, want string
		do         func(context.Context) reply
		codes      []int
	}
	giants := []giant{
		{"a ConfigMap of 1.2 MB", "422: may not be more than 1048576 bytes", func(ctx context.Context) reply {
			return k.post(ctx, wasteMaps, `{"metadata":{"name":"giant"},"data":{"a":"`+big(1_200_000)+`"}}`)
		}, []int{http.StatusUnprocessableEntity}},
		{"an object of its own kind of 2 MB", "413 or 500: request is too large", func(ctx context.Context) reply { return k.post(ctx, blobs, blob("giant", big(2_000_000))) },
			[]int{http.StatusRequestEntityTooLarge, http.StatusInternalServerError}},
		{"a body of 64 MB", "413", func(ctx context.Context) reply {
			return k.post(ctx, wasteMaps, `{"metadata":{"name":"giant"},"data":{"a":"`+big(64_000_000)+`"}}`)
		},
			[]int{http.StatusRequestEntityTooLarge}},
		{"annotations of 1 MB", "422", func(ctx context.Context) reply {
			return k.post(ctx, wasteMaps, `{"metadata":{"name":"giant","annotations":{"a":"`+big(1_000_000)+`"}}}`)
		}, []int{http.StatusUnprocessableEntity}},
		{"JSON 200,000 deep", "400", func(ctx context.Context) reply {
			return k.post(ctx, wasteMaps, `{"metadata":{"name":"deep"},"data":`+deep+`}`)
		},
			[]int{http.StatusBadRequest, http.StatusRequestEntityTooLarge}},
		{"a patch of YAML that grows by aliases", "400", func(ctx context.Context) reply {
			return k.patch(ctx, "apply", blobs+"/aliases?fieldManager=attack", "apiVersion: attack.test/v1\nkind: Blob\nmetadata: {name: aliases}\n"+aliases)
		}, []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity}},
		{"a JSON patch of 20,000 operations", "413: the allowed maximum is 10000", func(ctx context.Context) reply {
			return k.patch(ctx, "json", "/api/v1/namespaces/waste?fieldManager=attack", "["+strings.TrimSuffix(strings.Repeat(`{"op":"test","path":"/metadata/name","value":"waste"},`, 20_000), ",")+"]")
		}, []int{http.StatusRequestEntityTooLarge}},
	}
	w.by.during(t, "giant objects", owner, func() {
		for _, g := range giants {
			// A server that refuses a body before it has come whole may end the connection
			// under the client's feet (RFC 9112, 9.6): then no answer arrives, and it is
			// asked again.
			r, ok := reply{}, false
			for try := 0; try < 10 && (try == 0 || !ok && r.undecided()); try++ {
				r = g.do(t.Context())
				ok = slices.Contains(g.codes, r.code)
			}
			w.record(t, attempt{What: "write " + g.what, From: owner, Want: g.want, Got: r.String(), Blocked: ok})
		}
	})

	// 10 MB either way.
	many, size := 10_000, 1000
	if !long() {
		many, size = 2000, 5000
	}
	var taken atomic.Int64
	began := time.Now()
	w.by.during(t, fmt.Sprintf("%d ConfigMaps", many), owner, func() {
		w.each(many, func(i int) {
			r := w.patient(t.Context(), func(ctx context.Context) reply {
				return k.post(ctx, wasteMaps, fmt.Sprintf(`{"metadata":{"name":"many-%d","labels":{"waste":"many"}},"data":{"a":"%s"}}`, i, big(size)))
			})
			if r.code/100 == 2 || r.code == http.StatusConflict {
				taken.Add(1)
			}
		})
	})
	t.Logf("%d ConfigMaps of %d bytes in %s", taken.Load(), size, time.Since(began).Round(time.Second))
	w.control(t, "A's ConfigMaps are within its bounds and taken", func() error {
		if taken.Load() != int64(many) {
			return fmt.Errorf("%d of %d were", taken.Load(), many)
		}
		return nil
	}())
	w.by.during(t, "lists of all of them, 16 at once", owner, func() {
		w.each(16, func(int) { k.drain(t.Context(), wasteMaps) })
	})
	w.by.during(t, "100 kinds of its own", owner, func() {
		w.each(100, func(i int) {
			w.patient(t.Context(), func(ctx context.Context) reply {
				return k.post(ctx, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", fmt.Sprintf(`{"metadata":{"name":"k%[1]ds.waste.test"},"spec":{"group":"waste.test","scope":"Namespaced",
				"names":{"plural":"k%[1]ds","singular":"k%[1]d","kind":"K%[1]d"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`, i))
			})
		})
	})
	w.by.during(t, "2,000 events", owner, func() {
		w.each(2000, func(i int) {
			w.patient(t.Context(), func(ctx context.Context) reply {
				return k.post(ctx, "/api/v1/namespaces/waste/events", fmt.Sprintf(`{"metadata":{"name":"e-%d"},"involvedObject":{"namespace":"waste"},"message":"%s"}`, i, big(900)))
			})
		})
	})
	w.planeBound(t, "objects, kinds and events")
	for _, path := range []string{wasteMaps + "?labelSelector=waste%3Dmany", "/api/v1/namespaces/waste/events"} {
		k.do(t.Context(), http.MethodDelete, path, "", "")
	}
	for i := range 100 {
		k.do(t.Context(), http.MethodDelete, fmt.Sprintf("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/k%ds.waste.test", i), "", "")
	}
}

// patient asks again while the API says that it is busy, for a minute.
func (w *waste) patient(ctx context.Context, do func(context.Context) reply) reply {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return decided(ctx, func() reply { return do(ctx) })
}

// each does something n times, 32 at once.
func (w *waste) each(n int, do func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				do(i)
			}
		})
	}
	wg.Wait()
}

// drain reads an answer and throws it away.
func (k *kube) drain(ctx context.Context, path string) (int, int64) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url+path, nil)
	if err != nil {
		return 0, 0
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return 0, 0
	}
	defer resp.Body.Close()
	n, _ := io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, n
}

// planeBound records what A's plane takes, and that it is still the process that it
// was: one that reached its bound would have been ended, and begun again with little.
func (w *waste) planeBound(t *testing.T, by string) {
	t.Helper()
	n, process := memoryOf(w.Server.PID(), "planes/"+w.id), w.planeProcess(w.id)
	w.record(t, attempt{What: "take the server's memory by " + by, From: owner, Want: fmt.Sprintf("A's plane takes at most %d MiB, in the process that it was", planeMemory>>20),
		Got: fmt.Sprintf("%d MiB in process %s, which was %s", n>>20, process, w.planeWas), Blocked: n > 0 && n <= planeMemory && process == w.planeWas})
}

// largest has A's plane take what it can, of memory and of the CPU, with a datastore that is
// full, while B deploys, logs in and pushes.
func (w *waste) largest(t *testing.T) {
	by := *w.by
	by.asks = append(slices.Clone(w.by.asks), w.deeds(t, w.people(t))...)
	if !w.control(t, "B deploys, logs in and pushes beside a full datastore", by.alone(t, 4*time.Second)) {
		return
	}
	by.during(t, fmt.Sprintf("%d who read all of a full datastore at once", readers), owner, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*floodFor)
		defer cancel()
		var wg sync.WaitGroup
		for range readers {
			wg.Go(func() {
				for ctx.Err() == nil {
					w.kube.drain(ctx, wasteMaps)
				}
			})
		}
		wg.Wait()
	})
	w.planeBound(t, fmt.Sprintf("%d who read all of a full datastore", readers))
}

// watches opens thousands of them, and then changes what they watch.
func (w *waste) watches(t *testing.T) {
	const many, changes = 3000, 30
	var open, told, refused atomic.Int64
	var words atomic.Value
	w.by.during(t, fmt.Sprintf("%d watches and %d changes", many, changes), owner, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		client := *w.kube.client
		client.Timeout = 0
		var wg, begun sync.WaitGroup
		for range many {
			begun.Add(1)
			wg.Go(func() {
				once := sync.OnceFunc(begun.Done)
				defer once()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.kube.url+wasteMaps+"?watch=1&resourceVersion=0&labelSelector=waste%3Dwatched", nil)
				if err != nil {
					return
				}
				resp, err := client.Do(req)
				if err != nil {
					refused.Add(1)
					words.Store(err.Error())
					return
				}
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					refused.Add(1)
					words.Store(resp.Status)
					return
				}
				open.Add(1)
				once()
				lines := bufio.NewScanner(resp.Body)
				lines.Buffer(nil, 1<<20)
				for lines.Scan() {
					told.Add(1)
				}
			})
		}
		begun.Wait()
		for i := range changes {
			name := wasteMaps + "/watched"
			if i == 0 {
				w.kube.post(ctx, wasteMaps, `{"metadata":{"name":"watched","labels":{"waste":"watched"}}}`)
			}
			w.kube.patch(ctx, "merge", name, fmt.Sprintf(`{"data":{"a":"%d %s"}}`, i, strings.Repeat("x", 1000)))
		}
		cancel()
		wg.Wait()
	})
	w.record(t, attempt{What: fmt.Sprintf("open %d watches", many), From: owner, Want: "each is served by A's own plane or refused",
		Got: fmt.Sprintf("%d were served and told %d changes, %d refused: %v", open.Load(), told.Load(), refused.Load(), words.Load()), Blocked: open.Load() > 0 && open.Load()+refused.Load() == many})
	w.planeBound(t, "watches")
}

// datastore fills what A's workspace may have of the platform's etcd.
func (w *waste) datastore(t *testing.T) {
	var taken atomic.Int64
	var refused atomic.Pointer[reply]
	data := strings.Repeat("x", 1_000_000)
	w.by.during(t, "fill of the datastore", owner, func() {
		w.each(1000, func(i int) {
			if refused.Load() != nil {
				return
			}
			r := w.patient(t.Context(), func(ctx context.Context) reply {
				return w.kube.post(ctx, wasteMaps, fmt.Sprintf(`{"metadata":{"name":"fill-%d","labels":{"waste":"fill"}},"data":{"a":"%s"}}`, i, data))
			})
			if r.code/100 == 2 || r.code == http.StatusConflict { // taken at the first try, whose answer was lost
				taken.Add(1)
			} else {
				refused.CompareAndSwap(nil, &r)
			}
		})
	})
	got := "never refused"
	if r := refused.Load(); r != nil {
		got = r.String()
	}
	w.refusal(t, fmt.Sprintf("fill the platform's etcd; %d MB were taken", taken.Load()), owner, "403: the workspace's datastore is full", got, "datastore is full")
	w.largest(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // some hundred large ones: more than one request's time, perhaps
	defer cancel()
	r := decided(ctx, func() reply {
		return w.kube.do(ctx, http.MethodDelete, wasteMaps+"?labelSelector=waste%3Dfill", "", "")
	})
	w.control(t, "A can delete what fills its datastore", r.good())
}
