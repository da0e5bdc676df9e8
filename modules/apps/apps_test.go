package apps

import (
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/multipaas/multipaas/modules/resource"
)

func newApp(name, image string) *resource.App {
	a := &resource.App{InWorkspace: resource.InWorkspace{Account: "acme", Organization: "web", Workspace: "shop"}}
	a.Name = name
	a.Generation = 1
	a.Spec = resource.AppSpec{Namespace: "default", Image: image, Instances: 2, Port: 8080}
	return a
}

func TestFullReference(t *testing.T) {
	t.Parallel()
	const registry = "10.0.0.1:5000"
	for image, want := range map[string]string{
		"hello":                                   registry + "/acme/web/hello:latest",
		"hello:1":                                 registry + "/acme/web/hello:1",
		"team/hello:1":                            registry + "/acme/web/team/hello:1",
		"acme/web/hello:1":                        registry + "/acme/web/hello:1",
		"umbrella/core/hello:1":                   registry + "/acme/web/umbrella/core/hello:1", // never another tenant's
		registry + "/acme/web/hello:1":            registry + "/acme/web/hello:1",
		"registry.lab:5000/acme/web/hello:1":      registry + "/acme/web/hello:1",
		"registry.lab:5000/umbrella/core/x:1":     "",
		registry + "/umbrella/core/hello:1":       "",
		registry + "/acme/webshop/hello:1":        "",
		"multipaas.internal/hello:1":              "multipaas.internal/hello:1",
		"registry.example/library/nginx":          "registry.example/library/nginx:latest",
		"localhost/x:1":                           "localhost/x:1",
		"hello@sha256:" + strings.Repeat("0", 64): registry + "/acme/web/hello@sha256:" + strings.Repeat("0", 64),
		// The digest decides.
		"hello:1@sha256:" + strings.Repeat("0", 64):                          registry + "/acme/web/hello@sha256:" + strings.Repeat("0", 64),
		"registry.example/library/nginx:1@sha256:" + strings.Repeat("0", 64): "registry.example/library/nginx@sha256:" + strings.Repeat("0", 64),
		"":                "",
		"Hello:1":         "",
		"hello:1:2":       "",
		"hello 1":         "",
		"../x/y:1":        "",
		"acme/web/":       "",
		"hello@sha256:12": "",
	} {
		got, err := fullReference(registry, []string{"registry.lab:5000"}, "acme", "web", image)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v; want %q", image, got, err, want)
		}
	}
}

func TestHost(t *testing.T) {
	t.Parallel()
	app := newApp("hello", "hello:1")
	if got, err := hostOf(app, "Lab.Example"); err != nil || got != "hello.shop.web.acme.lab.example" {
		t.Errorf("got %q, %v", got, err)
	}
	long := strings.Repeat("x", 57)
	app.Name, app.Workspace, app.Organization, app.Account = long, long, long, long
	if _, err := hostOf(app, strings.Repeat("y", 30)+".example"); err == nil || !strings.Contains(err.Error(), "at most 253") {
		t.Errorf("270 characters: %v, want an error", err)
	}
	if _, err := hostOf(newApp("hello", "x"), strings.Repeat("y", 64)+".example"); err == nil {
		t.Error("a label of 64 characters: want an error")
	}
}

func TestRender(t *testing.T) {
	t.Parallel()
	app := newApp("hello", "hello:1")
	app.Spec.Env = map[string]string{"B": "2", "A": "1", "PORT": "99"}
	app.Spec.MilliCPU, app.Spec.MemoryBytes, app.Spec.HealthPath = 250, 64<<20, "/healthz"
	o := render(app, "img@sha256:1")
	pod := o.deployment.Spec.Template.Spec
	c := pod.Containers[0]
	var env []string
	for _, e := range c.Env {
		env = append(env, *e.Name+"="+*e.Value)
	}
	if want := []string{"PORT=8080", "A=1", "B=2"}; !slices.Equal(env, want) {
		t.Errorf("env %v, want %v", env, want)
	}
	if got := c.Resources.Limits.Cpu().String() + " " + c.Resources.Requests.Memory().String(); got != "250m 64Mi" {
		t.Errorf("resources %s, want 250m 64Mi", got)
	}
	if *c.ReadinessProbe.HTTPGet.Path != "/healthz" || c.ReadinessProbe.TCPSocket != nil {
		t.Errorf("probe %+v, want GET /healthz", c.ReadinessProbe)
	}
	if *c.SecurityContext.AllowPrivilegeEscalation {
		t.Error("privilege escalation is allowed")
	}
	if r := o.deployment.Spec.Strategy.RollingUpdate; r.MaxUnavailable.IntValue() != 0 || r.MaxSurge.IntValue() != 1 {
		t.Errorf("rolling update %+v, want 0 unavailable, 1 more", r)
	}
	first, err := o.sum()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := render(app, "img@sha256:1").sum(); again != first {
		t.Error("the same app renders to something else")
	}
	app.Spec.Instances++
	if other, _ := render(app, "img@sha256:1").sum(); other == first {
		t.Error("a scaled app renders to the same")
	}
	app.Spec.HealthPath, app.Spec.MilliCPU, app.Spec.MemoryBytes = "", 0, 0
	c = render(app, "img").deployment.Spec.Template.Spec.Containers[0]
	if c.ReadinessProbe.TCPSocket == nil || c.Resources != nil {
		t.Errorf("without a path and amounts: probe %+v, resources %+v", c.ReadinessProbe, c.Resources)
	}
}

func deployment(generation, observed int64, replicas, updated, ready int32, conditions ...appsv1.DeploymentCondition) *appsv1.Deployment {
	d := &appsv1.Deployment{}
	d.Generation = generation
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: observed, Replicas: replicas, UpdatedReplicas: updated, ReadyReplicas: ready,
		AvailableReplicas: ready, Conditions: conditions}
	return d
}

func podWith(s corev1.ContainerStatus) *corev1.Pod {
	s.Name = container
	return &corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{s}}}
}

func waiting(reason, message string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

func ended(reason string, code int32) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: reason, ExitCode: code}}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	ready := &resource.Route{}
	ready.Status.Conditions.Set(resource.Condition{Type: resource.RouteReady, Status: resource.True})
	failure := func(message string) appsv1.DeploymentCondition {
		return appsv1.DeploymentCondition{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Message: message}
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Time{Time: time.Now()}}}
	unschedulable := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/2 nodes are available: 2 Insufficient memory."}}}}

	tests := []struct {
		name  string
		seen  seen
		was   resource.Phase
		phase resource.Phase
		// of the first condition that isn't True
		condition, text string
		final           bool
	}{
		{"ready", seen{host: "h", deployment: deployment(1, 1, 2, 2, 2), route: ready}, "", resource.Ready, "", "", false},
		{"ready without a route", seen{deployment: deployment(1, 1, 2, 2, 2)}, "", resource.Ready, "", "", false},
		{"no route yet", seen{host: "h", deployment: deployment(1, 1, 2, 2, 2)}, "", resource.Degraded, resource.AppRouteReady, "balancer", false},
		{"starting", seen{deployment: deployment(1, 1, 2, 2, 0)}, "", resource.Creating, resource.AppInstancesReady, "2 of 2 instances run the newest release, 0 are ready", false},
		{"half", seen{deployment: deployment(1, 1, 2, 2, 1)}, resource.Creating, resource.Degraded, resource.AppInstancesReady, "1 are ready", false},
		{"not looked at", seen{deployment: deployment(2, 1, 2, 2, 2)}, resource.Ready, resource.Degraded, resource.AppInstancesReady, "0 of 2", false},
		{"older ones leave", seen{deployment: deployment(1, 1, 3, 2, 3)}, resource.Ready, resource.Degraded, resource.AppInstancesReady, "older ones are leaving", false},
		{"quota", seen{deployment: deployment(1, 1, 0, 0, 0, failure(`pods "x" is forbidden: exceeded quota: small`))}, "", resource.Failed, resource.AppDeployed, "exceeded quota", true},
		{"webhook", seen{deployment: deployment(1, 1, 0, 0, 0, failure("failed calling webhook"))}, "", resource.Creating, resource.AppDeployed, "webhook", false},
		{"unschedulable", seen{deployment: deployment(1, 1, 2, 2, 0), pods: []*corev1.Pod{unschedulable}}, "", resource.Creating, resource.AppInstancesReady, "No machine has room for an instance: 0/2 nodes", false},
		{"pull", seen{deployment: deployment(1, 1, 2, 2, 0), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{State: waiting("ImagePullBackOff", "connection refused")})}}, "", resource.Creating, resource.AppInstancesReady, "The image hello:1 can't be pulled: connection refused.", false},
		{"no such image", seen{deployment: deployment(1, 1, 2, 2, 0), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{State: waiting("ErrImagePull", "x: not found")})}}, "", resource.Failed, resource.AppInstancesReady, "not found", true},
		{"first crash", seen{deployment: deployment(1, 1, 2, 2, 0), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{State: ended("Error", 3)})}}, "", resource.Creating, resource.AppInstancesReady, "it ended with exit code 3, once so far", false},
		{"crash loop", seen{deployment: deployment(1, 1, 2, 2, 0), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{RestartCount: 4, State: waiting("CrashLoopBackOff", "back-off"), LastTerminationState: ended("Error", 137)})}}, "", resource.Failed, resource.AppInstancesReady, "exit code 137, 4 times so far", true},
		{"crash says where to look", seen{deployment: deployment(1, 1, 2, 2, 0), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{State: ended("Error", 3)})}}, "", resource.Creating, resource.AppInstancesReady, "once so far. Its log says more.", false},
		{"no such program", seen{deployment: deployment(1, 1, 2, 2, 0), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{RestartCount: 3, State: waiting("CrashLoopBackOff", ""), LastTerminationState: ended("StartError", 128)})}}, "", resource.Failed, resource.AppInstancesReady, "3 times so far.$", true},
		{"memory", seen{deployment: deployment(1, 1, 2, 2, 1), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{RestartCount: 3, State: waiting("CrashLoopBackOff", ""), LastTerminationState: ended("OOMKilled", 137)})}}, resource.Ready, resource.Degraded, resource.AppInstancesReady, "more memory than it may have", true},
		{"doesn't listen", seen{deployment: deployment(1, 1, 2, 2, 0), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{State: running})}}, "", resource.Creating, resource.AppInstancesReady, "doesn't listen on port 8080", false},
		{"stuck", seen{deployment: deployment(1, 1, 2, 2, 0, appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionFalse}), pods: []*corev1.Pod{podWith(corev1.ContainerStatus{State: running})}}, "", resource.Failed, resource.AppInstancesReady, "Nothing has moved for 5 minutes", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			app := newApp("hello", "hello:1")
			app.Generation, app.Status.Phase = 7, tt.was
			got := status(app, tt.seen)
			if got.Phase != tt.phase || got.ObservedGeneration != 7 {
				t.Errorf("phase %s of generation %d, want %s of 7", got.Phase, got.ObservedGeneration, tt.phase)
			}
			var wrong resource.Condition
			for _, c := range got.Conditions {
				if c.Status != resource.True {
					wrong = c
					break
				}
			}
			if wrong.Type != tt.condition || !strings.Contains(wrong.Message+"$", tt.text) || wrong.Final != tt.final {
				t.Errorf("got %+v, want %s %q, final %v", wrong, tt.condition, tt.text, tt.final)
			}
		})
	}
}

func TestNoImageSaysWhatThereIs(t *testing.T) {
	t.Parallel()
	err := &NoImageError{Ref: "r/acme/web/helo:1", Have: []string{"hello:1", "shop:2"}}
	if got, want := err.Error(), "There is no image r/acme/web/helo:1. There are hello:1, shop:2."; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
