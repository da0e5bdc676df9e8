package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strings"

	"github.com/distribution/reference"

	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// AppPath names an app.
type AppPath struct {
	WorkspacePath
	App string `path:"app" maxLength:"57" example:"hello"`
}

func (p AppPath) key() string { return p.WorkspacePath.key() + "/" + p.App }

// AppPatch is the body of apps.patch: what is left out stays.
type AppPatch struct {
	Spec struct {
		Image     *string `json:"image,omitempty" maxLength:"512"`
		Instances *int    `json:"instances,omitempty" minimum:"0" maximum:"1000"`
	} `json:"spec"`
}

// Limits and defaults of apps.
const (
	maxInstances     = 1000
	maxEnvBytes      = 32 << 10 // Linux takes 128 KiB for one variable; a pod's object must stay far below 1.5 MiB
	maxArguments     = 256
	defaultPort      = 8080
	defaultNamespace = "default"
)

var variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,252}$`)

func (a *API) appOperations() {
	const list = workspacesPath + "/{workspace}/apps"
	const one = list + "/{app}"
	add(a, operation{id: "apps.list", method: http.MethodGet, path: list, summary: "The apps of a workspace"},
		func(ctx context.Context, in *struct {
			WorkspacePath
			Page
		}) (*Output[resource.List[*resource.App]], error) {
			if _, err := a.workspace(ctx, in.WorkspacePath); err != nil {
				return nil, err
			}
			return page(ctx, store.Of[resource.App](a.store), in.key(), in.Page)
		})
	add(a, operation{id: "apps.get", method: http.MethodGet, path: one, summary: "One app"},
		func(ctx context.Context, in *AppPath) (*Output[*resource.App], error) {
			app, err := a.app(ctx, *in)
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, app), nil
		})
	add(a, operation{id: "apps.put", method: http.MethodPut, path: one, summary: "Deploy an app, or change it", status: http.StatusAccepted}, a.putApp)
	add(a, operation{id: "apps.patch", method: http.MethodPatch, path: one, summary: "Scale an app or change its image", status: http.StatusAccepted}, a.patchApp)
	add(a, operation{id: "apps.delete", method: http.MethodDelete, path: one, summary: "Delete an app", status: http.StatusAccepted},
		func(ctx context.Context, in *struct {
			AppPath
			Match
		}) (*Output[resource.Accepted[*resource.App]], error) {
			var out *Output[resource.Accepted[*resource.App]]
			err := retry(ctx, func() error {
				app, err := a.app(ctx, in.AppPath)
				if err != nil {
					return err
				}
				if err := in.check(app.Metadata()); err != nil {
					return err
				}
				id, err := markDeleted(ctx, a, store.Of[resource.App](a.store), "app.delete", app)
				if err != nil {
					return err
				}
				faultpoint.Reach("app/delete/marked")
				out = accepted(app, id)
				return nil
			})
			return out, err
		})
}

func (a *API) app(ctx context.Context, path AppPath) (*resource.App, error) {
	if _, err := a.workspace(ctx, path.WorkspacePath); err != nil {
		return nil, err
	}
	return find(ctx, store.Of[resource.App](a.store), path.key(), "app", path.App)
}

func (a *API) putApp(ctx context.Context, in *struct {
	AppPath
	MatchNew
	Body resource.App
}) (*Output[resource.Accepted[*resource.App]], error) {
	if err := sameName(in.Body.Name, in.App); err != nil {
		return nil, err
	}
	if err := resource.CheckName("app", in.App); err != nil {
		return nil, invalid("path.app", err.Error(), "")
	}
	var out *Output[resource.Accepted[*resource.App]]
	err := retry(ctx, func() error {
		old, err := store.Of[resource.App](a.store).Get(ctx, in.key())
		if errors.Is(err, store.ErrNotFound) {
			if err := in.check(nil); err != nil {
				return err
			}
			out, err = a.createApp(ctx, in.AppPath, in.Body.Spec)
			return asConflict(err)
		}
		if err != nil {
			return err
		}
		if err := in.check(old.Metadata()); err != nil {
			return err
		}
		out, err = a.updateApp(ctx, old, in.Body.Spec)
		return err
	})
	return out, err
}

func (a *API) createApp(ctx context.Context, path AppPath, spec resource.AppSpec) (*Output[resource.Accepted[*resource.App]], error) {
	spec = withDefaults(spec)
	if err := checkApp(spec); err != nil {
		return nil, err
	}
	app := &resource.App{
		InWorkspace: resource.NewInWorkspace(path.WorkspacePath.key(), path.App),
		Spec:        spec,
		Status:      resource.AppStatus{State: resource.State{Phase: resource.Pending}},
	}
	granted, err := a.grant(ctx, path.Account, resource.Limits{Apps: 1})
	if err != nil {
		return nil, err
	}
	task, op := a.cfg.Tasks.Begin("app.create", who(ctx).Name(), app)
	err = a.store.Commit(ctx, granted, open(store.Of[resource.Workspace](a.store), path.WorkspacePath.key(), "workspace"), store.Of[resource.App](a.store).CreateOp(app), op)
	if errors.Is(err, store.ErrNotFound) {
		return nil, missing("workspace", path.Workspace)
	}
	if err != nil {
		return nil, err
	}
	faultpoint.Reach("app/deploy/committed")
	return accepted(app, task.Name), nil
}

func (a *API) updateApp(ctx context.Context, old *resource.App, spec resource.AppSpec) (*Output[resource.Accepted[*resource.App]], error) {
	if old.Deleting() {
		return nil, deleting("app", old.Name)
	}
	if spec.Namespace == "" {
		spec.Namespace = old.Spec.Namespace
	}
	spec = withDefaults(spec)
	if err := checkApp(spec); err != nil {
		return nil, err
	}
	if sameSpec(spec, old.Spec) {
		task, err := a.running(ctx, store.Of[resource.App](a.store).Name(), old)
		return accepted(old, task), err
	}
	if spec.Namespace != old.Spec.Namespace {
		return nil, invalid("body.spec.namespace", fmt.Sprintf("can't be changed: the app is in %q", old.Spec.Namespace), "Deploy the app under another name there, then delete this one.")
	}
	verb := "app.update"
	scaled := old.Spec
	scaled.Instances = spec.Instances
	if sameSpec(scaled, spec) {
		verb = "app.scale"
	}
	old.Spec = spec
	task, op := a.cfg.Tasks.Begin(verb, who(ctx).Name(), old)
	if err := a.store.Commit(ctx, store.Of[resource.App](a.store).UpdateOp(old), op); err != nil {
		return nil, err
	}
	return accepted(old, task.Name), nil
}

func (a *API) patchApp(ctx context.Context, in *struct {
	AppPath
	Match
	Body AppPatch
}) (*Output[resource.Accepted[*resource.App]], error) {
	var out *Output[resource.Accepted[*resource.App]]
	err := retry(ctx, func() error {
		app, err := a.app(ctx, in.AppPath)
		if err != nil {
			return err
		}
		if err := in.check(app.Metadata()); err != nil {
			return err
		}
		spec := app.Spec
		set(&spec.Image, in.Body.Spec.Image)
		set(&spec.Instances, in.Body.Spec.Instances)
		out, err = a.updateApp(ctx, app, spec)
		return err
	})
	return out, err
}

func withDefaults(spec resource.AppSpec) resource.AppSpec {
	if spec.Namespace == "" {
		spec.Namespace = defaultNamespace
	}
	if spec.Port == 0 {
		spec.Port = defaultPort
	}
	return spec
}

// sameSpec compares as the store would: an empty list is no list.
func sameSpec(x, y resource.AppSpec) bool {
	for _, s := range []*resource.AppSpec{&x, &y} {
		if len(s.Env) == 0 {
			s.Env = nil
		}
		if len(s.Command) == 0 {
			s.Command = nil
		}
		if len(s.Args) == 0 {
			s.Args = nil
		}
	}
	return reflect.DeepEqual(x, y)
}

// checkApp says everything that is wrong with spec.
func checkApp(spec resource.AppSpec) error {
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
	if spec.Instances < 0 || spec.Instances > maxInstances {
		wrong("instances", "%d is out of bounds: an app has 0 to %d instances", spec.Instances, maxInstances)
	}
	if spec.Port < 1 || spec.Port > 65535 {
		wrong("port", "%d is not a port", spec.Port)
	}
	if err := resource.CheckName("namespace", spec.Namespace); err != nil {
		wrong("namespace", "%v", err)
	} else if resource.IsSystemNamespace(spec.Namespace) {
		wrong("namespace", "names that begin with kube- belong to Kubernetes")
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
	if spec.HealthPath != "" && (!strings.HasPrefix(spec.HealthPath, "/") || len(spec.HealthPath) > 1024 || strings.ContainsFunc(spec.HealthPath, func(r rune) bool { return r <= ' ' || r == 0x7f })) {
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
	p := invalid("", "", "Correct what is listed.")
	p.Errors = fields
	return p
}
