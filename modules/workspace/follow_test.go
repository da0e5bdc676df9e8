package workspace

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/wait"
)

// crowd is a cluster whose owner wrote very many objects. It answers lists by pages;
// its watches tell nothing.
type crowd struct {
	nodes, namespaces, pods int
	lists, evicted          atomic.Int32
}

func (k *crowd) handler() http.Handler {
	mux := http.NewServeMux()
	serve := func(path, kind string, n int, one func(i int) any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			if q.Has("watch") {
				w.WriteHeader(http.StatusOK)
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			k.lists.Add(1)
			from, _ := strconv.Atoi(q.Get("continue"))
			limit, _ := strconv.Atoi(q.Get("limit"))
			meta, items := map[string]any{"resourceVersion": "1"}, []any{}
			for i := from; i < min(n, from+limit); i++ {
				items = append(items, one(i))
			}
			if from+limit < n {
				meta["continue"] = strconv.Itoa(from + limit)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"kind": kind + "List", "apiVersion": "v1", "metadata": meta, "items": items})
		})
	}
	serve("/api/v1/nodes", "Node", k.nodes, func(i int) any {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("fat-%05d", i)}}
		if i == k.nodes-1 {
			n.Name = "shop-1"
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		}
		return n
	})
	serve("/api/v1/namespaces", "Namespace", k.namespaces, func(i int) any {
		return corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns-%05d", i)}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}}
	})
	serve("/api/v1/pods", "Pod", k.pods, func(i int) any {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%05d", i), Namespace: "default"}}
	})
	mux.HandleFunc("PATCH /api/v1/nodes/{name}", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(corev1.Node{}) })
	mux.HandleFunc("POST /api/v1/namespaces/default/pods/{name}/eviction", func(w http.ResponseWriter, _ *http.Request) {
		k.evicted.Add(1)
		_ = json.NewEncoder(w).Encode(metav1.Status{Status: metav1.StatusSuccess})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		mux.ServeHTTP(w, r)
	})
}

// TestCrowdedCluster: of a cluster with very many nodes and namespaces, some are
// followed, its machine's among them; those who ask for them ask the cluster nothing;
// the tenant is told; and a machine's pods are driven out some at a time.
func TestCrowdedCluster(t *testing.T) {
	t.Parallel()
	const key = "acme/web/shop"
	k := &crowd{nodes: maxNodes + 500, namespaces: maxNamespaces + 500, pods: 2000}
	kube := httptest.NewServer(k.handler())
	defer kube.Close()
	st := storetest.New(t)
	w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	w.Status.ID = "00002a"
	m := &resource.Machine{InWorkspace: resource.NewInWorkspace(key, "shop-1")}
	if err := errors.Join(store.Of[resource.Workspace](st).Create(t.Context(), w), store.Of[resource.Machine](st).Create(t.Context(), m)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer kube.CloseClientConnections()
	defer stop()
	workspaces, machines := store.Of[resource.Workspace](st).Cache(nil), store.Of[resource.Machine](st).Cache(nil)
	for _, run := range []func(context.Context, func()) error{workspaces.Run, machines.Run} {
		ready := make(chan struct{})
		wg.Go(func() { _ = run(ctx, func() { close(ready) }) })
		<-ready
	}
	c := &Controller{cfg: Config{Store: st, Workspaces: workspaces, Machines: machines, Log: slog.New(slog.DiscardHandler)}}
	c.loop = reconcile.New(reconcile.Config[string]{Name: "workspace", Log: c.cfg.Log, Reconcile: func(context.Context, string) (time.Duration, error) { return 0, nil }})
	client, err := kubernetes.NewForConfig(c.bounds.Config(&rest.Config{Host: kube.URL, QPS: -1}, "acme"))
	if err != nil {
		t.Fatal(err)
	}
	r := &run{id: "00002a", key: key, live: live{serving: true, client: client}}
	c.runs = map[string]*run{r.id: r}
	if _, err := c.ClusterNodes(ctx, key); !errors.Is(err, resource.ErrNotReady) {
		t.Errorf("before anything is followed: %v, want %v", err, resource.ErrNotReady)
	}
	c.followCluster(ctx, r, client)
	defer c.wg.Wait()
	defer kube.CloseClientConnections()
	defer stop()
	wait.True(t, wait.Patience, "the cluster is followed", func() bool { return r.now().followed() })

	asked := k.lists.Load()
	for range 40 {
		nodes, err := c.ClusterNodes(ctx, key)
		if err != nil || len(nodes) != maxNodes+1 || nodes[len(nodes)-1].Name != "shop-1" || !nodes[len(nodes)-1].Ready {
			t.Fatalf("%d nodes, %v; want %d and the machine's", len(nodes), err, maxNodes)
		}
		namespaces, err := c.Namespaces(ctx, key)
		if err != nil || len(namespaces) != maxNamespaces || namespaces[0] != (resource.Namespace{Name: "ns-00000", Phase: "Active"}) {
			t.Fatalf("%d namespaces, %v; want %d", len(namespaces), err, maxNamespaces)
		}
	}
	if n := k.lists.Load(); n != asked {
		t.Errorf("the cluster was asked %d times", n-asked)
	}
	if ok, why := r.node(ctx, m, ""); !ok {
		t.Errorf("the machine's node is not ready: %s", why)
	}
	if got := r.now().tooMany(); !strings.Contains(got, fmt.Sprintf("more than %d namespaces", maxNamespaces)) {
		t.Errorf("the tenant is told %q", got)
	}

	asked = k.lists.Load()
	left, err := c.drain(ctx, r, m, false)
	if err != nil || left != fmt.Sprintf("%d pods and more are leaving", maxDrained) || k.evicted.Load() != maxDrained || k.lists.Load() != asked+1 {
		t.Errorf("got %q, %v, %d evicted by %d lists; want %d by one", left, err, k.evicted.Load(), k.lists.Load()-asked, maxDrained)
	}
}

// TestSlimNode: what a tenant writes into a Node's status is kept cut.
func TestSlimNode(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "shop-1", Annotations: map[string]string{"a": long}}}
	n.Spec.PodCIDR = "10.42.1.0/24"
	n.Status.NodeInfo.KubeletVersion = long
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "shop-1"}, {Type: corev1.NodeInternalIP, Address: long}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: "Other", Message: long}, {Type: corev1.NodeReady, Status: corev1.ConditionFalse, Message: "not yet " + long}}
	got := slimNode(n)
	if got.name != "shop-1" || got.podCIDR != "10.42.1.0/24" || got.ready || !strings.HasPrefix(got.why, "not yet ") {
		t.Errorf("got %+v", got)
	}
	if all := fmt.Sprint(got); len(all) > 2*maxMessage {
		t.Errorf("%d characters are kept", len(all))
	}
	ns := slimNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x", DeletionTimestamp: &metav1.Time{}}, Status: corev1.NamespaceStatus{Phase: corev1.NamespacePhase(long)}})
	if len(ns.phase) != maxText || !ns.going {
		t.Errorf("got %d characters, going: %v", len(ns.phase), ns.going)
	}
}
