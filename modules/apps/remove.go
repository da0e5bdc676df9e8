package apps

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// remove removes what app has outside, then app itself: first the route, so
// that nobody is sent there any more.
func (c *Controller) remove(ctx context.Context, app *resource.App) (again time.Duration, err error) {
	if host, err := hostOf(app, c.cfg.Domain); err == nil {
		if err := c.removeRoute(ctx, app, host); err != nil {
			return 0, err
		}
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
		return retryRemoval, c.blocked(ctx, app, resource.Condition{
			Type:    resource.AppInstancesReady,
			Status:  resource.False,
			Reason:  reasonRemoving,
			Message: fmt.Sprintf("%d of the app's objects are still leaving.", left),
		})
	}
	return 0, c.removeResource(ctx, app)
}

// deleteObjects deletes what app has in its cluster, and counts what is still
// there. It asks the API and not the mirrors: what was applied a moment ago may not
// be in those yet, and would stay for ever.
func deleteObjects(ctx context.Context, k *cluster, app *resource.App) (left int, err error) {
	options := metav1.ListOptions{LabelSelector: selectorOf(app.Name)}
	services, err := k.client.CoreV1().Services(metav1.NamespaceAll).List(ctx, options)
	if err != nil {
		return 0, fmt.Errorf("list services: %w", err)
	}
	for i := range services.Items {
		if err := deleteService(ctx, k, &services.Items[i]); err != nil {
			return 0, err
		}
	}
	deployments, err := k.client.AppsV1().Deployments(metav1.NamespaceAll).List(ctx, options)
	if err != nil {
		return 0, fmt.Errorf("list deployments: %w", err)
	}
	for i := range deployments.Items {
		if err := deleteDeployment(ctx, k, &deployments.Items[i]); err != nil {
			return 0, err
		}
	}
	return len(services.Items) + len(deployments.Items), nil
}

// deleteDeployment deletes it with its pods; it is there until they are gone.
func deleteDeployment(ctx context.Context, k *cluster, d *appsv1.Deployment) error {
	if d.DeletionTimestamp != nil {
		return nil
	}
	foreground := metav1.DeletePropagationForeground
	err := k.client.AppsV1().Deployments(d.Namespace).Delete(ctx, d.Name, metav1.DeleteOptions{
		PropagationPolicy: &foreground,
		Preconditions:     &metav1.Preconditions{UID: &d.UID},
	})
	return ignoreGone(fmt.Sprintf("delete deployment %s/%s", d.Namespace, d.Name), err)
}

func deleteService(ctx context.Context, k *cluster, s *corev1.Service) error {
	if s.DeletionTimestamp != nil {
		return nil
	}
	err := k.client.CoreV1().Services(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &s.UID},
	})
	return ignoreGone(fmt.Sprintf("delete service %s/%s", s.Namespace, s.Name), err)
}

// ignoreGone takes "not found" for done, and so "not that one": another of its
// name is found by the next look.
func ignoreGone(what string, err error) error {
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// removeResource removes the route and the resource. Nothing of app is left then.
func (c *Controller) removeResource(ctx context.Context, app *resource.App) error {
	if host, err := hostOf(app, c.cfg.Domain); err == nil {
		if err := c.removeRoute(ctx, app, host); err != nil {
			return err
		}
	}
	err := store.Of[resource.App](c.cfg.Store).Delete(ctx, app)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}
