package workspace

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// namespaceAPI is what of the Kubernetes API namespaces need.
func namespaceAPI(names map[string]bool) http.Handler {
	answer := func(w http.ResponseWriter, status int, reason metav1.StatusReason, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if reason != "" {
			v = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(status)}
		}
		_ = json.NewEncoder(w).Encode(v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/namespaces", func(w http.ResponseWriter, r *http.Request) {
		var ns metav1.PartialObjectMetadata
		if err := json.NewDecoder(r.Body).Decode(&ns); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if names[ns.Name] {
			answer(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, nil)
			return
		}
		names[ns.Name] = true
		answer(w, http.StatusCreated, "", ns)
	})
	mux.HandleFunc("DELETE /api/v1/namespaces/{name}", func(w http.ResponseWriter, r *http.Request) {
		if !names[r.PathValue("name")] {
			answer(w, http.StatusNotFound, metav1.StatusReasonNotFound, nil)
			return
		}
		delete(names, r.PathValue("name"))
		answer(w, http.StatusOK, "", metav1.Status{Status: "Success"})
	})
	mux.HandleFunc("PATCH /api/v1/namespaces/{name}", func(w http.ResponseWriter, r *http.Request) {
		names[r.PathValue("name")+" opened"] = true
		answer(w, http.StatusOK, "", map[string]any{"kind": "Namespace", "apiVersion": "v1"})
	})
	mux.HandleFunc("DELETE /apis/rbac.authorization.k8s.io/v1/namespaces/{name}/rolebindings/{binding}", func(w http.ResponseWriter, r *http.Request) {
		key := r.PathValue("name") + " " + r.PathValue("binding")
		if !names[key] {
			answer(w, http.StatusNotFound, metav1.StatusReasonNotFound, nil)
			return
		}
		delete(names, key)
		answer(w, http.StatusOK, "", metav1.Status{Status: "Success"})
	})
	mux.HandleFunc("PATCH /apis/rbac.authorization.k8s.io/v1/namespaces/{name}/rolebindings/{binding}", func(w http.ResponseWriter, r *http.Request) {
		names[r.PathValue("name")+" "+r.PathValue("binding")] = true
		answer(w, http.StatusOK, "", map[string]any{"kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1"})
	})
	return mux
}

// TestNamespaceErrors: what the API waits for is what is returned.
func TestNamespaceErrors(t *testing.T) {
	names := map[string]bool{"default": true, "kube-system": true}
	kube := httptest.NewServer(namespaceAPI(names))
	defer kube.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: kube.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	st := storetest.New(t)
	w := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	w.Status.ID = "00002a"
	if err := store.Of[resource.Workspace](st).Create(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	workspaces := store.Of[resource.Workspace](st).Cache(nil)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	defer func() { stop(); <-ended }()
	complete := make(chan struct{})
	go func() { defer close(ended); _ = workspaces.Run(ctx, func() { close(complete) }) }()
	select {
	case <-complete:
	case <-time.After(30 * time.Second):
		t.Fatal("the cache does not fill")
	}
	c := &Controller{cfg: Config{Store: st, Workspaces: workspaces}, runs: map[string]*run{
		"00002a": {id: "00002a", key: w.Key(), live: live{serving: true, client: client}},
	}}
	const key, away = "acme/web/shop", "acme/web/none"
	for _, step := range []struct {
		do        func(ctx context.Context, key, name string) error
		key, name string
		want      error
	}{
		{c.CreateNamespace, key, "mine", nil},
		{c.CreateNamespace, key, "mine", store.ErrExists},
		{c.CreateNamespace, key, "default", store.ErrExists},
		{c.CreateNamespace, key, "kube-mine", resource.ErrSystemNamespace},
		{c.CreateNamespace, away, "mine", resource.ErrNotReady},
		{c.DeleteNamespace, key, "kube-system", resource.ErrSystemNamespace},
		{c.DeleteNamespace, key, "default", resource.ErrSystemNamespace},
		{c.DeleteNamespace, key, "mine", nil},
		{c.DeleteNamespace, key, "mine", store.ErrNotFound},
		{c.DeleteNamespace, away, "mine", resource.ErrNotReady},
	} {
		if err := step.do(t.Context(), step.key, step.name); !errors.Is(err, step.want) || (err == nil) != (step.want == nil) {
			t.Errorf("namespace %s of %s: got %v, want %v", step.name, step.key, err, step.want)
		}
	}
	if !names["mine multipaas:developer"] || !names["mine opened"] || !names["default"] || !names["kube-system"] {
		t.Errorf("left: %v", names)
	}
	if _, err := c.Access(t.Context(), w); !errors.Is(err, resource.ErrNotReady) {
		t.Errorf("access without keys: got %v, want %v", err, resource.ErrNotReady)
	}
	if _, err := c.DialPlane(t.Context(), "00002b.mp.example"); !errors.Is(err, resource.ErrUnknownPlane) || !strings.Contains(err.Error(), "00002b") {
		t.Errorf("got %v, want %v", err, resource.ErrUnknownPlane)
	}
}

// TestBindDevelopers: developers are let into namespaces that say so, and into
// default; what an older platform gave them elsewhere is taken away.
func TestBindDevelopers(t *testing.T) {
	names := map[string]bool{"default multipaas:org-developer": true, "argocd multipaas:org-developer": true, "shut multipaas:developer": true, "kube-system multipaas:org-developer": true}
	kube := httptest.NewServer(namespaceAPI(names))
	defer kube.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: kube.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, label string
		open        bool
	}{{"default", "", true}, {"argocd", "", false}, {"shut", "false", false}, {"mine", "true", true}, {"kube-system", "true", false}, {"odd", "yes", false}} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.name}}
		if c.label != "" {
			ns.Labels = map[string]string{developersLabel: c.label}
		}
		if got := slimNamespace(ns).open; got != c.open {
			t.Errorf("%s with %q: open is %v, want %v", c.name, c.label, got, c.open)
		}
		bind := unbindDevelopers
		if c.open {
			bind = bindDevelopers
		}
		if err := bind(t.Context(), client, c.name); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if want := map[string]bool{"default multipaas:developer": true, "mine multipaas:developer": true}; !maps.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
	if openToDevelopers(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: map[string]string{developersLabel: "false"}}}) {
		t.Error("default can't be shut")
	}
}
