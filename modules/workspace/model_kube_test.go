package workspace_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/multipaas/multipaas/modules/resource"
)

// cluster speaks the part of the Kubernetes API that the controller uses, over
// HTTP to the real client. It stands for the data of one plane and outlives it.
type cluster struct {
	mu       sync.Mutex
	nodes    map[string]*corev1.Node
	living   []string // UIDs of the machines that it hears
	revision int
	watches  map[chan metav1.WatchEvent]bool
}

func newCluster() *cluster {
	return &cluster{nodes: map[string]*corev1.Node{}, watches: map[chan metav1.WatchEvent]bool{}, revision: 1}
}

// hears says whether the plane listens to these machines and to no others.
func (k *cluster) hears(machines []*resource.Machine) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	living := slices.Clone(k.living)
	slices.Sort(living)
	var want []string
	for _, m := range machines {
		want = append(want, m.UID)
	}
	slices.Sort(want)
	return slices.Equal(living, want)
}

// serve is the API server while a plane runs.
func (k *cluster) serve() *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, r *http.Request) { k.list(w, r, "Node") })
	mux.HandleFunc("GET /api/v1/namespaces", func(w http.ResponseWriter, r *http.Request) { k.list(w, r, "Namespace") })
	mux.HandleFunc("GET /api/v1/pods", func(w http.ResponseWriter, r *http.Request) {
		reply(w, corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}})
	})
	mux.HandleFunc("GET /api/v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if n := k.nodes[r.PathValue("name")]; n != nil {
			reply(w, n)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	})
	mux.HandleFunc("PATCH /api/v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		k.change(w, r.PathValue("name"), "MODIFIED", func(n *corev1.Node) {
			var patch corev1.Node
			body, _ := io.ReadAll(r.Body)
			_ = json.Unmarshal(body, &patch)
			if patch.Spec.PodCIDR != "" {
				n.Spec.PodCIDR = patch.Spec.PodCIDR
			}
			if n.Labels == nil {
				n.Labels = map[string]string{}
			}
			maps.Copy(n.Labels, patch.Labels)
			n.Spec.Unschedulable = n.Spec.Unschedulable || patch.Spec.Unschedulable
		})
	})
	mux.HandleFunc("DELETE /api/v1/nodes/{name}", func(w http.ResponseWriter, r *http.Request) { k.change(w, r.PathValue("name"), "DELETED", nil) })
	mux.HandleFunc("DELETE /apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Success"}`)
	})
	mux.HandleFunc("PATCH /apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings/{name}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"kind":"RoleBinding","apiVersion":"rbac.authorization.k8s.io/v1","metadata":{"name":%q}}`, r.PathValue("name"))
	})
	mux.HandleFunc("GET /apis/apps/v1/namespaces/kube-system/deployments/coredns", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"kind":"Deployment","apiVersion":"apps/v1","metadata":{"name":"coredns"},"status":{"availableReplicas":1}}`)
	})
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		mux.ServeHTTP(w, r)
	}))
}

func reply(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (k *cluster) list(w http.ResponseWriter, r *http.Request, kind string) {
	if r.URL.Query().Get("sendInitialEvents") != "" { // then the client lists
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
		return
	}
	k.mu.Lock()
	if r.URL.Query().Get("watch") == "" {
		defer k.mu.Unlock()
		meta := metav1.ListMeta{ResourceVersion: strconv.Itoa(k.revision)}
		if kind == "Namespace" {
			ns := corev1.Namespace{}
			ns.Name, ns.UID = "default", "1"
			reply(w, corev1.NamespaceList{TypeMeta: metav1.TypeMeta{Kind: "NamespaceList", APIVersion: "v1"}, ListMeta: meta, Items: []corev1.Namespace{ns}})
			return
		}
		all := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, ListMeta: meta}
		for _, n := range k.nodes {
			all.Items = append(all.Items, *n)
		}
		reply(w, all)
		return
	}
	if at := r.URL.Query().Get("resourceVersion"); kind == "Node" && at != strconv.Itoa(k.revision) {
		k.mu.Unlock()
		fmt.Fprintln(w, `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","code":410,"reason":"Expired"}}`)
		return
	}
	events := make(chan metav1.WatchEvent, 1000)
	if kind == "Node" {
		k.watches[events] = true
	}
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.watches, events)
		k.mu.Unlock()
	}()
	w.(http.Flusher).Flush()
	for {
		select {
		case e := <-events:
			reply(w, e)
			w.(http.Flusher).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

func (k *cluster) change(w http.ResponseWriter, name, verb string, change func(*corev1.Node)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.nodes[name]
	if n == nil {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		return
	}
	n = n.DeepCopy()
	if change != nil {
		change(n)
	}
	k.put(verb, n)
	reply(w, n)
}

// put stores and tells. k.mu is held.
func (k *cluster) put(verb string, n *corev1.Node) {
	k.revision++
	n.ResourceVersion = strconv.Itoa(k.revision)
	n.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
	if verb == "DELETED" {
		delete(k.nodes, n.Name)
	} else {
		k.nodes[n.Name] = n
	}
	raw, _ := json.Marshal(n)
	e := metav1.WatchEvent{Type: verb}
	e.Object.Raw = raw
	for w := range k.watches {
		w <- e
	}
}

// register is what a kubelet does when it starts: the node is there and ready.
func (k *cluster) register(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.nodes[name] != nil {
		return
	}
	n := &corev1.Node{}
	n.Name = name
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	k.put("ADDED", n)
}

// zone is what the node of this name says that it stands in.
func (k *cluster) zone(name string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.nodes[name]; n != nil {
		return n.Labels[corev1.LabelTopologyZone]
	}
	return ""
}

func (k *cluster) names() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(k.nodes)), " ")
}
