package attack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

const (
	// moreServer is what the server's own process may take more than before, whatever
	// one tenant writes into his cluster, and moreAgent what an agent may.
	moreServer, moreAgent = 150 << 20, 50 << 20
	// moreGoroutines and moreFiles are for requests that are under way.
	moreGoroutines, moreFiles = 1000, 300
	// And when they are over: keptServer and keptAgent of memory in use, after its garbage
	// was collected; keptGoroutines and keptFiles are for connections that clients keep, idle.
	keptServer, keptAgent     = 64 << 20, 32 << 20
	keptGoroutines, keptFiles = 2000, 1000
	// fatObject is the most that annotations may have, and large what etcd takes.
	fatObject, large = 250_000, 1_000_000
	// readers ask at once.
	readers = 40
)

// footprint is what a process of the platform's takes: bytes, and numbers. Of its
// memory, all that the kernel gave it, or what it has in use.
type footprint struct{ memory, inUse, goroutines, files int }

// footprints are those of the server and of all agents, by host; inUse only if it is
// asked for: they collect their garbage before they answer.
func (s *suite) footprints(ctx context.Context, inUse bool) (map[string]footprint, error) {
	all := map[string]footprint{}
	for _, h := range s.Lab.Hosts() {
		f, err := footprintOf(ctx, h.Root("run", "multipaas", "status.sock"), func(pid int) string { return h.Root("proc", strconv.Itoa(pid), "status") }, inUse)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name(), err)
		}
		all[h.Name()] = f
	}
	return all, nil
}

func footprintOf(ctx context.Context, socket string, process func(pid int) string, inUse bool) (f footprint, err error) {
	st, err := status.Fetch(ctx, socket)
	if err != nil {
		return f, err
	}
	f.memory = residentOf(process(st.PID))
	if inUse {
		var answer struct{ Gauges map[string]int }
		if err := status.Ask(ctx, socket, http.MethodGet, "/inventory", nil, &answer); err != nil {
			return f, err
		}
		for name, n := range answer.Gauges {
			if strings.HasPrefix(name, "live heap bytes of ") {
				f.inUse = n
			}
		}
		if f.inUse == 0 {
			return f, fmt.Errorf("it does not say what memory it uses: %v", answer.Gauges)
		}
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://multipaas/metrics", nil)
	if err != nil {
		return f, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return f, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "go_goroutines":
			f.goroutines = int(n)
		case "process_open_fds":
			f.files = int(n)
		}
	}
	if err == nil && (f.memory == 0 || f.goroutines == 0 || f.files == 0) {
		err = fmt.Errorf("it says %+v", f)
	}
	return f, err
}

// bound is what one may take more than before.
type bound struct {
	what     string
	unit     int
	was, now int
	more     int
}

func (b bound) broken() bool { return b.now > b.was+b.more }

// bounds are those while an attack is under way, or when it is over.
func (s *suite) bounds(host string, was, now footprint, over bool) []bound {
	server, agent, goroutines, files := moreServer, moreAgent, moreGoroutines, moreFiles
	memory := bound{what: "MiB of memory", was: was.memory, now: now.memory}
	if over {
		server, agent, goroutines, files = keptServer, keptAgent, keptGoroutines, keptFiles
		memory = bound{what: "MiB of memory in use", was: was.inUse, now: now.inUse}
	}
	memory.unit, memory.more = 1<<20, agent
	if host == s.Server.Name() {
		memory.more = server
	}
	return []bound{
		memory,
		{"goroutines", 1, was.goroutines, now.goroutines, goroutines},
		{"open files", 1, was.files, now.files, files},
	}
}

func (w *waste) recordBounds(t *testing.T, format, from, host string, all []bound) {
	t.Helper()
	for _, b := range all {
		w.record(t, attempt{What: fmt.Sprintf(format, b.what, host), From: from, Want: fmt.Sprintf("at most %d more", b.more/b.unit),
			Got: fmt.Sprintf("%d, %d before", b.now/b.unit, b.was/b.unit), Blocked: !b.broken()})
	}
}

// settled records what the server and the agents still take when an attack is over: they
// have a while for it, since much of what was asked goes on behind it.
func (w *waste) settled(t *testing.T, before map[string]footprint, after string) {
	t.Helper()
	var now map[string]footprint
	err := wait.Until(t.Context(), 20*time.Second, "the server and the agents have what they had", func(ctx context.Context) (err error) {
		if now, err = w.footprints(ctx, true); err != nil {
			return err
		}
		for host, f := range now {
			for _, b := range w.bounds(host, before[host], f, true) {
				if b.broken() {
					return fmt.Errorf("%s: %+v", host, b)
				}
			}
		}
		return nil
	})
	if now == nil {
		w.control(t, "the server and the agents say what they take after "+after, err)
		return
	}
	for _, host := range slices.Sorted(maps.Keys(before)) {
		w.recordBounds(t, "keep %s of %s's own process after "+after, owner, host, w.bounds(host, before[host], now[host], true))
	}
}

// within attacks, and records what the server and the agents took meanwhile more than
// before.
func (w *waste) within(t *testing.T, before map[string]footprint, what string, attack func()) {
	t.Helper()
	most := map[string]footprint{}
	var failed error
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			now, err := w.footprints(t.Context(), false)
			failed = errors.Join(failed, err)
			for host, f := range now {
				m := most[host]
				most[host] = footprint{max(m.memory, f.memory), 0, max(m.goroutines, f.goroutines), max(m.files, f.files)}
			}
			select {
			case <-end:
				return
			case <-time.After(200 * time.Millisecond): // between two looks
			}
		}
	}()
	w.by.during(t, what, owner, attack)
	close(end)
	<-ended
	if !w.control(t, "the server and the agents say what they take: "+what, failed) {
		return
	}
	for _, host := range slices.Sorted(maps.Keys(most)) {
		t.Logf("%s: %s took %+v, before %+v", what, host, most[host], before[host])
		w.recordBounds(t, "take %s of %s's own process: "+what, owner, host, w.bounds(host, before[host], most[host], false))
	}
}

// server fills A's cluster with what the platform follows there - nodes, namespaces,
// endpoints of a routed app, what looks like an app's - as many and as fat as can be,
// and asks the platform and the plane for it, whose datastore is the platform's. What
// the server's own process takes is everybody's.
//
// All of it together is a third of what A's datastore may have, history and what
// controllers write about it too: the parts behind this one need room.
func (w *waste) server(t *testing.T) {
	w.Must(t, dctest.Rival, "apps", "deploy", "crowd", "--image", "tool:1", "--port", "8080", "--timeout", "5m")
	a := &asker{s: w.suite, client: w.Client(), tokens: map[string]string{}}
	a.client.Timeout = 2 * time.Minute
	a.tokens[ownerA] = a.login(t, ownerA, a.word(t, "password"))
	before, err := w.footprints(t.Context(), true)
	if !w.control(t, "what the server and the agents take is known", err) {
		return
	}
	write := func(n int, path string, body func(i int) string) {
		t.Helper()
		var mu sync.Mutex
		var err error
		w.each(n, func(i int) {
			r := w.patient(t.Context(), func(ctx context.Context) reply { return w.kube.post(ctx, path, body(i)) })
			mu.Lock()
			defer mu.Unlock()
			if r.code/100 != 2 && r.code != http.StatusConflict && err == nil {
				err = errors.New(r.String())
			}
		})
		w.control(t, fmt.Sprintf("A writes %d objects to %s", n, path), err)
	}
	// ask has all ask at once, some times, and says which answers there were.
	ask := func(what string, do func(i int) int) {
		t.Helper()
		var wg sync.WaitGroup
		var mu sync.Mutex
		codes := map[int]int{}
		for i := range readers {
			wg.Go(func() {
				for range 2 {
					code := do(i)
					mu.Lock()
					codes[code]++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		var err error
		if codes[http.StatusOK] == 0 {
			err = fmt.Errorf("answers: %v", codes)
		}
		w.control(t, what, err)
	}
	const inBox = "/v1/accounts/beta/organizations/ops/workspaces/box/"
	pad, object := strings.Repeat("x", fatObject), strings.Repeat("x", large)
	fat := func(i int) string {
		return fmt.Sprintf(`{"metadata":{"name":"fat-%d","labels":{"waste":"fat"},"annotations":{"x":"%s"}}}`, i, pad)
	}
	w.within(t, before, "fat nodes and namespaces, and 40 who ask for them at once", func() {
		write(10, "/api/v1/nodes", fat)
		write(2, "/api/v1/namespaces", fat)
		ask("the platform answers A's questions about its cluster", func(i int) int {
			return a.ask(t, ownerA, http.MethodGet, inBox+[]string{"nodes", "namespaces"}[i%2], "").status
		})
	})
	w.within(t, before, "fat slices of a routed app", func() {
		write(12, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", func(i int) string {
			var all []string
			for e := range 1000 {
				address := fmt.Sprintf("10.42.%d.%d", (i*4+e/250)%256, e%250+1)
				all = append(all, `{"addresses":["`+address+`"],"nodeName":"`+strings.Repeat("n", 60)+`","zone":"`+strings.Repeat("z", 60)+`"}`)
			}
			return fmt.Sprintf(`{"metadata":{"name":"fat-%d","labels":{"waste":"fat","kubernetes.io/service-name":"crowd"}},"addressType":"IPv4","ports":[],"endpoints":[%s]}`,
				i, strings.Join(all, ","))
		})
	})
	w.within(t, before, "large Deployments that look like apps, and 40 who ask the datastore for them at once", func() {
		const path = "/apis/apps/v1/namespaces/default/deployments"
		write(5, path, func(i int) string {
			return fmt.Sprintf(`{"metadata":{"name":"fat-%d","labels":{"waste":"fat","app.kubernetes.io/managed-by":"multipaas","app.kubernetes.io/name":"fat-%[1]d"}},
				"spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"app","image":"x","env":[{"name":"A","value":"%s"}]}]}}}}`, i, object)
		})
		var list struct {
			Metadata struct{ ResourceVersion string }
		}
		err := w.kube.read(t.Context(), path+"?limit=1", &list)
		w.control(t, "A knows a revision", err)
		// No cache has what was there at a certain revision and matches a field.
		ask("A's plane lists what was there", func(int) int {
			code, _ := w.kube.drain(t.Context(), path+"?limit=20&fieldSelector=metadata.namespace%3Ddefault&resourceVersionMatch=Exact&resourceVersion="+list.Metadata.ResourceVersion)
			return code
		})
	})
	for _, path := range []string{"/api/v1/nodes", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", "/apis/apps/v1/namespaces/default/deployments"} {
		w.patient(t.Context(), func(ctx context.Context) reply {
			return w.kube.do(ctx, http.MethodDelete, path+"?labelSelector=waste%3Dfat", "", "")
		})
	}
	w.each(2, func(i int) {
		w.patient(t.Context(), func(ctx context.Context) reply {
			return w.kube.do(ctx, http.MethodDelete, fmt.Sprintf("/api/v1/namespaces/fat-%d", i), "", "")
		})
	})
	w.within(t, before, "one object of 1 MB written again and again", func() {
		w.kube.must(t, wasteMaps, `{"metadata":{"name":"churn"}}`)
		w.each(4, func(i int) {
			w.patient(t.Context(), func(ctx context.Context) reply {
				return w.kube.patch(ctx, "merge", wasteMaps+"/churn", fmt.Sprintf(`{"data":{"a":"%d %s"}}`, i, object))
			})
		})
		w.kube.do(t.Context(), http.MethodDelete, wasteMaps+"/churn", "", "")
	})
	w.Must(t, dctest.Rival, "apps", "delete", "crowd", "--yes", "--timeout", "5m")
}
