package apps

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/multipaas/multipaas/modules/resource"
)

// Reasons of conditions, for programs.
const (
	reasonNoImage      = "NoSuchImage"
	reasonImageUnknown = "ImageUnknown"
	reasonUnfit        = "UnfitImage"
	reasonUnreachable  = "WorkspaceNotReady"
	reasonRefused      = "Refused"
	reasonConflict     = "NameTaken"
	reasonTooMany      = "TooManyObjects"
	reasonApplied      = "Applied"
	reasonReady        = "Ready"
	reasonRollingOut   = "RollingOut"
	reasonTimeout      = "TookTooLong"
	reasonHostName     = "HostNameTooLong"
	reasonRoute        = "BalancerNotReady"
	reasonRemoving     = "Removing"
)

// failedTimes: an instance that ended this often does so for a reason. With
// Kubernetes' backoff it takes about 40 s to get there.
const failedTimes = 3

// seen is what the status of an app is made of.
type seen struct {
	host       string // "": not routed
	deployment *appsv1.Deployment
	pods       []*corev1.Pod
	route      *resource.Route
}

// status returns what to tell about app, whose image is found and whose
// objects are applied.
func status(app *resource.App, s seen) resource.AppStatus {
	st := app.Status
	st.Conditions = slices.Clone(st.Conditions)
	if st.InstancesApplied != app.Spec.Instances {
		st.ScaledBy = "" // what the platform was told since
	}
	st.InstancesApplied = app.Spec.Instances
	st.Host, st.URL = s.host, ""
	if s.host != "" {
		st.URL = "https://" + s.host
	}
	st.InstancesReady = int(s.deployment.Status.ReadyReplicas)
	st.Conditions.Set(imageFound)
	st.Conditions.Set(deployed(s.deployment))
	st.Conditions.Set(instances(app, s.deployment, s.pods))
	setRoute(&st.Conditions, s)
	return settle(app, st)
}

// settle draws phase and generation from the conditions.
func settle(app *resource.App, st resource.AppStatus) resource.AppStatus {
	ready, final := true, false
	for _, c := range st.Conditions {
		ready = ready && c.Status == resource.True
		final = final || c.Status == resource.False && c.Final
	}
	for _, t := range []string{resource.AppImageFound, resource.AppDeployed, resource.AppInstancesReady} {
		ready = ready && st.Conditions.Is(t)
	}
	switch {
	case app.Deleting():
		st.Phase = resource.Deleting
	case ready:
		st.Phase = resource.Ready
	case final && st.InstancesReady == 0:
		st.Phase = resource.Failed
	case st.InstancesReady > 0 || app.Status.Phase == resource.Ready || app.Status.Phase == resource.Degraded:
		st.Phase = resource.Degraded
	default:
		st.Phase = resource.Creating
	}
	st.ObservedGeneration = app.Generation
	return st
}

// deployed says whether Kubernetes takes the app's instances on.
func deployed(d *appsv1.Deployment) resource.Condition {
	c := resource.Condition{Type: resource.AppDeployed, Status: resource.True, Reason: reasonApplied}
	for _, dc := range d.Status.Conditions {
		if dc.Type == appsv1.DeploymentReplicaFailure && dc.Status == corev1.ConditionTrue {
			c.Status, c.Reason = resource.False, reasonRefused
			c.Message = "Kubernetes refuses an instance: " + sentence(dc.Message)
			// Quotas and pod security: somebody has to change something. Other
			// failures to create, such as a webhook that doesn't answer, pass.
			c.Final = strings.Contains(dc.Message, "forbidden")
		}
	}
	return c
}

// instances says whether as many instances as wanted run the newest release,
// and if not, what is wrong with the first that has something to tell.
func instances(app *resource.App, d *appsv1.Deployment, pods []*corev1.Pod) resource.Condition {
	want, s := app.Spec.Instances, d.Status
	c := resource.Condition{Type: resource.AppInstancesReady, Status: resource.True, Reason: reasonReady}
	c.Message = fmt.Sprintf("%d instances are ready.", want)
	if want == 1 {
		c.Message = "1 instance is ready."
	}
	if by := app.Status.ScaledBy; by != "" && app.Status.InstancesApplied == want {
		c.Message += fmt.Sprintf(" So many were asked for in the cluster, by %s; `mp apps scale` sets another number.", by)
	}
	current := s.ObservedGeneration >= d.Generation
	if current && int(s.UpdatedReplicas) == want && int(s.AvailableReplicas) == want && int(s.Replicas) == want {
		return c
	}
	c.Status, c.Reason = resource.False, reasonRollingOut
	updated := 0
	if current {
		updated = int(s.UpdatedReplicas)
	}
	c.Message = fmt.Sprintf("%d of %d instances run the newest release, %d are ready.", updated, want, s.ReadyReplicas)
	if int(s.Replicas) > want && updated == want {
		c.Message = fmt.Sprintf("%d instances are ready, older ones are leaving.", s.ReadyReplicas)
	}
	if t := worst(app, pods); t.message != "" {
		c.Reason, c.Final = t.reason, t.final
		c.Message += " " + t.message
	}
	if current {
		for _, dc := range s.Conditions {
			if dc.Type == appsv1.DeploymentProgressing && dc.Status == corev1.ConditionFalse && !c.Final {
				c.Final = true
				if c.Reason == reasonRollingOut {
					c.Reason = reasonTimeout
				}
				c.Message += fmt.Sprintf(" Nothing has moved for %d minutes.", progressSeconds/60)
			}
		}
	}
	return c
}

// trouble is what is wrong with an instance.
type trouble struct {
	reason, message string
	final           bool
}

// worst returns the trouble of the instances that tells most: a final one, else
// that of the newest instance.
func worst(app *resource.App, pods []*corev1.Pod) trouble {
	pods = slices.Clone(pods)
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	var first trouble
	for _, p := range pods {
		t := troubleOf(app, p)
		if t.final {
			return t
		}
		if first.message == "" {
			first = t
		}
	}
	return first
}

func troubleOf(app *resource.App, p *corev1.Pod) trouble {
	if p.DeletionTimestamp != nil {
		return trouble{}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			why := "No machine has room for an instance: "
			if strings.Contains(c.Message, "persistentvolumeclaim") {
				why = "An instance waits for its volume: "
			}
			return trouble{reason: c.Reason, message: why + sentence(c.Message)}
		}
	}
	if p.Status.Phase == corev1.PodFailed && p.Status.Reason != "" { // evicted, mostly
		return trouble{reason: p.Status.Reason, message: "An instance was stopped: " + sentence(p.Status.Message)}
	}
	for i := range p.Status.ContainerStatuses {
		if s := &p.Status.ContainerStatuses[i]; s.Name == container && !s.Ready {
			return troubleIn(app, s)
		}
	}
	return trouble{}
}

func troubleIn(app *resource.App, s *corev1.ContainerStatus) trouble {
	ended := cmp.Or(s.State.Terminated, s.LastTerminationState.Terminated)
	if w := s.State.Waiting; w != nil {
		switch w.Reason {
		case "", "ContainerCreating", "PodInitializing":
			return trouble{}
		case "CrashLoopBackOff":
		case "ErrImagePull", "ImagePullBackOff":
			return trouble{w.Reason, cantPull(app, w.Message), strings.Contains(w.Message, "not found")}
		case "InvalidImageName":
			return trouble{w.Reason, cantPull(app, w.Message), true}
		default: // RunContainerError, CreateContainerConfigError...
			return trouble{w.Reason, "An instance can't be started: " + sentence(w.Message), int(s.RestartCount) >= failedTimes}
		}
	}
	if ended != nil && (s.State.Running == nil || s.RestartCount > 0) {
		how, hint := fmt.Sprintf("it ended with exit code %d", ended.ExitCode), " Its log says more."
		switch {
		case ended.Reason == "OOMKilled":
			how = "it used more memory than it may have"
		case ended.Reason == "StartError" || ended.Reason == "ContainerCannotRun":
			how, hint = "it could not be started: "+strings.TrimSuffix(sentence(ended.Message), "."), "" // it has written no log
		}
		reason := ended.Reason
		if w := s.State.Waiting; w != nil {
			reason = w.Reason
		}
		return trouble{reason, fmt.Sprintf("An instance fails: %s, %s so far.%s", how, times(int(s.RestartCount)), hint),
			int(s.RestartCount) >= failedTimes}
	}
	if s.State.Running != nil {
		message := fmt.Sprintf("An instance runs, but doesn't listen on port %d yet.", portOf(app))
		if path := app.Spec.HealthPath; path != "" {
			message = fmt.Sprintf("An instance runs, but GET %s on port %d doesn't answer well yet.", path, portOf(app))
		}
		return trouble{reason: "NotReady", message: message}
	}
	return trouble{}
}

func cantPull(app *resource.App, why string) string {
	return fmt.Sprintf("The image %s can't be pulled: %s", app.Spec.Image, sentence(why))
}

func times(n int) string {
	switch n {
	case 0, 1:
		return "once"
	case 2:
		return "twice"
	}
	return fmt.Sprintf("%d times", n)
}

// setRoute tells what the balancer says about the app's route. An app without a
// route has no such condition.
func setRoute(cs *resource.Conditions, s seen) {
	if s.host == "" {
		*cs = slices.DeleteFunc(*cs, func(c resource.Condition) bool { return c.Type == resource.AppRouteReady })
		return
	}
	c := not(resource.AppRouteReady, reasonRoute, "The balancer hasn't taken the route up yet.")
	if s.route != nil {
		if r := s.route.Status.Conditions.Get(resource.RouteReady); r != nil {
			c.Status, c.Reason, c.Message, c.Final = r.Status, r.Reason, r.Message, r.Final
		}
	}
	cs.Set(c)
}

// sentence bounds what Kubernetes says, and ends it.
func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return "Kubernetes gives no reason."
	}
	const most = 400
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}
