package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/multipaas/multipaas/appliance/faultpoint"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Limits and defaults of workspaces.
const (
	maxMachines = 100

	defaultMilliCPU    = 1000
	defaultMemoryBytes = 2 << 30
	defaultDiskBytes   = 10 << 30

	// What a machine needs for itself: containerd 52 MB, kubelet 150, kube-proxy
	// 133, CoreDNS 60; its root file system and images take under 2 GiB.
	minMilliCPU    = 200
	minMemoryBytes = 512 << 20
	minDiskBytes   = 4 << 30
	// No host is larger, and 100 machines of it still add up in 63 bits.
	maxMilliCPU    = 1_000_000
	maxMemoryBytes = 64 << 40
	maxDiskBytes   = 1 << 50

	securityBaseline   = "baseline"
	securityPrivileged = "privileged"
)

// WorkspacePatch is the body of workspaces.patch: what is left out stays.
type WorkspacePatch struct {
	Spec struct {
		Machines    *int    `json:"machines,omitempty" doc:"Number of machines"`
		PodSecurity *string `json:"podSecurity,omitempty" enum:"baseline,privileged" doc:"Sysadmins only"`
	} `json:"spec"`
}

const workspacesPath = "/v1/accounts/{account}/organizations/{organization}/workspaces"

func (a *API) workspaceOperations() {
	const one = workspacesPath + "/{workspace}"
	add(a, operation{id: "workspaces.list", method: http.MethodGet, path: workspacesPath, summary: "The workspaces of an organization"},
		func(ctx context.Context, in *struct {
			OrganizationPath
			Page
		}) (*Output[resource.List[*resource.Workspace]], error) {
			if _, err := find(ctx, store.Of[resource.Organization](a.store), in.key(), "organization", in.Organization); err != nil {
				return nil, err
			}
			out, err := page(ctx, store.Of[resource.Workspace](a.store), in.key(), in.Page)
			if err != nil {
				return nil, err
			}
			for _, ws := range out.Body.Items {
				a.hideWorkspace(ctx, ws)
			}
			return out, nil
		})
	add(a, operation{id: "workspaces.get", method: http.MethodGet, path: one, summary: "One workspace"},
		func(ctx context.Context, in *WorkspacePath) (*Output[*resource.Workspace], error) {
			ws, err := a.workspace(ctx, *in)
			if err != nil {
				return nil, err
			}
			return object(http.StatusOK, a.hideWorkspace(ctx, ws)), nil
		})
	add(a, operation{id: "workspaces.put", method: http.MethodPut, path: one, summary: "Make a workspace, or change it", status: http.StatusAccepted}, a.putWorkspace)
	add(a, operation{id: "workspaces.patch", method: http.MethodPatch, path: one, summary: "Scale a workspace or change its security", status: http.StatusAccepted}, a.patchWorkspace)
	add(a, operation{id: "workspaces.delete", method: http.MethodDelete, path: one, summary: "Delete a workspace with all in it", status: http.StatusAccepted}, a.deleteWorkspace)
}

func (a *API) workspace(ctx context.Context, path WorkspacePath) (*resource.Workspace, error) {
	return find(ctx, store.Of[resource.Workspace](a.store), path.key(), "workspace", path.Workspace)
}

// seesHosts says whether the one who asks may know the platform's machines.
func (a *API) seesHosts(ctx context.Context) bool {
	return access.Authorize(who(ctx), access.OpSeeHosts, "", "") == nil
}

// hideWorkspace takes out what tenants must not see.
func (a *API) hideWorkspace(ctx context.Context, ws *resource.Workspace) *resource.Workspace {
	ws.Status.NodeSlots = nil
	if !a.seesHosts(ctx) {
		ws.Status.Server = ""
	}
	return ws
}

func (a *API) putWorkspace(ctx context.Context, in *struct {
	WorkspacePath
	MatchNew
	Body resource.Workspace
}) (*Output[resource.Accepted[*resource.Workspace]], error) {
	if err := sameName(in.Body.Name, in.Workspace); err != nil {
		return nil, err
	}
	if err := resource.CheckName("workspace", in.Workspace); err != nil {
		return nil, invalid("path.workspace", err.Error(), "")
	}
	var out *Output[resource.Accepted[*resource.Workspace]]
	err := retry(ctx, func() error {
		old, err := store.Of[resource.Workspace](a.store).Get(ctx, in.key())
		if errors.Is(err, store.ErrNotFound) {
			if err := in.check(nil); err != nil {
				return err
			}
			out, err = a.createWorkspace(ctx, in.WorkspacePath, in.Body.Spec)
			return asConflict(err)
		}
		if err != nil {
			return err
		}
		if err := in.check(old.Metadata()); err != nil {
			return err
		}
		out, err = a.updateWorkspace(ctx, old, in.Body.Spec)
		return err
	})
	return out, err
}

func (a *API) createWorkspace(ctx context.Context, path WorkspacePath, spec resource.WorkspaceSpec) (*Output[resource.Accepted[*resource.Workspace]], error) {
	if spec.KubernetesVersion == "" {
		spec.KubernetesVersion = newestVersion(a.cfg.Info.KubernetesVersions)
	}
	if spec.Datastore == "" {
		spec.Datastore = cmp.Or(a.cfg.Datastore, resource.Kine)
	}
	spec.MachineSize = orSize(spec.MachineSize, resource.Size{MilliCPU: defaultMilliCPU, MemoryBytes: defaultMemoryBytes, DiskBytes: defaultDiskBytes})
	if spec.PodSecurity == "" {
		spec.PodSecurity = securityBaseline
	}
	if err := a.checkWorkspace(ctx, path.OrganizationPath, spec, securityBaseline); err != nil {
		return nil, err
	}
	ws := &resource.Workspace{
		InOrganization: resource.NewInOrganization(path.OrganizationPath.key(), path.Workspace),
		Spec:           spec,
		Status:         resource.WorkspaceStatus{State: resource.State{Phase: resource.Pending}},
	}
	asked := machinesOf(spec, spec.Machines)
	asked.Workspaces = 1
	granted, err := a.grant(ctx, path.Account, asked)
	if err != nil {
		return nil, err
	}
	task, op := a.cfg.Tasks.Begin("workspace.create", who(ctx).Name(), ws)
	err = a.store.Commit(ctx, granted, open(store.Of[resource.Organization](a.store), path.OrganizationPath.key(), "organization"), store.Of[resource.Workspace](a.store).CreateOp(ws), op)
	if errors.Is(err, store.ErrNotFound) {
		return nil, missing("organization", path.Organization)
	}
	if err != nil {
		return nil, err
	}
	faultpoint.Reach("workspace/create/committed")
	return accepted(a.hideWorkspace(ctx, ws), task.Name), nil
}

// updateWorkspace changes old to spec, where what is left out stays.
func (a *API) updateWorkspace(ctx context.Context, old *resource.Workspace, spec resource.WorkspaceSpec) (*Output[resource.Accepted[*resource.Workspace]], error) {
	if old.Deleting() {
		return nil, deleting("workspace", old.Name)
	}
	if spec.KubernetesVersion == "" {
		spec.KubernetesVersion = old.Spec.KubernetesVersion
	}
	if spec.Datastore == "" {
		spec.Datastore = old.Spec.Datastore
	}
	spec.MachineSize = orSize(spec.MachineSize, old.Spec.MachineSize)
	if spec.PodSecurity == "" {
		spec.PodSecurity = old.Spec.PodSecurity
	}
	if spec == old.Spec {
		task, err := a.running(ctx, store.Of[resource.Workspace](a.store).Name(), old)
		return accepted(a.hideWorkspace(ctx, old), task), err
	}
	var fields []ProblemField
	fixed := func(field string, same bool) {
		if !same {
			fields = append(fields, ProblemField{"body.spec." + field, "can't be changed once the workspace is there"})
		}
	}
	fixed("kubernetesVersion", spec.KubernetesVersion == old.Spec.KubernetesVersion)
	fixed("datastore", spec.Datastore == old.Spec.Datastore)
	fixed("machineSize", spec.MachineSize == old.Spec.MachineSize)
	if fields != nil {
		p := invalid("", "", "Leave it out, or make another workspace.")
		p.Errors = fields
		return nil, p
	}
	path := OrganizationPath{AccountPath{old.Account}, old.Organization}
	if err := a.checkWorkspace(ctx, path, spec, old.Spec.PodSecurity); err != nil {
		return nil, err
	}
	verb := "workspace.update"
	if spec.Machines != old.Spec.Machines {
		verb = "workspace.scale"
	}
	var granted store.Op
	if spec.Machines > old.Spec.Machines {
		var err error
		if granted, err = a.grant(ctx, old.Account, machinesOf(spec, spec.Machines-old.Spec.Machines)); err != nil {
			return nil, err
		}
	}
	old.Spec = spec
	task, op := a.cfg.Tasks.Begin(verb, who(ctx).Name(), old)
	if err := a.store.Commit(ctx, granted, store.Of[resource.Workspace](a.store).UpdateOp(old), op); err != nil {
		return nil, err
	}
	faultpoint.Reach("workspace/scale/committed")
	return accepted(a.hideWorkspace(ctx, old), task.Name), nil
}

// checkWorkspace says everything that is wrong with spec. Who may not lift pod
// security may keep it as it is.
func (a *API) checkWorkspace(ctx context.Context, path OrganizationPath, spec resource.WorkspaceSpec, security string) error {
	var fields []ProblemField
	wrong := func(field, format string, args ...any) {
		fields = append(fields, ProblemField{"body.spec." + field, fmt.Sprintf(format, args...)})
	}
	if spec.Machines < 0 || spec.Machines > maxMachines {
		wrong("machines", "%d is out of bounds: a workspace has 0 to %d machines", spec.Machines, maxMachines)
	}
	if versions := a.cfg.Info.KubernetesVersions; !slices.Contains(versions, spec.KubernetesVersion) {
		wrong("kubernetesVersion", "%q is not available: there is %s", spec.KubernetesVersion, orNone(versions))
	}
	between := func(field string, value, low, high, unit int64, name string) {
		if value < low || value > high {
			wrong(field, "%d is out of bounds: at least %d (%d %s), at most %d", value, low, low/unit, name, high)
		}
	}
	between("machineSize.milliCPU", spec.MachineSize.MilliCPU, minMilliCPU, maxMilliCPU, 1, "thousandths of a CPU")
	between("machineSize.memoryBytes", spec.MachineSize.MemoryBytes, minMemoryBytes, maxMemoryBytes, 1<<20, "MiB")
	between("machineSize.diskBytes", spec.MachineSize.DiskBytes, minDiskBytes, maxDiskBytes, 1<<20, "MiB")
	if fields != nil {
		p := invalid("", "", "Correct what is listed.")
		p.Errors = fields
		return p
	}
	if spec.PodSecurity != security && spec.PodSecurity != securityBaseline {
		return access.Authorize(who(ctx), access.OpLiftSecurity, path.Account, path.Organization)
	}
	return nil
}

func (a *API) patchWorkspace(ctx context.Context, in *struct {
	WorkspacePath
	Match
	Body WorkspacePatch
}) (*Output[resource.Accepted[*resource.Workspace]], error) {
	var out *Output[resource.Accepted[*resource.Workspace]]
	err := retry(ctx, func() error {
		ws, err := a.workspace(ctx, in.WorkspacePath)
		if err != nil {
			return err
		}
		if err := in.check(ws.Metadata()); err != nil {
			return err
		}
		spec := ws.Spec
		set(&spec.Machines, in.Body.Spec.Machines)
		set(&spec.PodSecurity, in.Body.Spec.PodSecurity)
		out, err = a.updateWorkspace(ctx, ws, spec)
		return err
	})
	return out, err
}

// deleteWorkspace marks the workspace and then its apps, which their controller
// takes away before the workspace can go. Apps can't be made any more once the
// workspace is marked; killed in between, the same request again does the rest.
func (a *API) deleteWorkspace(ctx context.Context, in *struct {
	WorkspacePath
	Match
}) (*Output[resource.Accepted[*resource.Workspace]], error) {
	var out *Output[resource.Accepted[*resource.Workspace]]
	err := retry(ctx, func() error {
		ws, err := a.workspace(ctx, in.WorkspacePath)
		if err != nil {
			return err
		}
		if err := in.check(ws.Metadata()); err != nil {
			return err
		}
		id, err := markDeleted(ctx, a, store.Of[resource.Workspace](a.store), "workspace.delete", ws)
		out = accepted(a.hideWorkspace(ctx, ws), id)
		return err
	})
	if err != nil {
		return nil, err
	}
	faultpoint.Reach("workspace/delete/marked")
	apps, err := all(ctx, store.Of[resource.App](a.store), in.key())
	if err != nil {
		return nil, err
	}
	for _, app := range apps {
		if _, err := store.Of[resource.App](a.store).MarkDeleted(ctx, app.Key()); err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	}
	return out, nil
}

// markDeleted marks obj in one commit with the task that ends when it is gone,
// and returns the task's id. If it is marked already, the task is the one that
// runs.
func markDeleted[T resource.Object](ctx context.Context, a *API, kind store.Kind[T], verb string, obj T) (string, error) {
	if obj.Metadata().Deleting() {
		return a.running(ctx, kind.Name(), obj)
	}
	now := a.now()
	obj.Metadata().DeletedAt = &now
	task, op := a.cfg.Tasks.BeginRemoval(verb, who(ctx).Name(), obj)
	return task.Name, a.store.Commit(ctx, kind.UpdateOp(obj), op)
}

// running returns the id of the latest task that still works on target, "" if
// there is none. It looks through all tasks: there are at most a thousand per
// account, and only a repeated request asks.
func (a *API) running(ctx context.Context, kind string, target resource.Object) (string, error) {
	tasks, err := all(ctx, store.Of[resource.Task](a.store), "")
	if err != nil {
		return "", err
	}
	var latest *resource.Task
	for _, t := range tasks {
		if t.Spec.Kind != kind || t.Spec.Target != target.Key() || t.Spec.TargetUID != target.Metadata().UID || ended(t) {
			continue
		}
		if latest == nil || latest.CreatedAt.Before(t.CreatedAt) {
			latest = t
		}
	}
	if latest == nil {
		return "", nil
	}
	return latest.Name, nil
}

// sameName refuses a body that is of another resource than the path.
func sameName(body, path string) error {
	if body != "" && body != path {
		return invalid("body.name", "is not the name in the path", "Leave the name out of the body, or make them the same: a resource can't be renamed.")
	}
	return nil
}

// orSize fills what is left out of size from other.
func orSize(size, other resource.Size) resource.Size {
	if size.MilliCPU == 0 {
		size.MilliCPU = other.MilliCPU
	}
	if size.MemoryBytes == 0 {
		size.MemoryBytes = other.MemoryBytes
	}
	if size.DiskBytes == 0 {
		size.DiskBytes = other.DiskBytes
	}
	return size
}

func newestVersion(versions []string) string {
	newest, best := "", -1
	for _, v := range versions {
		major, minor, _ := strings.Cut(v, ".")
		x, _ := strconv.Atoi(major)
		y, _ := strconv.Atoi(minor)
		if n := x*1000 + y; n > best {
			newest, best = v, n
		}
	}
	return newest
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
