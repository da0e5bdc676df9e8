package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/testing/wait"
)

// api speaks the part of the Kubernetes API that a Mirror of nodes uses, over HTTP
// to the real client: lists by pages and watches from any revision.
type api struct {
	url     string
	bounds  Bounds
	account string

	mu       sync.Mutex
	nodes    map[string]*corev1.Node
	history  []metav1.WatchEvent // one for each revision
	changed  chan struct{}
	largest  int // bytes of an answer that were read
	pages    int
	watches  int
	holds    chan struct{} // lists wait for it to be closed, once their header is sent
	underWay int
}

func newAPI(t *testing.T) *api {
	t.Helper()
	k := &api{account: "acme", nodes: map[string]*corev1.Node{}, changed: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes", k.serve)
	server := httptest.NewServer(mux)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	k.url = server.URL
	return k
}

func (k *api) source(t *testing.T) Source {
	t.Helper()
	cfg := &rest.Config{Host: k.url, QPS: -1}
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return tripper(func(r *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(r)
			if err == nil && !r.URL.Query().Has("watch") {
				resp.Body = &counted{ReadCloser: resp.Body, api: k}
			}
			return resp, err
		})
	})
	client, err := kubernetes.NewForConfig(k.bounds.Config(cfg, k.account))
	if err != nil {
		t.Fatal(err)
	}
	return Of(client.CoreV1().Nodes())
}

type tripper func(*http.Request) (*http.Response, error)

func (t tripper) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

// counted tells how much of an answer was read.
type counted struct {
	io.ReadCloser
	*api
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += n
	c.mu.Lock()
	defer c.mu.Unlock()
	c.largest = max(c.largest, c.n)
	return n, err
}

func (k *api) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	q := r.URL.Query()
	if q.Has("watch") {
		k.watch(w, r)
		return
	}
	limit, _ := strconv.Atoi(q.Get("limit"))
	k.mu.Lock()
	names := slices.Sorted(maps.Keys(k.nodes))
	if after := q.Get("continue"); after != "" {
		names = slices.DeleteFunc(names, func(name string) bool { return name <= after })
	}
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}}
	list.ResourceVersion = strconv.Itoa(len(k.history))
	for i, name := range names {
		if i == limit && limit > 0 {
			list.Continue = names[i-1]
			break
		}
		list.Items = append(list.Items, *k.nodes[name])
	}
	k.pages++
	holds := k.holds
	k.mu.Unlock()
	data, _ := json.Marshal(list)
	if holds != nil {
		_, _ = w.Write(data[:2*heavy])
		data = data[2*heavy:]
		w.(http.Flusher).Flush()
		k.add(1)
		defer k.add(-1)
		select {
		case <-holds:
		case <-r.Context().Done():
			return
		}
	}
	_, _ = w.Write(data)
}

func (k *api) add(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.underWay += n
}

func (k *api) watch(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	w.(http.Flusher).Flush()
	k.mu.Lock()
	k.watches++
	k.mu.Unlock()
	for {
		k.mu.Lock()
		events, changed := slices.Clone(k.history[from:]), k.changed
		k.mu.Unlock()
		for _, e := range events {
			if json.NewEncoder(w).Encode(e) != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
		from += len(events)
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// put writes a node with so many bytes that nobody needs.
func (k *api) put(name string, pad int) {
	k.tell("MODIFIED", name, &corev1.Node{
		TypeMeta:   metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"x": strings.Repeat("x", pad)}},
	})
}

func (k *api) remove(name string) {
	k.mu.Lock()
	n := k.nodes[name].DeepCopy()
	k.mu.Unlock()
	k.tell("DELETED", name, n)
}

func (k *api) tell(kind, name string, n *corev1.Node) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n.ResourceVersion = strconv.Itoa(len(k.history) + 1)
	if k.nodes[name] = n; kind == "DELETED" {
		delete(k.nodes, name)
	}
	raw, err := json.Marshal(n)
	if err != nil {
		panic(err)
	}
	e := metav1.WatchEvent{Type: kind}
	e.Object.Raw = raw
	k.history = append(k.history, e)
	close(k.changed)
	k.changed = make(chan struct{})
}

// count reads one of the counters.
func (k *api) count(of *int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return *of
}

type slimmed struct{ name, revision string }

func slim(o runtime.Object) *slimmed {
	n := o.(*corev1.Node)
	return &slimmed{n.Name, n.ResourceVersion}
}

// follow runs a mirror of at most so many nodes.
func follow(t *testing.T, k *api, most int) *Mirror[slimmed] {
	t.Helper()
	s := k.source(t)
	m := New(Config[slimmed]{Open: func(context.Context) (Source, error) { return s, nil }, Slim: slim, Max: most,
		Size: func(s *slimmed) int {
			if strings.HasPrefix(s.name, "ours") {
				return 0
			}
			return 1
		}})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	select {
	case <-m.Synced():
	case <-time.After(wait.Patience):
		t.Fatal("nothing is listed")
	}
	return m
}

// TestFatLists: a list of large objects is read whole, page by page, and no page is
// larger than one may be.
func TestFatLists(t *testing.T) {
	t.Parallel()
	k := newAPI(t)
	for i := range 8 {
		k.put(fmt.Sprintf("fat-%02d", i), 1_500_000)
	}
	m := follow(t, k, 1000)
	if n := len(m.All()); n != 8 || !m.Whole() {
		t.Errorf("%d of 8 are kept, whole: %v", n, m.Whole())
	}
	if k.largest > maxPage+1 {
		t.Errorf("%d bytes of one page were read", k.largest)
	}
	if n := k.bounds.all; n != 0 {
		t.Errorf("%d heavy answers are under way", n)
	}
}

// TestHugeLists: of a list that is larger than anything of ours it reads a part, and
// says so.
func TestHugeLists(t *testing.T) {
	t.Parallel()
	k := newAPI(t)
	for i := range 12 {
		k.put(fmt.Sprintf("fat-%03d", i), 1_500_000)
	}
	seen := 0
	_, all, err := each(t.Context(), k.source(t), metav1.ListOptions{}, new(int64(2)), 2*maxPage, func(runtime.Object) bool { seen++; return true })
	if seen == 0 || seen > 8 || all || err != nil {
		t.Errorf("%d of 12 were seen, all: %v, %v", seen, all, err)
	}
}

// TestRoom: no more is kept than there is room for, by lists and by watches; what
// takes none is always kept; what has gone makes room.
func TestRoom(t *testing.T) {
	t.Parallel()
	k := newAPI(t)
	for i := range 1200 { // more than a page
		k.put(fmt.Sprintf("n-%04d", i), 0)
	}
	k.put("ours-1", 0)
	m := follow(t, k, 1100)
	if n := len(m.All()); n != 1101 || m.Whole() || m.Get("", "ours-1") == nil {
		t.Errorf("%d are kept, whole: %v, ours: %v", n, m.Whole(), m.Get("", "ours-1"))
	}
	k.put("ours-2", 0)
	k.put("n-9999", 0)
	k.remove("n-0000")
	k.put("n-0001", 0)
	last := strconv.Itoa(len(k.history))
	wait.For(t, wait.Patience, "the last change is seen", func(context.Context) error {
		if n := m.Get("", "n-0001"); n == nil || n.revision != last {
			return fmt.Errorf("it is %v, want revision %s", n, last)
		}
		return nil
	})
	if m.Get("", "ours-2") == nil || m.Get("", "n-9999") != nil || m.Get("", "n-0000") != nil || len(m.All()) != 1101 || m.size != 1099 {
		t.Errorf("%d are kept, of size %d", len(m.All()), m.size)
	}
}

// TestFatEvents: the watch is begun anew after each, where it was, and misses nothing.
func TestFatEvents(t *testing.T) {
	t.Parallel()
	k := newAPI(t)
	m := follow(t, k, 10)
	for i := range 4 {
		k.put(fmt.Sprintf("fat-%d", i), 1_000_000)
		k.put(fmt.Sprintf("thin-%d", i), 0)
	}
	wait.True(t, wait.Patience, "all events are seen", func() bool { return len(m.All()) == 8 })
	if n, pages := k.count(&k.watches), k.count(&k.pages); n < 4 || pages != 1 {
		t.Errorf("%d watches and %d lists, want one watch for each large event, and one list", n, pages)
	}
}

// TestHeavyAnswers: an account has two large answers under way, however many
// clusters it has and however many ask; another account's go on.
func TestHeavyAnswers(t *testing.T) {
	t.Parallel()
	k := newAPI(t)
	k.put("fat", 3_000_000)
	hold := make(chan struct{})
	k.holds = hold
	var wg sync.WaitGroup
	sources := map[string]Source{"acme": k.source(t)}
	k.account = "beta"
	sources["beta"] = k.source(t)
	failed := make(chan error, 7)
	ask := func(account string) {
		wg.Go(func() {
			_, err := Each(t.Context(), sources[account], metav1.ListOptions{}, func(runtime.Object) bool { return true })
			failed <- err
		})
	}
	for range 6 {
		ask("acme")
	}
	entered := func(account string, n int) {
		t.Helper()
		wait.True(t, wait.Patience, fmt.Sprintf("%d large answers to %s are under way", n, account), func() bool {
			k.bounds.mu.Lock()
			defer k.bounds.mu.Unlock()
			return k.bounds.by[account] == n
		})
	}
	wait.True(t, wait.Patience, "all have asked", func() bool { return k.count(&k.underWay) == 6 })
	entered("acme", heavyEach)
	ask("beta")
	entered("beta", 1)
	close(hold)
	wg.Wait()
	for range 7 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if len(k.bounds.by) != 0 || k.bounds.all != 0 {
		t.Errorf("under way at the end: %v, %d", k.bounds.by, k.bounds.all)
	}
}

// TestOneAnswer: no single answer is larger than it may be.
func TestOneAnswer(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for pad := make([]byte, 1<<20); ; {
			if _, err := w.Write(pad); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	var b Bounds
	client, err := kubernetes.NewForConfig(b.Config(&rest.Config{Host: server.URL}, "acme"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().Get(t.Context(), "x", metav1.GetOptions{}); !errors.Is(err, errTooLarge) {
		t.Errorf("got %v, want %v", err, errTooLarge)
	}
	if b.all != 0 {
		t.Errorf("%d heavy answers are under way", b.all)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"": "", "abc": "abc", "abcd": "abc", "abü": "ab"} {
		if got := Cut(in, 3); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
