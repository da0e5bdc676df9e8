package apps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/wait"
)

// standIn is a cluster without anything in it that takes what is applied, or whose
// webhook hangs.
type standIn struct {
	client  kubernetes.Interface
	hangs   bool
	waiting atomic.Int32 // requests that hang now
	most    atomic.Int32 // at once
	items   []any        // what each list says
}

func newStandIn(t *testing.T, hangs bool) *standIn {
	t.Helper()
	s := &standIn{hangs: hangs}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	s.client = client
	return s
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(status int, object any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(object)
	}
	type object = map[string]any
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	last := path[len(path)-1]
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPatch && s.hangs:
		_, _ = io.Copy(io.Discard, r.Body) // or the server doesn't see the client leave
		s.most.Store(max(s.most.Load(), s.waiting.Add(1)))
		<-r.Context().Done()
		s.waiting.Add(-1)
	case r.Method == http.MethodPatch:
		var applied object
		_ = json.NewDecoder(r.Body).Decode(&applied)
		meta := applied["metadata"].(object)
		meta["uid"], meta["resourceVersion"] = r.URL.Path, "1"
		answer(http.StatusOK, applied)
	case q.Get("sendInitialEvents") != "":
		answer(http.StatusUnprocessableEntity, object{"kind": "Status", "apiVersion": "v1", "status": "Failure",
			"reason": "Invalid", "code": http.StatusUnprocessableEntity})
	case q.Get("watch") != "":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case last == "deployments" || last == "services" || last == "pods":
		answer(http.StatusOK, object{"metadata": object{"resourceVersion": "1"}, "items": s.items})
	case last == "default": // the namespace
		answer(http.StatusOK, object{"kind": "Namespace", "apiVersion": "v1", "metadata": object{"name": last}})
	default:
		answer(http.StatusNotFound, object{"kind": "Status", "apiVersion": "v1", "status": "Failure",
			"reason": "NotFound", "code": http.StatusNotFound})
	}
}

// byWorkspace are the clusters of several workspaces.
type byWorkspace map[string]*standIn

func (b byWorkspace) Client(_ context.Context, workspace string) (kubernetes.Interface, error) {
	if b[workspace] == nil {
		return nil, errors.New("there is none")
	}
	return b[workspace].client, nil
}

type anyImage struct{}

func (anyImage) Resolve(context.Context, string, string) (resource.ImageVersion, error) {
	return resource.ImageVersion{Digest: "sha256:" + strings.Repeat("0", 64)}, nil
}

// TestSlowWebhookIsItsOwnersOnly: one tenant has more apps than there are workers,
// and a webhook that never answers. The next tenant's app is deployed all the same,
// and the first hears why his are not.
func TestSlowWebhookIsItsOwnersOnly(t *testing.T) {
	slow, well := newStandIn(t, true), newStandIn(t, false)
	f := start(t, byWorkspace{"acme/web/shop": slow, "umbrella/core/lab": well}, anyImage{}, 2*time.Second)
	f.workspace("umbrella/core", "lab")
	for i := range workers + 8 {
		f.must(store.Of[resource.App](f.st).Create(f.ctx, newApp(fmt.Sprintf("a%d", i), "hello:1")))
	}
	wait.For(t, wait.Patience, "the webhook is asked", func(context.Context) error {
		if slow.most.Load() == 0 {
			return errors.New("nobody asks")
		}
		return nil
	})
	b := newApp("b", "hello:1")
	b.InWorkspace = resource.NewInWorkspace("umbrella/core/lab", "b")
	f.must(store.Of[resource.App](f.st).Create(f.ctx, b))
	f.appAt(b.Key(), "deployed", func(a *resource.App) bool { return a.Status.Conditions.Is(resource.AppDeployed) })
	f.app("a0", "held up", says(resource.AppDeployed, "Waiting for the workspace: its cluster hasn't answered within 2s."))
	if n := slow.most.Load(); n != 1 {
		t.Errorf("the slow cluster held %d workers at once, want 1", n)
	}
}
