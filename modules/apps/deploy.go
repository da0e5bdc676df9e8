package apps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// applied is what was written last for an app. As long as that is what is
// there, nothing needs to be written.
type applied struct {
	sum        string
	deployment types.UID
	generation int64
	service    types.UID
	version    string
}

// imageFound is the condition of an app whose image is there.
var imageFound = resource.Condition{Type: resource.AppImageFound, Status: resource.True}

// deploy makes the cluster and the route what app says, and tells how it is.
func (c *Controller) deploy(ctx context.Context, app *resource.App) (again time.Duration, err error) {
	ref, err := fullReference(c.cfg.Registry, c.cfg.RegistryNames, app.Account, app.Organization, app.Spec.Image)
	if err != nil {
		return 0, c.blocked(ctx, app, noImage(err))
	}
	if condition, err := c.resolve(ctx, app, ref); condition != nil {
		return retryImage, errors.Join(err, c.blocked(ctx, app, *condition))
	}
	inCluster, cancel := context.WithTimeout(ctx, c.clusterTimeout)
	defer cancel()
	k, err := c.cluster(inCluster, app.WorkspaceKey())
	if err != nil {
		return 0, c.unreachable(ctx, app, err)
	}
	there := k.find(app)
	if adopted, err := c.adoptScale(inCluster, k, app, there); adopted || err != nil {
		return 0, c.notWritten(ctx, inCluster, app, err)
	}
	deployment, err := c.apply(inCluster, k, app, render(app, pinned(ref, app.Status.ImageDigest)), there)
	if err != nil {
		return retryImage, c.notWritten(ctx, inCluster, app, err)
	}
	host, route, err := c.route(ctx, app)
	if refusal, ok := errors.AsType[*refusedError](err); ok {
		return 0, c.blocked(ctx, app, imageFound, refusal.Condition)
	}
	if err != nil {
		return 0, err
	}
	s := seen{host: host, deployment: deployment, pods: there.pods, route: route}
	return resync, c.observe(ctx, app, status(app, s))
}

// resolve sees to it that the digest in app's status is that of its release, looking
// the image up once for each: a tag that moved on takes effect when somebody
// deploys, and not by chance when the app is scaled. What it found is stored before
// it is used, so a look that is cut short changes nothing about that. A condition
// says why there is no digest; an error with it, that looking failed.
func (c *Controller) resolve(ctx context.Context, app *resource.App, ref string) (*resource.Condition, error) {
	st := &app.Status
	if st.Release == app.Spec.Release && st.ImageDigest != "" && (st.Image == app.Spec.Image || st.Image == "") {
		return nil, nil
	}
	found, err := c.cfg.Images.Resolve(ctx, app.WorkspaceKey(), ref)
	if none, ok := errors.AsType[*NoImageError](err); ok {
		return new(noImage(none)), nil
	}
	if unfit, ok := errors.AsType[*resource.UnfitImageError](err); ok {
		return new(never(resource.AppImageFound, reasonUnfit,
			fmt.Sprintf("The image %s can't run here: %s", app.Spec.Image, sentence(unfit.Why)))), nil
	}
	if err != nil {
		return &resource.Condition{
			Type:    resource.AppImageFound,
			Status:  resource.Unknown,
			Reason:  reasonImageUnknown,
			Message: sentence(err.Error()),
		}, err
	}
	st.Image, st.Release, st.ImageDigest = app.Spec.Image, app.Spec.Release, found.Digest
	st.ImageMadeAt, st.ImagePushedAt = found.MadeAt, found.PushedAt
	return nil, store.Of[resource.App](c.cfg.Store).Observe(ctx, app, func(now *resource.App) {
		now.Status.Image, now.Status.Release, now.Status.ImageDigest = st.Image, st.Release, st.ImageDigest
		now.Status.ImageMadeAt, now.Status.ImagePushedAt = st.ImageMadeAt, st.ImagePushedAt
	})
}

// notWritten says as a condition why the cluster did not take what was written; it
// is tried again. Nil for err is nothing to say.
func (c *Controller) notWritten(ctx, inCluster context.Context, app *resource.App, err error) error {
	if err == nil {
		return nil
	}
	if late := c.late(inCluster, err); late != nil {
		return c.unreachable(ctx, app, late)
	}
	refusal := refusalOf(err)
	switch {
	case refusal == nil:
		return c.unreachable(ctx, app, err)
	case refusal.Final:
		return c.blocked(ctx, app, imageFound, *refusal)
	}
	return reconcile.Expected(errors.Join(err, c.blocked(ctx, app, imageFound, *refusal)))
}

func noImage(err error) resource.Condition {
	return never(resource.AppImageFound, reasonNoImage, sentence(err.Error()))
}

// unreachable tells that the workspace isn't there yet. An app that was ready
// stays so: what its users see doesn't need the plane.
func (c *Controller) unreachable(ctx context.Context, app *resource.App, err error) error {
	if app.Status.Phase == resource.Ready && app.Status.ObservedGeneration == app.Generation {
		return reconcile.Expected(err)
	}
	return c.waiting(ctx, app, resource.AppDeployed, err)
}

// apply writes the objects unless they are there as they were written last, and
// removes those of another namespace that the app was in before.
func (c *Controller) apply(
	ctx context.Context, k *cluster, app *resource.App, want objects, there found,
) (*appsv1.Deployment, error) {
	sum, err := want.sum()
	if err != nil {
		return nil, err
	}
	namespace := namespaceOf(app)
	c.mu.Lock()
	last := c.applied[app.Key()]
	c.mu.Unlock()
	if len(there.deployments) == 1 && len(there.services) == 1 && len(there.elsewhere) == 0 {
		d, s := there.deployments[0], there.services[0]
		if last == (applied{sum, d.UID, d.Generation, s.UID, s.ResourceVersion}) {
			return d, nil
		}
	}

	if err := k.tooMany(there); err != nil {
		return nil, err
	}
	if err := ensureNamespace(ctx, k, namespace); err != nil {
		return nil, err
	}
	if err := checkOwners(ctx, k, app.Name, namespace, there); err != nil {
		return nil, err
	}
	options := metav1.ApplyOptions{FieldManager: manager, Force: true}
	service, err := k.client.CoreV1().Services(namespace).Apply(ctx, want.service, options)
	if err != nil {
		return nil, fmt.Errorf("apply service %s/%s: %w", namespace, app.Name, err)
	}
	failpoint.Reach("app/deploy/service-applied")
	deployment, err := k.client.AppsV1().Deployments(namespace).Apply(ctx, want.deployment, options)
	if err != nil {
		return nil, fmt.Errorf("apply deployment %s/%s: %w", namespace, app.Name, err)
	}
	failpoint.Reach("app/deploy/deployment-applied")
	for _, o := range there.elsewhere {
		if err := deleteObject(ctx, k, o); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	c.applied[app.Key()] = applied{sum, deployment.UID, deployment.Generation, service.UID, service.ResourceVersion}
	c.mu.Unlock()
	return deployment, nil
}

func ensureNamespace(ctx context.Context, k *cluster, name string) error {
	ns, err := k.client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	switch {
	case err == nil && ns.DeletionTimestamp != nil:
		return &refusedError{not(resource.AppDeployed, reasonRefused,
			fmt.Sprintf("The namespace %s is being deleted. The app comes back when that is done.", name))}
	case err == nil:
		return nil
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("get namespace %s: %w", name, err)
	}
	namespace := coreapply.Namespace(name).WithLabels(map[string]string{labelManager: manager})
	_, err = k.client.CoreV1().Namespaces().Apply(ctx, namespace, metav1.ApplyOptions{FieldManager: manager, Force: true})
	if err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return nil
}

// checkOwners sees to it that nothing is taken over that the tenant made
// himself: what has our name but not our labels is his.
func checkOwners(ctx context.Context, k *cluster, name, namespace string, there found) error {
	taken := func(what string, m metav1.Object, err error) error {
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("get %s %s/%s: %w", what, namespace, name, err)
		case m.GetLabels()[labelManager] != manager:
			return &refusedError{never(resource.AppDeployed, reasonConflict,
				fmt.Sprintf("There is a %s %s in namespace %s already that is not this app's. "+
					"Delete it, or give the app another name.", what, name, namespace))}
		}
		return nil
	}
	if len(there.deployments) == 0 {
		d, err := k.client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err := taken("Deployment", d, err); err != nil {
			return err
		}
	}
	if len(there.services) == 0 {
		s, err := k.client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
		if err := taken("Service", s, err); err != nil {
			return err
		}
	}
	return nil
}

// refusedError says that app can't go on, as a condition for its owner.
type refusedError struct{ resource.Condition }

func (e *refusedError) Error() string { return e.Message }

// refusalOf tells what users can do something about from other errors, or nil.
func refusalOf(err error) *resource.Condition {
	if r, ok := errors.AsType[*refusedError](err); ok {
		return &r.Condition
	}
	var status apierrors.APIStatus
	switch {
	case !errors.As(err, &status), apierrors.IsUnauthorized(err), apierrors.IsServiceUnavailable(err),
		apierrors.IsTooManyRequests(err), apierrors.IsServerTimeout(err):
		return nil // the cluster's own state, which passes
	case apierrors.IsInvalid(err) || apierrors.IsForbidden(err) ||
		apierrors.IsBadRequest(err) || apierrors.IsRequestEntityTooLargeError(err):
		return new(never(resource.AppDeployed, reasonRefused, "Kubernetes refuses the app: "+sentence(err.Error())))
	}
	message := "The cluster doesn't take the app: " + sentence(err.Error())
	if strings.Contains(status.Status().Message, "webhook") {
		message += " " + aboutWebhooks
	}
	return new(not(resource.AppDeployed, reasonRefused, message))
}

// aboutWebhooks is what to do about one whose name was said.
const aboutWebhooks = "Mend what answers for that webhook, or delete the configuration that names it: " +
	"see `kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations`. The platform tries again by itself."

// route makes the route of app what it should be: none, or one to its Service.
func (c *Controller) route(ctx context.Context, app *resource.App) (host string, route *resource.Route, err error) {
	if app.Spec.NoRoute {
		return "", nil, c.removeRoute(ctx, app)
	}
	host, err = hostOf(app, c.cfg.Domain)
	if err != nil {
		return "", nil, err
	}
	want := &resource.Route{
		Meta:      resource.Meta{Name: host},
		Workspace: app.WorkspaceKey(),
		App:       app.Name,
		Namespace: namespaceOf(app),
		Service:   app.Name,
		Port:      portOf(app),
	}
	routes := store.Of[resource.Route](c.cfg.Store)
	route, err = routes.Modify(ctx, host, func(r *resource.Route) error {
		if !r.LeadsWhere(want) {
			r.Status.Conditions = nil // they are about something else
		}
		r.Workspace, r.App, r.Namespace, r.Service, r.Port = want.Workspace, want.App, want.Namespace, want.Service, want.Port
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		route, err = want, routes.Create(ctx, want)
		failpoint.Reach("app/deploy/route-made")
	}
	return host, route, err
}

// removeRoute removes the route of app, if it has one.
func (c *Controller) removeRoute(ctx context.Context, app *resource.App) error {
	host, err := hostOf(app, c.cfg.Domain)
	if err != nil {
		return nil // with that name there can't have been one
	}
	routes := store.Of[resource.Route](c.cfg.Store)
	r, err := routes.Get(ctx, host)
	if err == nil && r.Workspace == app.WorkspaceKey() && r.App == app.Name {
		err = routes.Delete(ctx, r)
	}
	return unlessGone(err)
}
