package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/reconcile"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
)

// fieldManager owns the fields that the platform sets in tenants' clusters.
const fieldManager = "multipaas"

// furnish gives a cluster that serves what every cluster has: its developers'
// rights, the addons. It returns what is not up yet, in words.
func (c *Controller) furnish(ctx context.Context, p *pass) (string, error) {
	if known, err := p.run.bindDevelopers(ctx); err != nil {
		return "", err
	} else if !known {
		return "waiting for the list of namespaces", nil
	}
	docs, err := c.cfg.Manifests(p.Workspace, c.cfg.Plan)
	if err == nil {
		err = p.run.applyAddons(ctx, docs)
	}
	if err != nil || p.Spec.Machines == 0 {
		return p.run.now().tooMany(), err
	}
	ready, err := p.run.hasDNS(ctx)
	if err != nil || ready {
		return p.run.now().tooMany(), err
	}
	p.again = reconcile.Soonest(p.again, time.Second)
	return "cluster DNS is starting", nil
}

// applyAddons applies docs if they differ from what was applied last.
func (r *run) applyAddons(ctx context.Context, docs []byte) error {
	sum := sha256.Sum256(docs)
	if r.manifest == sum {
		return nil
	}
	cfg := r.now().config
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return err
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return err
	}
	if err := apply(ctx, dyn, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d)), docs); err != nil {
		return err
	}
	failpoint.Reach("workspace/create/addons-applied")
	r.manifest = sum
	return nil
}

// hasDNS says whether the cluster's DNS has answered once: a rolling restart of it
// later is the cluster's own affair.
func (r *run) hasDNS(ctx context.Context) (bool, error) {
	if r.dnsReady {
		return true, nil
	}
	deploy, err := r.now().client.AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
	r.dnsReady = err == nil && deploy.Status.AvailableReplicas > 0
	return r.dnsReady, err
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
		err = applyOne(ctx, ri, &u)
		if err != nil {
			return fmt.Errorf("%s %s: %w", gvk.Kind, u.GetName(), err)
		}
		failpoint.Reach("workspace/create/addon-applied")
	}
}

// applyOne writes one object. One that can't be changed to what it shall be is made anew: the
// role of a binding, what a driver or a class is. A tenant put another in, or an earlier version did. What
// there is of volumes outlives their class and their driver.
func applyOne(ctx context.Context, ri dynamic.ResourceInterface, u *unstructured.Unstructured) error {
	if err := keepDefaults(ctx, ri, u); err != nil {
		return err
	}
	options := metav1.ApplyOptions{FieldManager: fieldManager, Force: true}
	_, err := ri.Apply(ctx, u.GetName(), u, options)
	gvk := u.GroupVersionKind()
	if !apierrors.IsInvalid(err) || gvk.Group != "rbac.authorization.k8s.io" && gvk.Group != "storage.k8s.io" {
		return err
	}
	if gvk.Kind == storageClass {
		have, err := ri.Get(ctx, u.GetName(), metav1.GetOptions{})
		if err != nil || have.Object["provisioner"] != u.Object["provisioner"] {
			return err // of a provisioner of the tenant's own: it stays his
		}
	}
	if err := ri.Delete(ctx, u.GetName(), metav1.DeleteOptions{}); err != nil {
		return err
	}
	_, err = ri.Apply(ctx, u.GetName(), u, options)
	return err
}

const (
	storageClass = "StorageClass"
	// isDefault ends the annotations by which a class is the default one.
	isDefault = "/is-default-class"
)

// keepDefaults has a class that is there be the default or not as its cluster says: that it is
// one is written when it is made, and then the tenant's to change.
func keepDefaults(ctx context.Context, ri dynamic.ResourceInterface, u *unstructured.Unstructured) error {
	wants := u.GetAnnotations()
	for key := range wants {
		if !strings.HasSuffix(key, isDefault) {
			continue
		}
		have, err := ri.Get(ctx, u.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		// What is left out here would be taken away there: it is the platform's field.
		if value, there := have.GetAnnotations()[key]; there {
			wants[key] = value
		} else {
			delete(wants, key)
		}
	}
	u.SetAnnotations(wants)
	return nil
}
