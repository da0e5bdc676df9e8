package apps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
	"github.com/multipaas/multipaas/testing/wait"
)

// playPod is one pass of actAsKubelet over a pod. Errors are the next pass's.
func playPod(ctx context.Context, client kubernetes.Interface, p *corev1.Pod) {
	pods := client.CoreV1().Pods(p.Namespace)
	switch {
	case p.DeletionTimestamp != nil:
		zero := int64(0)
		_ = pods.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
	case p.Spec.NodeName == "" || len(p.Status.ContainerStatuses) > 0:
	default:
		now := metav1.Now()
		s := corev1.ContainerStatus{Name: container, Image: p.Spec.Containers[0].Image, Ready: true,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}
		ready := corev1.ConditionTrue
		if strings.Contains(s.Image, "crash") {
			ready, s.Ready, s.RestartCount = corev1.ConditionFalse, false, 5
			s.State = waiting("CrashLoopBackOff", "back-off")
			s.LastTerminationState = ended("Error", 42)
		}
		p.Status.Phase = corev1.PodRunning
		p.Status.ContainerStatuses = []corev1.ContainerStatus{s}
		p.Status.Conditions = append(p.Status.Conditions,
			corev1.PodCondition{Type: corev1.ContainersReady, Status: ready, LastTransitionTime: now},
			corev1.PodCondition{Type: corev1.PodReady, Status: ready, LastTransitionTime: now})
		_, _ = pods.UpdateStatus(ctx, p, metav1.UpdateOptions{})
	}
}

type clusters struct {
	mu     sync.Mutex
	client kubernetes.Interface
	err    error
}

func (c *clusters) Client(context.Context, string) (kubernetes.Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client, c.err
}

func (c *clusters) set(client kubernetes.Interface, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client, c.err = client, err
}

// images has "hello:1", "hello:2" and "crash:1", and "arm:1" that doesn't fit.
type images struct {
	pushes *atomic.Int32 // how often all tags were pushed anew; nil: never
}

func (im images) Resolve(_ context.Context, workspace, ref string) (v resource.ImageVersion, err error) {
	have := []string{"hello:1", "hello:2", "crash:1"}
	i := slices.IndexFunc(have, func(h string) bool { return ref == "registry.example/acme/web/"+h })
	switch {
	case ref == "registry.example/acme/web/arm:1":
		return v, &resource.UnfitImageError{Why: "it is built for linux/arm64"}
	case i < 0 || workspace != "acme/web/shop":
		return v, &NoImageError{Ref: ref, Have: have}
	}
	if im.pushes != nil {
		i += len(have) * int(im.pushes.Load())
	}
	v.Digest, v.PushedAt = "sha256:"+strings.Repeat(fmt.Sprint(i+1), 64), time.Unix(1700000000, 0)
	return v, nil
}

type fixture struct {
	*testing.T
	ctx context.Context
	st  *store.Store
}

// start runs a controller that may wait for a cluster as long as patience says.
func start(t *testing.T, clusters Clusters, images Images, patience time.Duration) *fixture {
	t.Helper()
	f := &fixture{T: t, st: storetest.New(t)}
	ctx, cancel := context.WithTimeout(context.Background(), 4*wait.Patience)
	f.ctx = ctx
	f.workspace("acme/web", "shop")

	run, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	part := func(p interface {
		Run(context.Context, func()) error
	}) {
		ready := make(chan struct{})
		wg.Go(func() {
			if err := p.Run(run, func() { close(ready) }); err != nil {
				t.Errorf("%T: %v", p, err)
			}
		})
		<-ready
	}
	apps, workspaces := store.Of[resource.App](f.st).Cache(nil), store.Of[resource.Workspace](f.st).Cache(nil)
	c := New(Config{Store: f.st, Clusters: clusters, Images: images, Apps: apps, Workspaces: workspaces,
		Domain: "lab.example", Registry: "registry.example"})
	c.clusterTimeout = patience
	part(apps)
	part(workspaces)
	part(c)
	t.Cleanup(func() {
		stop()
		wg.Wait()
		cancel()
	})
	return f
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) workspace(organization, name string) {
	f.Helper()
	w := &resource.Workspace{InOrganization: resource.NewInOrganization(organization, name)}
	f.must(store.Of[resource.Workspace](f.st).Create(f.ctx, w))
}

// app waits until the app called name is as ok says.
func (f *fixture) app(name, what string, ok func(*resource.App) bool) *resource.App {
	f.Helper()
	return f.appAt("acme/web/shop/"+name, what, ok)
}

func (f *fixture) appAt(key, what string, ok func(*resource.App) bool) *resource.App {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, wait.Patience)
	defer cancel()
	var last *resource.App
	for e := range store.Of[resource.App](f.st).WatchKey(ctx, key) {
		if e.Type == store.Put {
			last = e.Object
		}
		if last != nil && ok(last) {
			return last
		}
	}
	f.Fatalf("%s isn't %s after %v: %+v", key, what, wait.Patience, last)
	return nil
}

func (f *fixture) gone(name string) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, wait.Patience)
	defer cancel()
	there := false
	for e := range store.Of[resource.App](f.st).WatchKey(ctx, "acme/web/shop/"+name) {
		switch e.Type {
		case store.Put:
			there = true
		case store.Deleted:
			return
		case store.Synced:
			if !there {
				return
			}
		}
	}
	f.Fatalf("%s isn't gone after %v", name, wait.Patience)
}

func (f *fixture) change(name string, change func(*resource.App)) {
	f.Helper()
	_, err := store.Of[resource.App](f.st).Modify(f.ctx, "acme/web/shop/"+name, func(a *resource.App) error { change(a); return nil })
	f.must(err)
}

// balance says what the balancer would about every route.
func (f *fixture) balance() {
	go func() {
		for e := range store.Of[resource.Route](f.st).Watch(f.ctx, "") {
			if e.Type == store.Put && !e.Object.Status.Conditions.Is(resource.RouteReady) {
				_, _ = store.Of[resource.Route](f.st).Modify(f.ctx, e.Key, func(r *resource.Route) error {
					r.Status.Conditions.Set(resource.Condition{Type: resource.RouteReady, Status: resource.True})
					return nil
				})
			}
		}
	}()
}

func (f *fixture) until(what string, ok func() error) {
	f.Helper()
	wait.For(f.T, wait.Patience, what, func(context.Context) error { return ok() })
}

func ready(a *resource.App) bool {
	return a.Status.Phase == resource.Ready && a.Status.ObservedGeneration == a.Generation
}

func says(condition, text string) func(*resource.App) bool {
	return func(a *resource.App) bool {
		c := a.Status.Conditions.Get(condition)
		return c != nil && c.Status == resource.False && strings.Contains(c.Message, text) && a.Status.ObservedGeneration == a.Generation
	}
}

// TestApps leads apps through their lives in a real control plane.
func TestApps(t *testing.T) {
	clusters := &clusters{err: errors.New("the plane is starting")}
	var pushes atomic.Int32
	f := start(t, clusters, images{&pushes}, clusterTimeout)
	f.must(store.Of[resource.App](f.st).Create(f.ctx, newApp("hello", "helo:1")))
	a := f.app("hello", "without an image", says(resource.AppImageFound, "There are hello:1, hello:2, crash:1."))
	if a.Status.Phase != resource.Failed || !a.Status.Conditions.Get(resource.AppImageFound).Final {
		t.Errorf("without an image: %+v, want it failed", a.Status)
	}
	f.change("hello", func(a *resource.App) { a.Spec.Image = "arm:1" })
	f.app("hello", "unfit", says(resource.AppImageFound, "The image arm:1 can't run here: it is built for linux/arm64."))
	f.change("hello", func(a *resource.App) { a.Spec.Image = "hello:1" })
	f.app("hello", "waiting", says(resource.AppDeployed, "Waiting for the workspace: the plane is starting."))
	client := startPlane(t)
	actAsKubelet(t, client)
	f.balance()
	clusters.set(client, nil)
	a = f.app("hello", "ready", ready)
	if a.Status.InstancesReady != 2 || a.Status.URL != "https://hello.shop.web.acme.lab.example" || !strings.HasPrefix(a.Status.ImageDigest, "sha256:111") {
		t.Errorf("ready: %+v", a.Status)
	}
	d, err := client.AppsV1().Deployments("default").Get(f.ctx, "hello", metav1.GetOptions{})
	f.must(err)
	if got, want := d.Spec.Template.Spec.Containers[0].Image, "registry.example/acme/web/hello:1@sha256:"+strings.Repeat("1", 64); got != want {
		t.Errorf("image %s, want %s", got, want)
	}
	// An autoscaler is told by the name under which the plane's controllers write.
	if !slices.ContainsFunc(d.ManagedFields, func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == planeManager && f.Subresource == "status"
	}) {
		t.Errorf("no controller of the plane is called %s: %+v", planeManager, d.ManagedFields)
	}
	pods, err := client.CoreV1().Pods("default").List(f.ctx, metav1.ListOptions{})
	f.must(err)
	if len(pods.Items) != 2 || pods.Items[0].Spec.NodeName == pods.Items[1].Spec.NodeName {
		t.Errorf("%d instances, want 2 on two machines", len(pods.Items))
	}
	route, err := store.Of[resource.Route](f.st).Get(f.ctx, a.Status.Host)
	f.must(err)
	if route.Workspace != "acme/web/shop" || route.Service != "hello" || route.Port != 8080 || route.Namespace != "default" {
		t.Errorf("route %+v", route)
	}

	// What somebody changes behind our back comes back.
	_, err = client.AppsV1().Deployments("default").Patch(f.ctx, "hello", types.MergePatchType, []byte(`{"spec":{"minReadySeconds":0,"progressDeadlineSeconds":9,"paused":true}}`), metav1.PatchOptions{})
	f.must(err)
	f.must(client.CoreV1().Services("default").Delete(f.ctx, "hello", metav1.DeleteOptions{}))
	f.must(store.Of[resource.Route](f.st).Delete(f.ctx, route))
	wait.For(t, wait.Patience, "the deployment, the service and the route are back", func(context.Context) error {
		d, err := client.AppsV1().Deployments("default").Get(f.ctx, "hello", metav1.GetOptions{})
		if err != nil || *d.Spec.ProgressDeadlineSeconds == 9 || d.Spec.Paused {
			return fmt.Errorf("the deployment isn't: %v", err)
		}
		_, err = client.CoreV1().Services("default").Get(f.ctx, "hello", metav1.GetOptions{})
		_, errRoute := store.Of[resource.Route](f.st).Get(f.ctx, route.Name)
		return errors.Join(err, errRoute)
	})

	// A tag that moves on is taken by the next deployment, and by nothing else.
	runs := func() string {
		t.Helper()
		d, err := client.AppsV1().Deployments("default").Get(f.ctx, "hello", metav1.GetOptions{})
		f.must(err)
		return d.Spec.Template.Spec.Containers[0].Image[len("registry.example/acme/web/hello:1@sha256:"):]
	}
	pushes.Add(1)
	f.change("hello", func(a *resource.App) { a.Spec.Instances = 3; a.Spec.Port = 9090; a.Spec.NoRoute = true })
	a = f.app("hello", "scaled", ready)
	if a.Status.InstancesReady != 3 || a.Status.URL != "" {
		t.Errorf("scaled: %+v, want 3 instances and no URL", a.Status)
	}
	if got := runs(); got != strings.Repeat("1", 64) {
		t.Errorf("scaled: %s runs, want what was deployed", got)
	}
	f.change("hello", func(a *resource.App) { a.Spec.Release++ })
	f.app("hello", "deployed again", ready)
	if got := runs(); got != strings.Repeat("4", 64) {
		t.Errorf("deployed again: %s runs, want what the tag names now", got)
	}

	// Scaled in the cluster: that is what its owner wants, until he wants something else here.
	_, err = client.AppsV1().Deployments("default").UpdateScale(f.ctx, "hello", &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Name: "hello", Namespace: "default"}, Spec: autoscalingv1.ScaleSpec{Replicas: 4}}, metav1.UpdateOptions{FieldManager: "kubectl"})
	f.must(err)
	a = f.app("hello", "scaled in the cluster", func(a *resource.App) bool { return ready(a) && a.Spec.Instances == 4 })
	if a.Status.InstancesReady != 4 || a.Status.ScaledBy != "kubectl" || !strings.Contains(a.Status.Conditions.Get(resource.AppInstancesReady).Message, "by kubectl") {
		t.Errorf("scaled in the cluster: %+v, want 4 instances, by kubectl", a.Status)
	}
	f.change("hello", func(a *resource.App) { a.Spec.Instances = 3 })
	a = f.app("hello", "scaled here", ready)
	if a.Status.InstancesReady != 3 || a.Status.ScaledBy != "" {
		t.Errorf("scaled here: %+v, want 3 instances, by nobody else", a.Status)
	}
	if _, err := store.Of[resource.Route](f.st).Get(f.ctx, route.Name); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the route of an app without one: %v, want none", err)
	}
	s, err := client.CoreV1().Services("default").Get(f.ctx, "hello", metav1.GetOptions{})
	f.must(err)
	if len(s.Spec.Ports) != 1 || s.Spec.Ports[0].Port != 9090 {
		t.Errorf("ports %+v, want 9090 only", s.Spec.Ports)
	}

	// A release that crashes says so and leaves the running one alone.
	f.change("hello", func(a *resource.App) { a.Spec.Image = "crash:1"; a.Spec.NoRoute = false })
	a = f.app("hello", "crashing", says(resource.AppInstancesReady, "exit code 42"))
	if a.Status.Phase != resource.Degraded || a.Status.InstancesReady != 3 || !a.Status.Conditions.Get(resource.AppInstancesReady).Final {
		t.Errorf("crashing: %+v, want it degraded with 3 instances", a.Status)
	}
	f.change("hello", func(a *resource.App) { a.Spec.Image = "hello:2" })
	f.app("hello", "ready again", ready)

	// To another namespace, which isn't there yet.
	f.change("hello", func(a *resource.App) { a.Spec.Namespace = "other"; a.Spec.Instances = 1 })
	f.app("hello", "moved", ready)
	wait.For(t, wait.Patience, "nothing is left in the old namespace", func(context.Context) error {
		_, err := client.AppsV1().Deployments("default").Get(f.ctx, "hello", metav1.GetOptions{})
		return want404(err)
	})

	// With a volume, it ends before it begins anew, and says which claim it waits for.
	f.change("hello", func(a *resource.App) { a.Spec.Volumes = []resource.AppVolume{{Claim: "data", Path: "/data"}} })
	f.app("hello", "without its claim", says(resource.AppInstancesReady, `persistentvolumeclaim "data" not found`))
	d, err = client.AppsV1().Deployments("other").Get(f.ctx, "hello", metav1.GetOptions{})
	f.must(err)
	if pod := d.Spec.Template.Spec; d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType || len(pod.Volumes) != 1 ||
		pod.Containers[0].VolumeMounts[0].MountPath != "/data" || *pod.SecurityContext.FSGroup != volumesGroup {
		t.Errorf("with a volume: %+v", d.Spec)
	}
	// Several have shared volumes only, and go on while their next release begins.
	f.change("hello", func(a *resource.App) { a.Spec.Instances = 2 })
	f.app("hello", "without its claim", says(resource.AppInstancesReady, `persistentvolumeclaim "data" not found`))
	if d, err = client.AppsV1().Deployments("other").Get(f.ctx, "hello", metav1.GetOptions{}); err != nil ||
		d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || *d.Spec.Replicas != 2 {
		t.Errorf("two instances: %+v, %v", d.Spec, err)
	}
	f.change("hello", func(a *resource.App) { a.Spec.Volumes, a.Spec.Instances = nil, 1 })
	f.app("hello", "without volumes", ready)
	if d, err = client.AppsV1().Deployments("other").Get(f.ctx, "hello", metav1.GetOptions{}); err != nil ||
		d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || len(d.Spec.Template.Spec.Volumes) != 0 {
		t.Errorf("without volumes: %+v, %v", d.Spec, err)
	}

	// Refusals.
	_, err = client.CoreV1().Namespaces().Create(f.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "small"}}, metav1.CreateOptions{})
	f.must(err)
	_, err = client.CoreV1().ResourceQuotas("small").Create(f.ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "nothing"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: apiresource.MustParse("0")}}}, metav1.CreateOptions{})
	f.must(err)
	wait.For(t, wait.Patience, "the quota is in force", func(context.Context) error {
		q, err := client.CoreV1().ResourceQuotas("small").Get(f.ctx, "nothing", metav1.GetOptions{})
		if err == nil && len(q.Status.Hard) == 0 {
			err = errors.New("the controller has not taken note of it")
		}
		return err
	})
	quota := newApp("quota", "hello:1")
	quota.Spec.Namespace = "small"
	f.must(store.Of[resource.App](f.st).Create(f.ctx, quota))
	large := newApp("large", "hello:1")
	large.Spec.MemoryBytes = 64 << 30
	f.must(store.Of[resource.App](f.st).Create(f.ctx, large))
	mine := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "taken"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"x": "y"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"x": "y"}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: container, Image: "x"}}}}}}
	_, err = client.AppsV1().Deployments("default").Create(f.ctx, mine, metav1.CreateOptions{})
	f.must(err)
	f.must(store.Of[resource.App](f.st).Create(f.ctx, newApp("taken", "hello:1")))
	invalid := newApp("invalid", "hello:1")
	invalid.Spec.Env = map[string]string{"=": "x"}
	f.must(store.Of[resource.App](f.st).Create(f.ctx, invalid))
	f.app("quota", "refused", says(resource.AppDeployed, "exceeded quota"))
	f.app("large", "without room", says(resource.AppInstancesReady, "No machine has room"))
	f.app("taken", "refused", says(resource.AppDeployed, "There is a Deployment taken in namespace default already"))
	f.app("invalid", "refused", says(resource.AppDeployed, "Kubernetes refuses the app"))

	// A webhook whose server has gone is named, and forgotten when it goes.
	fail, none := admissionv1.Fail, admissionv1.SideEffectClassNone
	hook := func(name string, op admissionv1.OperationType, resource ...string) {
		t.Helper()
		w := &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionv1.ValidatingWebhook{{
			Name: name + ".example.com", FailurePolicy: &fail, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
			ClientConfig:   admissionv1.WebhookClientConfig{URL: new("https://127.0.0.1:1/")},
			ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{labelName: "hooked"}},
			Rules: []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{op},
				Rule: admissionv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: resource}}}}}}
		_, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(f.ctx, w, metav1.CreateOptions{})
		f.must(err)
	}
	unhook := func(name string) {
		t.Helper()
		f.must(client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(f.ctx, name, metav1.DeleteOptions{}))
	}
	hook("gone", admissionv1.Create, "deployments")
	f.until("the webhook is in force", func() error {
		dry := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "dry", Labels: map[string]string{labelName: "hooked"}}, Spec: *mine.Spec.DeepCopy()}
		_, err := client.AppsV1().Deployments("default").Create(f.ctx, dry, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil {
			return errors.New("a deployment passes")
		}
		return nil
	})
	f.must(store.Of[resource.App](f.st).Create(f.ctx, newApp("hooked", "hello:1")))
	a = f.app("hooked", "refused", says(resource.AppDeployed, `failed calling webhook "gone.example.com"`))
	if a.Status.Conditions.Get(resource.AppDeployed).Final || a.Status.Phase == resource.Failed {
		t.Errorf("refused by a webhook: %+v, want it waiting", a.Status)
	}
	unhook("gone")
	f.app("hooked", "ready without the webhook", ready)

	// So is who is in the way of deleting.
	hold := func(patch string) {
		t.Helper()
		_, err := client.CoreV1().Services("default").Patch(f.ctx, "hooked", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		f.must(err)
	}
	hold(`{"metadata":{"finalizers":["example.com/hold"]}}`)
	hook("no", admissionv1.Delete, "pods")
	f.until("the webhook is in force", func() error {
		err := client.CoreV1().Pods("default").DeleteCollection(f.ctx, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}},
			metav1.ListOptions{LabelSelector: labelName + "=hooked"})
		if err == nil {
			return errors.New("a deletion passes")
		}
		return nil
	})
	_, err = store.Of[resource.App](f.st).MarkDeleted(f.ctx, "acme/web/shop/hooked")
	f.must(err)
	f.app("hooked", "held by a webhook", says(resource.AppInstancesReady, `failed calling webhook "no.example.com"`))
	unhook("no")
	f.app("hooked", "held by a finalizer", says(resource.AppInstancesReady, `Service default/hooked is kept by the finalizer "example.com/hold"`))
	hold(`{"metadata":{"finalizers":null}}`)
	f.gone("hooked")

	// Deletion leaves nothing, and what is the tenant's own alone.
	for _, name := range []string{"hello", "quota", "taken", "invalid"} {
		_, err := store.Of[resource.App](f.st).MarkDeleted(f.ctx, "acme/web/shop/"+name)
		f.must(err)
	}
	for _, name := range []string{"hello", "quota", "taken", "invalid"} {
		f.gone(name)
	}
	for _, namespace := range []string{"default", "other", "small"} {
		list, err := client.AppsV1().Deployments(namespace).List(f.ctx, metav1.ListOptions{})
		f.must(err)
		for _, d := range list.Items {
			if d.Name != "taken" && d.Name != "large" {
				t.Errorf("deployment %s/%s is left", namespace, d.Name)
			}
		}
	}
	if _, err := store.Of[resource.Route](f.st).Get(f.ctx, route.Name); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the route of a deleted app: %v, want none", err)
	}

	// With its workspace an app goes without a word to the cluster.
	clusters.set(nil, errors.New("the plane has stopped"))
	_, err = store.Of[resource.Workspace](f.st).MarkDeleted(f.ctx, "acme/web/shop")
	f.must(err)
	f.gone("large")
	routes, _, err := store.Of[resource.Route](f.st).List(f.ctx, "", "", 0)
	f.must(err)
	if len(routes) != 0 {
		t.Errorf("%d routes are left, want none", len(routes))
	}
}

func want404(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("it is there (%w)", err)
}
