package guard

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/multipaas/multipaas/embed/kube/budget"
)

// store holds as much as it says.
type store int64

func (s store) Used(context.Context) (int64, error)          { return int64(s), nil }
func (s store) Reclaim(context.Context, time.Duration) error { return nil }

func configMap(size int, change func(*api.ConfigMap)) *api.ConfigMap {
	c := &api.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Data: map[string]string{"a": strings.Repeat("x", size)}}
	if change != nil {
		change(c)
	}
	return c
}

func TestRoom(t *testing.T) {
	const limit = 100 << 20
	finalizers := func(names ...string) func(*api.ConfigMap) {
		return func(c *api.ConfigMap) { c.Finalizers = names }
	}
	ending := func(c *api.ConfigMap) { now := metav1.NewTime(time.Unix(1, 0)); c.DeletionTimestamp = &now }
	gvr := func(group, resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource}
	}
	maps := gvr("", "configmaps")
	huge := configMap(200<<20, nil)
	custom := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"x": strings.Repeat("x", 1000)}}}
	for name, c := range map[string]struct {
		resource    schema.GroupVersionResource
		subresource string
		obj, old    runtime.Object
		dryRun      bool
		want        float64 // how full it may be, at most
	}{
		"create":                       {maps, "", configMap(100, nil), nil, false, growing},
		"create of a custom one":       {gvr("acme.example", "things"), "", custom, nil, false, growing},
		"create, dry run":              {maps, "", configMap(100, nil), nil, true, unbounded},
		"token":                        {gvr("", "serviceaccounts"), "token", configMap(100, nil), nil, false, unbounded},
		"review":                       {gvr("authorization.k8s.io", "subjectaccessreviews"), "", configMap(100, nil), nil, false, unbounded},
		"update that grows":            {maps, "", configMap(9000, nil), configMap(100, nil), false, growing},
		"update that does not":         {maps, "", configMap(9000, nil), configMap(9000, nil), false, renewing},
		"status that grows":            {gvr("", "pods"), "status", configMap(9000, nil), configMap(100, nil), false, renewing},
		"status that is no status":     {gvr("", "pods"), "status", configMap(900<<10, nil), configMap(100, nil), false, growing},
		"lease":                        {gvr("coordination.k8s.io", "leases"), "", configMap(100, nil), nil, false, heartbeat},
		"lease that is no lease":       {gvr("coordination.k8s.io", "leases"), "", configMap(9000, nil), nil, false, growing},
		"ending":                       {maps, "", configMap(9000, ending), configMap(9000, ending), false, heartbeat},
		"ending, large":                {maps, "", configMap(900<<10, ending), configMap(900<<10, ending), false, renewing},
		"fewer finalizers":             {maps, "", configMap(900<<10, finalizers("a")), configMap(900<<10, finalizers("a", "b")), false, unbounded},
		"fewer finalizers, but larger": {maps, "", configMap(900<<10, finalizers("a")), configMap(100, finalizers("a", "b")), false, growing},
	} {
		for _, full := range []float64{0.5, 1.1, 1.3, 2, 100} {
			g, err := New(Config{LevelFile: filepath.Join(t.TempDir(), "level"), MachinesFile: filepath.Join(t.TempDir(), "machines"), PlatformUser: platform},
				budget.New(budget.Config{LimitBytes: limit}, store(full*limit)), nil)
			if err != nil {
				t.Fatal(err)
			}
			op := admission.Create
			if c.old != nil {
				op = admission.Update
			}
			a := admission.NewAttributesRecord(c.obj, c.old, schema.GroupVersionKind{}, "n", "c", c.resource, c.subresource, op, nil, c.dryRun, tenant)
			// The first one makes the budget measure: it had nothing to go by.
			_ = g.validateRoom(t.Context(), admission.NewAttributesRecord(huge, nil, schema.GroupVersionKind{}, "n", "c", maps, "", admission.Create, nil, false, tenant))
			err = g.validateRoom(t.Context(), a)
			if got, want := err == nil, full < c.want; got != want {
				t.Errorf("%s at %v of the limit: let through: %v (%v), want %v", name, full, got, err, want)
			}
		}
	}
}

func TestSize(t *testing.T) {
	for name, c := range map[string]struct {
		obj  runtime.Object
		want int64
	}{
		"string":   {configMap(100_000, nil), 100_000},
		"bytes":    {&api.Secret{Data: map[string][]byte{"k": make([]byte, 50_000)}}, 50_000},
		"custom":   {&unstructured.Unstructured{Object: map[string]any{"l": []any{strings.Repeat("x", 30_000), int64(3)}}}, 30_000},
		"old nil":  {(*api.Secret)(nil), 0},
		"old none": {nil, 0},
	} {
		if got := sizeOf(c.obj); got < c.want || got > c.want+200 {
			t.Errorf("%s: %d, want %d and a little", name, got, c.want)
		}
	}
	now := metav1.Now() // with its zone: a pointer to a table of all its changes
	if got := sizeOf(&api.ConfigMap{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}}); got > 100 {
		t.Errorf("a time takes %d bytes", got)
	}
}
