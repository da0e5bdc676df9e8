package apps

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	appsapply "k8s.io/client-go/applyconfigurations/apps/v1"
	coreapply "k8s.io/client-go/applyconfigurations/core/v1"
	metaapply "k8s.io/client-go/applyconfigurations/meta/v1"

	"github.com/multipaas/multipaas/modules/resource"
)

const (
	// manager is who owns the fields that we apply, and what our objects are
	// labelled with.
	manager      = "multipaas"
	labelName    = "app.kubernetes.io/name"
	labelManager = "app.kubernetes.io/managed-by"
	container    = "app"
	portName     = "app"

	defaultPort      = 8080
	defaultNamespace = "default"

	// A pod that is to go is out of the balancer within a second and out of
	// kube-proxy within another; it serves on for one more.
	drainSeconds = 3
	// Then it has this long, the drain included, to finish what it began.
	graceSeconds = 30
	// After 5 minutes without progress a roll-out has failed: large images on
	// slow disks are pulled in two.
	progressSeconds = 300
	// Roll back by hand to one of these; each costs a ReplicaSet.
	revisions = 3
)

// objects are what an app is in its cluster.
type objects struct {
	deployment *appsapply.DeploymentApplyConfiguration
	service    *coreapply.ServiceApplyConfiguration
}

func labels(app *resource.App) map[string]string {
	return map[string]string{labelName: app.Name, labelManager: manager}
}

func namespaceOf(app *resource.App) string { return cmp.Or(app.Spec.Namespace, defaultNamespace) }

func portOf(app *resource.App) int { return cmp.Or(app.Spec.Port, defaultPort) }

// render returns the objects of app, which runs image.
func render(app *resource.App, image string) objects {
	namespace, port := namespaceOf(app), int32(portOf(app))

	env := []*coreapply.EnvVarApplyConfiguration{coreapply.EnvVar().WithName("PORT").WithValue(strconv.Itoa(int(port)))}
	for _, name := range slices.Sorted(maps.Keys(app.Spec.Env)) {
		if name != "PORT" {
			env = append(env, coreapply.EnvVar().WithName(name).WithValue(literal(app.Spec.Env[name])))
		}
	}
	probe := coreapply.Probe().WithPeriodSeconds(2).WithTimeoutSeconds(2).WithFailureThreshold(3)
	if app.Spec.HealthPath != "" {
		probe.WithHTTPGet(coreapply.HTTPGetAction().WithPath(app.Spec.HealthPath).WithPort(intstr.FromInt32(port)))
	} else {
		probe.WithTCPSocket(coreapply.TCPSocketAction().WithPort(intstr.FromInt32(port)))
	}
	main := coreapply.Container().
		WithName(container).
		WithImage(image).
		WithImagePullPolicy(corev1.PullIfNotPresent).
		WithCommand(literals(app.Spec.Command)...).
		WithArgs(literals(app.Spec.Args)...).
		WithEnv(env...).
		WithPorts(coreapply.ContainerPort().WithName(portName).WithContainerPort(port).WithProtocol(corev1.ProtocolTCP)).
		WithReadinessProbe(probe).
		WithSecurityContext(coreapply.SecurityContext().WithAllowPrivilegeEscalation(false)).
		// Kubelet itself waits: the image needs no `sleep`. Endpoints are gone
		// before the app is told to end.
		WithLifecycle(coreapply.Lifecycle().WithPreStop(coreapply.LifecycleHandler().
			WithSleep(coreapply.SleepAction().WithSeconds(drainSeconds))))
	for i, v := range app.Spec.Volumes {
		main.WithVolumeMounts(coreapply.VolumeMount().WithName(volumeName(i)).WithMountPath(v.Path))
	}
	if amounts := amountsOf(app.Spec); len(amounts) > 0 {
		main.WithResources(coreapply.ResourceRequirements().WithRequests(amounts).WithLimits(amounts))
	}

	pod := coreapply.PodTemplateSpec().WithLabels(labels(app)).WithSpec(coreapply.PodSpec().
		WithContainers(main).
		WithTerminationGracePeriodSeconds(graceSeconds).
		// An app has no business with the cluster's API unless its owner says so
		// in a manifest of his own.
		WithAutomountServiceAccountToken(false).
		WithEnableServiceLinks(false).
		// Over zones, which are hosts where the operator names none, and machines.
		WithTopologySpreadConstraints(spread(app, corev1.LabelTopologyZone), spread(app, corev1.LabelHostname)))

	strategy := appsapply.DeploymentStrategy().WithType(appsv1.RollingUpdateDeploymentStrategyType).
		WithRollingUpdate(appsapply.RollingUpdateDeployment().
			WithMaxUnavailable(intstr.FromInt32(0)).
			WithMaxSurge(intstr.FromInt32(1)))
	if len(app.Spec.Volumes) > 0 {
		if app.Spec.Instances < 2 { // several have shared volumes only, which the API has seen to
			// Two releases never write to one volume, and a volume is on one machine at a time.
			strategy = appsapply.DeploymentStrategy().WithType(appsv1.RecreateDeploymentStrategyType)
		}
		pod.Spec.WithVolumes(volumes(app)...).
			// What the app runs as may write: kubelet gives the volume to the group, once.
			WithSecurityContext(coreapply.PodSecurityContext().
				WithFSGroup(volumesGroup).WithFSGroupChangePolicy(corev1.FSGroupChangeOnRootMismatch))
	}

	deployment := appsapply.Deployment(app.Name, namespace).WithLabels(labels(app)).WithSpec(appsapply.DeploymentSpec().
		WithReplicas(int32(app.Spec.Instances)).
		WithSelector(metaapply.LabelSelector().WithMatchLabels(labels(app))).
		WithStrategy(strategy).
		WithRevisionHistoryLimit(revisions).
		// Paused, by `kubectl rollout pause`, it would take no release on and say nothing of it.
		WithPaused(false).
		WithProgressDeadlineSeconds(progressSeconds).
		WithTemplate(pod))

	service := coreapply.Service(app.Name, namespace).WithLabels(labels(app)).WithSpec(coreapply.ServiceSpec().
		WithSelector(labels(app)).
		WithPorts(coreapply.ServicePort().
			WithName(portName).
			WithPort(port).
			WithTargetPort(intstr.FromInt32(port)).
			WithProtocol(corev1.ProtocolTCP)))

	return objects{deployment, service}
}

// volumesGroup is the group that may write to an app's volumes, whatever its image runs as.
const volumesGroup = 2000

func volumeName(i int) string { return "volume-" + strconv.Itoa(i) }

func volumes(app *resource.App) (out []*coreapply.VolumeApplyConfiguration) {
	for i, v := range app.Spec.Volumes {
		out = append(out, coreapply.Volume().WithName(volumeName(i)).
			WithPersistentVolumeClaim(coreapply.PersistentVolumeClaimVolumeSource().WithClaimName(v.Claim)))
	}
	return out
}

func spread(app *resource.App, key string) *coreapply.TopologySpreadConstraintApplyConfiguration {
	return coreapply.TopologySpreadConstraint().
		WithMaxSkew(1).
		WithTopologyKey(key).
		// Two instances on one machine are better than one.
		WithWhenUnsatisfiable(corev1.ScheduleAnyway).
		WithLabelSelector(metaapply.LabelSelector().WithMatchLabels(labels(app))).
		WithMatchLabelKeys("pod-template-hash")
}

// literal is s as kubelet has to read it to make s of it: it replaces $(NAME) in
// values and arguments, and takes $$ for $.
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }

func literals(list []string) []string {
	var out []string
	for _, s := range list {
		out = append(out, literal(s))
	}
	return out
}

func amountsOf(spec resource.AppSpec) corev1.ResourceList {
	amounts := corev1.ResourceList{}
	if spec.MilliCPU > 0 {
		amounts[corev1.ResourceCPU] = *apiresource.NewMilliQuantity(spec.MilliCPU, apiresource.DecimalSI)
	}
	if spec.MemoryBytes > 0 {
		amounts[corev1.ResourceMemory] = *apiresource.NewQuantity(spec.MemoryBytes, apiresource.BinarySI)
	}
	return amounts
}

// sum tells objects apart, so that only what changed is applied.
func (o objects) sum() (string, error) {
	data, err := json.Marshal([]any{o.deployment, o.service})
	if err != nil {
		return "", err
	}
	return digest.FromBytes(data).String(), nil
}

// hostOf is where app is reached. A host name has at most 253 characters, and
// each label of it 63.
func hostOf(app *resource.App, domain string) (string, error) {
	host := strings.ToLower(strings.Join([]string{app.Name, app.Workspace, app.Organization, app.Account, domain}, "."))
	if len(host) > 253 {
		return "", &refusedError{never(resource.AppRouteReady, reasonHostName, fmt.Sprintf(
			"The host name %s would have %d characters, at most 253 are possible. Use shorter names.", host, len(host)))}
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 {
			return "", &refusedError{never(resource.AppRouteReady, reasonHostName, fmt.Sprintf(
				"%q in the host name %s has %d characters, 1 to 63 are possible. Use another name.", label, host, len(label)))}
		}
	}
	return host, nil
}
