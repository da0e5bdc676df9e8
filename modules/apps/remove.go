package apps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/mirror"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// remove removes what app has outside, then app itself: first the route, so
// that nobody is sent there any more.
func (c *Controller) remove(ctx context.Context, app *resource.App) (again time.Duration, err error) {
	if err := c.removeRoute(ctx, app); err != nil {
		return 0, err
	}
	failpoint.Reach("app/delete/route-removed")
	inCluster, cancel := context.WithTimeout(ctx, c.clusterTimeout)
	defer cancel()
	k, err := c.cluster(inCluster, app.WorkspaceKey())
	if err != nil {
		return 0, c.waiting(ctx, app, resource.AppInstancesReady, err)
	}
	left, err := deleteObjects(inCluster, k, app)
	if late := c.late(inCluster, err); late != nil {
		return 0, c.waiting(ctx, app, resource.AppInstancesReady, late)
	}
	if err != nil {
		if refusalOf(err) == nil {
			return 0, c.waiting(ctx, app, resource.AppInstancesReady, err)
		}
		message := "The cluster keeps an object of the app: " + sentence(err.Error())
		if strings.Contains(err.Error(), "webhook") {
			message += " " + aboutWebhooks
		}
		refused := not(resource.AppInstancesReady, reasonRefused, message)
		return 0, reconcile.Expected(errors.Join(err, c.blocked(ctx, app, refused)))
	}
	failpoint.Reach("app/delete/objects-deleted")
	if len(left) > 0 {
		message := fmt.Sprintf("%d of the app's objects are still leaving.", len(left))
		if held := holders(left); held != "" {
			message = held + " Who put it there has to take it away, or you have: `kubectl edit` shows it in metadata.finalizers."
		}
		return retryRemoval, c.blocked(ctx, app, not(resource.AppInstancesReady, reasonRemoving, message))
	}
	return 0, c.removeResource(ctx, app)
}

// maxDeleted is how many objects with an app's labels are deleted in one look. An app
// has two; the tenant may have put them on any number.
const maxDeleted = 100

// deleteObjects deletes what app has in its cluster, and returns what is still
// there. It asks the API and not the mirrors: what was applied a moment ago may not
// be in those yet, and would stay for ever.
func deleteObjects(ctx context.Context, k *cluster, app *resource.App) (left []metav1.Object, err error) {
	options := metav1.ListOptions{LabelSelector: k8slabels.FormatLabels(labels(app))}
	for kind, of := range map[string]mirror.Source{
		"services":    mirror.Of(k.client.CoreV1().Services(metav1.NamespaceAll)),
		"deployments": mirror.Of(k.client.AppsV1().Deployments(metav1.NamespaceAll)),
	} {
		_, err := mirror.Each(ctx, of, options, func(o runtime.Object) bool {
			if s := slimService(o); s != nil {
				left = append(left, s)
			} else if d := slimDeployment(o); d != nil {
				left = append(left, d)
			}
			return len(left) < maxDeleted
		})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", kind, err)
		}
	}
	for _, o := range left {
		if err := deleteObject(ctx, k, o); err != nil {
			return nil, err
		}
	}
	for _, o := range left {
		if _, ok := o.(*appsv1.Deployment); !ok || o.GetDeletionTimestamp() == nil {
			continue
		}
		below, err := deleteBelow(ctx, k, o, options)
		if left = append(left, below...); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// maxBelow is how many of the ReplicaSets, and of the pods, below a Deployment that
// goes are looked at: one tells who is in the way.
const maxBelow = 10

// deleteBelow deletes the first few of what a Deployment that goes has left below it,
// and returns them. Kubernetes deletes them itself, and tells nobody if it can't: so
// the one who is in the way is found.
func deleteBelow(ctx context.Context, k *cluster, d metav1.Object, options metav1.ListOptions) (left []metav1.Object, err error) {
	going := map[types.UID]bool{} // these make no pod anew
	_, err = mirror.Each(ctx, mirror.Of(k.client.AppsV1().ReplicaSets(d.GetNamespace())), options, func(o runtime.Object) bool {
		if s, ok := o.(*appsv1.ReplicaSet); ok && metav1.IsControlledBy(s, d) {
			left = append(left, &appsv1.ReplicaSet{ObjectMeta: slimMeta(&s.ObjectMeta)})
			going[s.UID] = s.DeletionTimestamp != nil
		}
		return len(left) < maxBelow
	})
	if err != nil {
		return nil, fmt.Errorf("list replica sets: %w", err)
	}
	sets := len(left)
	_, err = mirror.Each(ctx, mirror.Of(k.client.CoreV1().Pods(d.GetNamespace())), options, func(o runtime.Object) bool {
		if p, ok := o.(*corev1.Pod); ok {
			if owner := metav1.GetControllerOf(p); owner != nil && going[owner.UID] {
				left = append(left, &corev1.Pod{ObjectMeta: slimMeta(&p.ObjectMeta)})
			}
		}
		return len(left) < sets+maxBelow
	})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	for _, o := range left {
		if err := deleteObject(ctx, k, o); err != nil {
			return left, err
		}
	}
	return left, nil
}

// holders names the objects that finalizers keep, and those: up to three of them.
func holders(objects []metav1.Object) string {
	var held []string
	for _, o := range objects {
		if o.GetDeletionTimestamp() == nil {
			continue
		}
		for _, f := range o.GetFinalizers() {
			// Kubernetes' own, for as long as pods take to leave.
			if f != metav1.FinalizerDeleteDependents && f != metav1.FinalizerOrphanDependents {
				held = append(held, fmt.Sprintf("%s %s/%s is kept by the finalizer %q", kindOf(o), o.GetNamespace(), o.GetName(), f))
			}
		}
	}
	if len(held) == 0 {
		return ""
	}
	return sentence(strings.Join(held[:min(len(held), 3)], ", "))
}

func kindOf(o metav1.Object) string {
	switch o.(type) {
	case *appsv1.Deployment:
		return "Deployment"
	case *appsv1.ReplicaSet:
		return "ReplicaSet"
	case *corev1.Pod:
		return "Pod"
	}
	return "Service"
}

// deleteObject deletes an object of an app, a Deployment with its pods: it is there
// until they are gone. Another object of its name stays: the next look finds that.
func deleteObject(ctx context.Context, k *cluster, o metav1.Object) error {
	if o.GetDeletionTimestamp() != nil {
		return nil
	}
	options := metav1.DeleteOptions{
		Preconditions:     &metav1.Preconditions{UID: new(o.GetUID())},
		PropagationPolicy: new(metav1.DeletePropagationForeground),
	}
	var remove func(context.Context, string, metav1.DeleteOptions) error
	switch o.(type) {
	case *appsv1.Deployment:
		remove = k.client.AppsV1().Deployments(o.GetNamespace()).Delete
	case *appsv1.ReplicaSet:
		remove = k.client.AppsV1().ReplicaSets(o.GetNamespace()).Delete
	case *corev1.Pod:
		remove, options.PropagationPolicy = k.client.CoreV1().Pods(o.GetNamespace()).Delete, nil
	default:
		remove, options.PropagationPolicy = k.client.CoreV1().Services(o.GetNamespace()).Delete, nil
	}
	err := remove(ctx, o.GetName(), options)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("delete %s %s/%s: %w", kindOf(o), o.GetNamespace(), o.GetName(), err)
}

// removeResource removes the route and the resource. Nothing of app is left then.
func (c *Controller) removeResource(ctx context.Context, app *resource.App) error {
	if err := c.removeRoute(ctx, app); err != nil {
		return err
	}
	return unlessGone(store.Of[resource.App](c.cfg.Store).Delete(ctx, app))
}
