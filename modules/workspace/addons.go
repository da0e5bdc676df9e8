package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
)

type kubernetesClient = kubernetes.Interface

// FieldManager owns the fields that the platform sets in tenants' clusters.
const FieldManager = "multipaas"

// addons applies what every cluster gets, when it differs from what was applied
// last, and says what is not up yet, in words.
func (r *run) addons(ctx context.Context, render func(*resource.Workspace, wire.Plan) ([]byte, error), w *resource.Workspace, plan wire.Plan) (string, error) {
	docs, err := render(w, plan)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(docs)
	r.mu.Lock()
	applied, dns, client, plane := r.manifest == sum, r.dnsReady, r.client, r.plane
	r.mu.Unlock()
	if !applied {
		cfg := plane.RESTConfig()
		d, err := discovery.NewDiscoveryClientForConfig(cfg)
		if err != nil {
			return "", err
		}
		dyn, err := dynamic.NewForConfig(cfg)
		if err != nil {
			return "", err
		}
		if err := apply(ctx, dyn, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d)), docs); err != nil {
			return "", err
		}
		faultpoint.Reach("workspace/create/addons-applied")
		r.mu.Lock()
		r.manifest = sum
		r.mu.Unlock()
	}
	if dns || w.Spec.Machines == 0 {
		return "", nil
	}
	deploy, err := client.AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if deploy.Status.AvailableReplicas == 0 {
		return "cluster DNS is starting", nil
	}
	// Once seen it counts: a rolling restart of DNS later is the cluster's own affair.
	r.mu.Lock()
	r.dnsReady = true
	r.mu.Unlock()
	return "", nil
}

// apply writes YAML documents by server-side apply, in their order.
func apply(ctx context.Context, dyn dynamic.Interface, mapper meta.RESTMapper, docs []byte) error {
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(docs), 4096)
	for {
		var u unstructured.Unstructured
		if err := dec.Decode(&u.Object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(u.Object) == 0 {
			continue
		}
		gvk := u.GroupVersionKind()
		mapping, err := mapper.RESTMapping(schema.GroupKind{Group: gvk.Group, Kind: gvk.Kind}, gvk.Version)
		if err != nil {
			return fmt.Errorf("%s %s: %w", gvk.Kind, u.GetName(), err)
		}
		var ri dynamic.ResourceInterface = dyn.Resource(mapping.Resource)
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			ri = dyn.Resource(mapping.Resource).Namespace(u.GetNamespace())
		}
		_, err = ri.Apply(ctx, u.GetName(), &u, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
		if apierrors.IsInvalid(err) && gvk.Group == "rbac.authorization.k8s.io" {
			// The role of a binding can't be changed: a tenant put another one in.
			if err = ri.Delete(ctx, u.GetName(), metav1.DeleteOptions{}); err == nil {
				_, err = ri.Apply(ctx, u.GetName(), &u, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
			}
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", gvk.Kind, u.GetName(), err)
		}
		faultpoint.Reach("workspace/create/addon-applied")
	}
}
