package api

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// AppPatch is the body of apps.patch: what is left out stays.
type AppPatch struct {
	Spec struct {
		Image     *string `json:"image,omitempty" maxLength:"512"`
		Instances *int    `json:"instances,omitempty" minimum:"0" maximum:"1000"`
	} `json:"spec"`
}

// Limits and defaults of apps.
const (
	maxEnvBytes      = 32 << 10 // Linux takes 128 KiB for one variable; a pod's object must stay far below 1.5 MiB
	maxArguments     = 256
	defaultPort      = 8080
	defaultNamespace = "default"

	portVariable = "PORT" // each instance has it, with the app's port
)

var claimName = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$`)

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,252}$`)

func (a *API) appOperations() {
	apps := &collection[resource.App, *resource.App]{
		api:     a,
		noun:    "app",
		path:    workspacesPath + "/{workspace}/apps",
		example: "hello",
		fresh: func(place, name string) *resource.App {
			return &resource.App{
				InWorkspace: resource.NewInWorkspace(place, name),
				Status:      resource.AppStatus{State: resource.State{Phase: resource.Pending}},
			}
		},
		adopt:    func(now, body *resource.App) { now.Spec = body.Spec },
		complete: completeApp,
		check: func(ctx context.Context, now, was *resource.App) error {
			port, setsPort := now.Spec.Env[portVariable]
			if was != nil {
				old, had := was.Spec.Env[portVariable]
				setsPort = setsPort && (!had || old != port) // it may have it from before this was refused
			}
			if err := checkApp(now.Spec, setsPort); err != nil {
				return err
			}
			if was != nil && now.Spec.Namespace != was.Spec.Namespace {
				return invalid("body.spec.namespace", fmt.Sprintf("can't be changed: the app is in %q", was.Spec.Namespace),
					"Deploy the app under another name there, then delete this one.")
			}
			return a.checkShared(ctx, now, was)
		},
		verb: func(now, was *resource.App) string {
			scaled := *was
			scaled.Spec.Instances = now.Spec.Instances
			if same(&scaled, now) {
				return "scale"
			}
			return "update"
		},
		made: func() { failpoint.Reach("app/deploy/committed") },
		marked: func(context.Context, *resource.App) error {
			failpoint.Reach("app/delete/marked")
			return nil
		},
	}
	apps.list("The apps of a workspace")
	apps.get("One app")
	apps.put("Deploy an app, or change it")
	patch(apps, "Scale an app or change its image", func(now *resource.App, body AppPatch) {
		if body.Spec.Image != nil {
			now.Spec.Image, now.Spec.Release = *body.Spec.Image, 0
		}
		set(&now.Spec.Instances, body.Spec.Instances)
	})
	apps.remove("Delete an app")
}

func completeApp(now, was *resource.App) {
	switch {
	case was == nil:
		now.Spec.Release = 1
	case now.Spec.Release == 0 || now.Spec.Image != was.Spec.Image:
		now.Spec.Release = was.Spec.Release + 1
	default:
		now.Spec.Release = was.Spec.Release
	}
	if was != nil {
		now.Spec.Namespace = cmp.Or(now.Spec.Namespace, was.Spec.Namespace)
	}
	now.Spec.Namespace = cmp.Or(now.Spec.Namespace, defaultNamespace)
	now.Spec.Port = cmp.Or(now.Spec.Port, defaultPort)
}

// checkApp says everything that is wrong with spec, which may set the variable PORT anew.
func checkApp(spec resource.AppSpec, setsPort bool) error {
	var fields []ProblemField
	wrong := func(field, format string, args ...any) {
		if len(fields) < 20 { // an environment can be wrong in hundreds of places
			fields = append(fields, ProblemField{"body.spec." + field, short(fmt.Sprintf(format, args...))})
		}
	}
	switch {
	case spec.Image == "":
		wrong("image", "an image is missing, such as hello:1")
	case len(spec.Image) > 512 || reference.ReferenceRegexp.FindString(spec.Image) != spec.Image:
		wrong("image", "%q is not an image reference, such as hello:1", short(spec.Image))
	}
	if spec.Instances < 0 || spec.Instances > resource.MaxInstances {
		wrong("instances", "%d is out of bounds: an app has 0 to %d instances", spec.Instances, resource.MaxInstances)
	}
	if spec.Port < 1 || spec.Port > 65535 {
		wrong("port", "%d is not a port", spec.Port)
	}
	if err := resource.CheckName("namespace", spec.Namespace); err != nil {
		wrong("namespace", "%v", err)
	} else if resource.IsSystemNamespace(spec.Namespace) {
		wrong("namespace", "names that begin with kube- belong to Kubernetes")
	}
	checkAppVolumes(spec.Volumes, wrong)
	if setsPort {
		wrong("env", "%s is the port that the app listens on: set that instead, with `port` or mp's --port", portVariable)
	}
	size := 0
	for name, value := range spec.Env {
		size += len(name) + len(value)
		if !variable.MatchString(name) {
			wrong("env", "%q can't be the name of a variable", short(name))
		}
		if strings.ContainsRune(value, 0) {
			wrong("env", "the value of %s has a NUL in it", short(name))
		}
	}
	for _, s := range append(append([]string{}, spec.Command...), spec.Args...) {
		size += len(s)
	}
	if size > maxEnvBytes {
		wrong("env", "variables and arguments have %d bytes together, at most %d are possible", size, maxEnvBytes)
	}
	if len(spec.Command)+len(spec.Args) > maxArguments {
		wrong("args", "more than %d arguments", maxArguments)
	}
	unprintable := func(r rune) bool { return r <= ' ' || r == 0x7f }
	if health := spec.HealthPath; health != "" &&
		(!strings.HasPrefix(health, "/") || len(health) > 1024 || strings.ContainsFunc(health, unprintable)) {
		wrong("healthPath", "must be a path that begins with /")
	}
	if spec.MilliCPU < 0 || spec.MilliCPU > maxMilliCPU {
		wrong("milliCPU", "%d is out of bounds: 0 (no limit) to %d", spec.MilliCPU, maxMilliCPU)
	}
	if spec.MemoryBytes < 0 || spec.MemoryBytes > maxMemoryBytes {
		wrong("memoryBytes", "%d is out of bounds: 0 (no limit) to %d", spec.MemoryBytes, int64(maxMemoryBytes))
	}
	if fields == nil {
		return nil
	}
	return invalidFields("Correct what is listed.", fields)
}

// checkShared says which volume keeps an app from having several instances: they run on several
// machines, of which one at a time has a volume that is not shared. It asks the cluster, as the user.
func (a *API) checkShared(ctx context.Context, app, was *resource.App) error {
	if len(app.Spec.Volumes) == 0 || app.Spec.Instances < 2 ||
		was != nil && was.Spec.Instances > 1 && slices.Equal(was.Spec.Volumes, app.Spec.Volumes) {
		return nil
	}
	ws, err := find(ctx, store.Of[resource.Workspace](a.store), app.WorkspaceKey())
	if err != nil {
		return err
	}
	claims, err := a.cfg.Claims.List(ctx, ws, a.id.KubeUser(who(ctx), ws), app.Spec.Namespace)
	if err != nil {
		return err
	}
	var fields []ProblemField
	for _, v := range app.Spec.Volumes {
		i := slices.IndexFunc(claims, func(c resource.Claim) bool { return c.Name == v.Claim })
		switch {
		case i < 0:
			fields = append(fields, ProblemField{"body.spec.volumes", fmt.Sprintf(
				"there is no claim %s in namespace %s yet: make a shared one first, or have one instance", v.Claim, app.Spec.Namespace)})
		case !claims[i].Shared:
			fields = append(fields, ProblemField{"body.spec.instances", fmt.Sprintf(
				"%d are too many: the claim %s is not shared, so one machine has it at a time, and the app one instance",
				app.Spec.Instances, v.Claim)})
		}
	}
	if fields == nil {
		return nil
	}
	return invalidFields("Correct what is listed.", fields)
}

const maxAppVolumes = 16

// checkAppVolumes says what of an app's volumes can't be.
func checkAppVolumes(volumes []resource.AppVolume, wrong func(field, format string, args ...any)) {
	if len(volumes) > maxAppVolumes {
		wrong("volumes", "%d are too many: an app has %d at most", len(volumes), maxAppVolumes)
		return
	}
	claims, paths := map[string]bool{}, map[string]bool{}
	for _, v := range volumes {
		bad := func(r rune) bool { return r <= ' ' || r == 0x7f || r == ':' }
		switch {
		case len(v.Claim) > 253 || !claimName.MatchString(v.Claim):
			wrong("volumes", "%q can't be the name of a claim", short(v.Claim))
		case claims[v.Claim]:
			wrong("volumes", "the claim %s is there twice", v.Claim)
		case !path.IsAbs(v.Path) || path.Clean(v.Path) != v.Path || v.Path == "/" || len(v.Path) > 512,
			strings.ContainsFunc(v.Path, bad):
			wrong("volumes", "%q can't be where the app sees %s: that is a path like /data", short(v.Path), v.Claim)
		case paths[v.Path]:
			wrong("volumes", "there are two volumes at %s", v.Path)
		}
		claims[v.Claim], paths[v.Path] = true, true
	}
}
