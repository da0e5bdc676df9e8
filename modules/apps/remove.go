package apps

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/mirror"
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
		return 0, err
	}
	failpoint.Reach("app/delete/objects-deleted")
	if left > 0 {
		message := fmt.Sprintf("%d of the app's objects are still leaving.", left)
		return retryRemoval, c.blocked(ctx, app, not(resource.AppInstancesReady, reasonRemoving, message))
	}
	return 0, c.removeResource(ctx, app)
}

// maxDeleted is how many objects with an app's labels are deleted in one look. An app
// has two; the tenant may have put them on any number.
const maxDeleted = 100

// deleteObjects deletes what app has in its cluster, and counts what is still
// there. It asks the API and not the mirrors: what was applied a moment ago may not
// be in those yet, and would stay for ever.
func deleteObjects(ctx context.Context, k *cluster, app *resource.App) (left int, err error) {
	options := metav1.ListOptions{LabelSelector: k8slabels.FormatLabels(labels(app))}
	var all []metav1.Object
	for kind, of := range map[string]mirror.Source{
		"services":    mirror.Of(k.client.CoreV1().Services(metav1.NamespaceAll)),
		"deployments": mirror.Of(k.client.AppsV1().Deployments(metav1.NamespaceAll)),
	} {
		_, err := mirror.Each(ctx, of, options, func(o runtime.Object) bool {
			if s := slimService(o); s != nil {
				all = append(all, s)
			} else if d := slimDeployment(o); d != nil {
				all = append(all, d)
			}
			return len(all) < maxDeleted
		})
		if err != nil {
			return 0, fmt.Errorf("list %s: %w", kind, err)
		}
	}
	for _, o := range all {
		if err := deleteObject(ctx, k, o); err != nil {
			return 0, err
		}
	}
	return len(all), nil
}

// deleteObject deletes a Service, or a Deployment with its pods, which is there until
// they are gone. Another object of its name stays: the next look finds that.
func deleteObject(ctx context.Context, k *cluster, o metav1.Object) error {
	if o.GetDeletionTimestamp() != nil {
		return nil
	}
	what, remove := "service", k.client.CoreV1().Services(o.GetNamespace()).Delete
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: new(o.GetUID())}}
	if _, ok := o.(*appsv1.Deployment); ok {
		what, remove = "deployment", k.client.AppsV1().Deployments(o.GetNamespace()).Delete
		options.PropagationPolicy = new(metav1.DeletePropagationForeground)
	}
	err := remove(ctx, o.GetName(), options)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("delete %s %s/%s: %w", what, o.GetNamespace(), o.GetName(), err)
}

// removeResource removes the route and the resource. Nothing of app is left then.
func (c *Controller) removeResource(ctx context.Context, app *resource.App) error {
	if err := c.removeRoute(ctx, app); err != nil {
		return err
	}
	return unlessGone(store.Of[resource.App](c.cfg.Store).Delete(ctx, app))
}
