package workspace

import (
	"maps"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestApplyOne: what can't be changed is made anew, but for a class that is the tenant's own.
func TestApplyOne(t *testing.T) {
	class := func(provisioner string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
			"metadata": map[string]any{"name": "local"}, "provisioner": provisioner}}
	}
	driver := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": map[string]any{"name": "d"}}}
	for name, c := range map[string]struct {
		have, want *unstructured.Unstructured
		again      bool
	}{
		"an earlier version": {class("ours"), class("ours"), true},
		"the tenant's own":   {class("his"), class("ours"), false},
		"a driver":           {driver, driver, true},
	} {
		t.Run(name, func(t *testing.T) {
			gvr := schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses"}
			if c.want.GetKind() == "CSIDriver" {
				gvr.Resource = "csidrivers"
			}
			client := fake.NewSimpleDynamicClient(runtime.NewScheme(), c.have)
			applied, deleted := 0, 0
			client.PrependReactor("patch", gvr.Resource, func(clienttesting.Action) (bool, runtime.Object, error) {
				applied++
				if deleted == 0 {
					return true, nil, apierrors.NewInvalid(schema.GroupKind{Group: gvr.Group, Kind: c.want.GetKind()}, c.want.GetName(), nil)
				}
				return true, c.want, nil
			})
			client.PrependReactor("delete", gvr.Resource, func(clienttesting.Action) (bool, runtime.Object, error) {
				deleted++
				return true, nil, nil
			})
			if err := applyOne(t.Context(), client.Resource(gvr), c.want); err != nil {
				t.Fatal(err)
			}
			if again := applied == 2 && deleted == 1; again != c.again {
				t.Errorf("applied %d times, deleted %d times; want it made anew: %t", applied, deleted, c.again)
			}
		})
	}
}

// TestKeepDefaults: which class is the default one is said once; then the tenant says it.
func TestKeepDefaults(t *testing.T) {
	const key = "storageclass.kubernetes.io/is-default-class"
	class := func(annotations map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
			"metadata": map[string]any{"name": "local", "annotations": annotations}}}
	}
	gvr := schema.GroupVersionResource{Group: "storage.k8s.io", Version: "v1", Resource: "storageclasses"}
	for name, c := range map[string]struct {
		have []runtime.Object
		want map[string]string
	}{
		"new":             {nil, map[string]string{key: "true", "other": "x"}},
		"as it was made":  {[]runtime.Object{class(map[string]any{key: "true"})}, map[string]string{key: "true", "other": "x"}},
		"he said no":      {[]runtime.Object{class(map[string]any{key: "false"})}, map[string]string{key: "false", "other": "x"}},
		"he took it away": {[]runtime.Object{class(nil)}, map[string]string{"other": "x"}},
	} {
		u := class(map[string]any{key: "true", "other": "x"})
		if err := keepDefaults(t.Context(), fake.NewSimpleDynamicClient(runtime.NewScheme(), c.have...).Resource(gvr), u); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := u.GetAnnotations(); !maps.Equal(got, c.want) {
			t.Errorf("%s: annotations %v, want %v", name, got, c.want)
		}
	}
}
