package workspace

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/storetest"
)

// grave is a cluster with one node, and pods on it and elsewhere.
type grave struct {
	node      bool
	finalizer bool     // the node stays though it was deleted
	refuses   bool     // a webhook refuses to let pods go
	pods      []string // node/pod
}

func (g *grave) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	status := func(code int, reason metav1.StatusReason) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Reason: reason, Code: int32(code)})
	}
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	switch {
	case strings.HasPrefix(r.URL.Path, "/api/v1/nodes/") && !g.node:
		status(http.StatusNotFound, metav1.StatusReasonNotFound)
	case strings.HasPrefix(r.URL.Path, "/api/v1/nodes/"):
		if r.Method == http.MethodDelete {
			g.node = g.finalizer
		}
		_ = json.NewEncoder(w).Encode(corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}})
	case r.Method == http.MethodGet:
		all := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		for _, p := range g.pods {
			node, name, _ := strings.Cut(p, "/")
			if r.URL.Query().Get("fieldSelector") == "spec.nodeName="+node {
				all.Items = append(all.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "u"}})
			}
		}
		_ = json.NewEncoder(w).Encode(all)
	case g.refuses:
		status(http.StatusForbidden, metav1.StatusReasonForbidden)
	default:
		g.pods = slices.DeleteFunc(g.pods, func(p string) bool { return strings.HasSuffix(p, "/"+name) })
		status(http.StatusOK, "")
	}
}

// TestARetiredMachineLeavesNothing: its record goes once its node and the pods on it
// are gone, so that no other machine of its name becomes it. A cluster that won't let
// them go keeps the name for itself.
func TestARetiredMachineLeavesNothing(t *testing.T) {
	for what, c := range map[string]struct {
		grave grave
		since time.Duration // it shall go
		gone  bool          // the record
		stale bool          // the name is not used again
	}{
		"all goes":                          {grave{node: true, pods: []string{"shop-1/a", "shop-1/b", "shop-2/c"}}, 0, true, false},
		"the node had gone before":          {grave{pods: []string{"shop-1/a"}}, 0, true, false},
		"the node has a finalizer":          {grave{node: true, finalizer: true}, 0, false, false},
		"a webhook keeps pods":              {grave{node: true, refuses: true, pods: []string{"shop-1/a"}}, 0, false, false},
		"the node has a finalizer for good": {grave{node: true, finalizer: true}, overdue, true, true},
		"a webhook keeps pods for good":     {grave{node: true, refuses: true, pods: []string{"shop-1/a"}}, overdue, true, true},
	} {
		t.Run(what, func(t *testing.T) {
			st, ctx := storetest.New(t), t.Context()
			g := &c.grave
			web := httptest.NewServer(g)
			defer web.Close()
			client, err := kubernetes.NewForConfig(&rest.Config{Host: web.URL})
			if err != nil {
				t.Fatal(err)
			}
			w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
			w.Spec.Machines, w.Status.VNI = 1, firstVNI
			m := &resource.Machine{InWorkspace: resource.NewInWorkspace("acme/web/shop", "shop-1")}
			m.Status.Conditions.Set(resource.Condition{Type: resource.MachineRemoved, Status: resource.True})
			m.DeletedAt = new(time.Now().Add(-c.since))
			host := &resource.Node{}
			host.Name = "n1"
			workspaces, machines := store.Of[resource.Workspace](st), store.Of[resource.Machine](st)
			if err := st.Commit(ctx, workspaces.CreateOp(w), machines.CreateOp(m), store.Of[resource.Node](st).CreateOp(host)); err != nil {
				t.Fatal(err)
			}
			controller := &Controller{cfg: Config{Store: st, Log: slog.New(slog.DiscardHandler), Plan: wire.DefaultPlan()}}
			r := &run{live: live{serving: true, client: client}}
			m.DeletedAt = new(time.Now().Add(-c.since))
			again, err := controller.retire(ctx, r, m)
			if err != nil {
				t.Fatal(err)
			}
			_, err = machines.Get(ctx, m.Key())
			if gone := err != nil; gone != c.gone || gone == (again > 0) {
				t.Errorf("the record is gone: %v (%v, again in %v), want %v", gone, err, again, c.gone)
			}
			w, err = workspaces.Get(ctx, w.Key())
			if err != nil || slices.Contains(w.Status.StaleNodes, "shop-1") != c.stale {
				t.Fatalf("names that are not used: %v, %v", w.Status.StaleNodes, err)
			}
			if !c.gone {
				return
			}
			next, err := controller.create(ctx, w, nil, "n1")
			if err != nil || (next.Name == "shop-1") == c.stale {
				t.Fatalf("the next machine is %s, %v", next.Name, err)
			}
			// It is asked again until the cluster lets go.
			*g = grave{node: g.node, pods: g.pods}
			p := &pass{Workspace: w, run: r}
			if err := controller.forgetStale(ctx, p); err != nil {
				t.Fatal(err)
			}
			if left := strings.Join(g.pods, " "); g.node || strings.Contains(left, "shop-1/") {
				t.Errorf("left: node %v, pods %s", g.node, left)
			}
			if w, err = workspaces.Get(ctx, w.Key()); err != nil || len(w.Status.StaleNodes) > 0 {
				t.Errorf("names that are not used: %v, %v", w.Status.StaleNodes, err)
			}
		})
	}
}

func TestOnlyWhoIsNotDrainedLives(t *testing.T) {
	for _, c := range []struct {
		conditions string
		lives      bool
	}{{"", true}, {"Running", true}, {"Drained", false}, {"Removed", false}, {"Running Drained", false}} {
		m := &resource.Machine{}
		for _, t := range strings.Fields(c.conditions) {
			m.Status.Conditions.Set(resource.Condition{Type: t, Status: resource.True})
		}
		if m.Lives() != c.lives {
			t.Errorf("%s: %v", fmt.Sprint(c.conditions), m.Lives())
		}
	}
}
