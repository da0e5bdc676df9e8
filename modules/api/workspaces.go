package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/failpoint"
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

	securityBaseline = "baseline"
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
	workspaces := &collection[resource.Workspace, *resource.Workspace]{
		api:     a,
		noun:    "workspace",
		path:    workspacesPath,
		example: "shop",
		fresh: func(place, name string) *resource.Workspace {
			return &resource.Workspace{
				InOrganization: resource.NewInOrganization(place, name),
				Status:         resource.WorkspaceStatus{State: resource.State{Phase: resource.Pending}},
			}
		},
		adopt:    func(now, body *resource.Workspace) { now.Spec = body.Spec },
		complete: a.completeWorkspace,
		check:    a.checkWorkspace,
		verb: func(now, was *resource.Workspace) string {
			if now.Spec.Machines != was.Spec.Machines {
				return "scale"
			}
			return "update"
		},
		show: func(ctx context.Context, workspaces ...*resource.Workspace) error {
			for _, ws := range workspaces {
				ws.Status.NodeSlots = nil
				if !a.seesHosts(ctx) {
					ws.Status.Server = ""
				}
			}
			return nil
		},
		made:    func() { failpoint.Reach("workspace/create/committed") },
		changed: func() { failpoint.Reach("workspace/scale/committed") },
	}
	workspaces.list("The workspaces of an organization")
	workspaces.get("One workspace")
	workspaces.put("Make a workspace, or change it")
	patch(workspaces, "Scale a workspace or change its security", func(now *resource.Workspace, body WorkspacePatch) {
		set(&now.Spec.Machines, body.Spec.Machines)
		set(&now.Spec.PodSecurity, body.Spec.PodSecurity)
	})
	add(a, workspaces.operation("delete", http.MethodDelete, "Delete a workspace with all in it; its volumes go into the trash"),
		func(ctx context.Context, in *struct {
			Place
			Match
			PurgeVolumes bool `query:"purgeVolumes" doc:"Delete its volumes at once, with all data in them"`
		}) (*Output[resource.Accepted[*resource.Workspace]], error) {
			var obj *resource.Workspace
			var task string
			err := workspaces.retry(ctx, in.Place, in.Match, func(was *resource.Workspace) (err error) {
				obj = was
				if was.Deleting() && in.PurgeVolumes && !was.Status.PurgeVolumes {
					return conflict("conflict", "It is being deleted already, and its volumes go into the trash.",
						"Delete them there: `mp volumes trash list`, `mp volumes trash purge NAME`.")
				}
				if !was.Deleting() {
					was.Status.PurgeVolumes = in.PurgeVolumes
				}
				task, err = markDeleted(ctx, a, workspaces.kind(), "workspace.delete", was)
				return err
			})
			if err != nil {
				return nil, err
			}
			failpoint.Reach("workspace/delete/marked")
			// Nothing can be made in it any more. Killed before it is all marked, the
			// workspace's controller does the rest, or the same request again.
			if _, err := a.store.Clear(ctx, obj); err != nil {
				return nil, err
			}
			return accepted(obj, task), workspaces.shown(ctx, obj)
		})
}

func (a *API) workspace(ctx context.Context, path WorkspacePath) (*resource.Workspace, error) {
	return find(ctx, store.Of[resource.Workspace](a.store), path.key())
}

// seesHosts says whether the one who asks may know the platform's machines.
func (a *API) seesHosts(ctx context.Context) bool {
	return access.Authorize(who(ctx), access.OpSeeHosts, "", "") == nil
}

// completeWorkspace takes what is left out from what is there, or the defaults.
func (a *API) completeWorkspace(now, was *resource.Workspace) {
	from := resource.WorkspaceSpec{
		Datastore:   cmp.Or(a.cfg.Datastore, resource.Kine),
		MachineSize: resource.Size{MilliCPU: defaultMilliCPU, MemoryBytes: defaultMemoryBytes, DiskBytes: defaultDiskBytes},
		PodSecurity: securityBaseline,
	}
	if was != nil {
		from = was.Spec
	} else {
		from.KubernetesVersion = newestVersion(a.cfg.Info.KubernetesVersions)
	}
	spec := &now.Spec
	spec.KubernetesVersion = cmp.Or(spec.KubernetesVersion, from.KubernetesVersion)
	spec.Datastore = cmp.Or(spec.Datastore, from.Datastore)
	spec.MachineSize.MilliCPU = cmp.Or(spec.MachineSize.MilliCPU, from.MachineSize.MilliCPU)
	spec.MachineSize.MemoryBytes = cmp.Or(spec.MachineSize.MemoryBytes, from.MachineSize.MemoryBytes)
	spec.MachineSize.DiskBytes = cmp.Or(spec.MachineSize.DiskBytes, from.MachineSize.DiskBytes)
	spec.PodSecurity = cmp.Or(spec.PodSecurity, from.PodSecurity)
}

// checkWorkspace says everything that is wrong with what is wanted. Who may not
// lift pod security may keep it as it is.
func (a *API) checkWorkspace(ctx context.Context, now, was *resource.Workspace) error {
	spec, security := now.Spec, securityBaseline
	var fields []ProblemField
	wrong := func(field, format string, args ...any) {
		fields = append(fields, ProblemField{"body.spec." + field, fmt.Sprintf(format, args...)})
	}
	if was != nil {
		fixed := func(field string, same bool) {
			if !same {
				wrong(field, "can't be changed once the workspace is there")
			}
		}
		fixed("kubernetesVersion", spec.KubernetesVersion == was.Spec.KubernetesVersion)
		fixed("datastore", spec.Datastore == was.Spec.Datastore)
		fixed("machineSize", spec.MachineSize == was.Spec.MachineSize)
		if fields != nil {
			return invalidFields("Leave it out, or make another workspace.", fields)
		}
		security = was.Spec.PodSecurity
	}
	if spec.Machines < 0 || spec.Machines > maxMachines {
		wrong("machines", "%d is out of bounds: a workspace has 0 to %d machines", spec.Machines, maxMachines)
	}
	if versions := a.cfg.Info.KubernetesVersions; !slices.Contains(versions, spec.KubernetesVersion) {
		there := cmp.Or(strings.Join(versions, ", "), "none")
		wrong("kubernetesVersion", "%q is not available: there is %s", spec.KubernetesVersion, there)
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
		return invalidFields("Correct what is listed.", fields)
	}
	if spec.PodSecurity != security && spec.PodSecurity != securityBaseline {
		return access.Authorize(who(ctx), access.OpLiftSecurity, now.Account, now.Organization)
	}
	return nil
}

// markDeleted marks obj in one commit with the task that ends when it is gone,
// and returns the task's id. If it is marked already, the task is the one that
// runs.
func markDeleted[T resource.Object](ctx context.Context, a *API, kind store.Kind[T], verb string, obj T) (string, error) {
	if obj.Metadata().Deleting() {
		return a.running(ctx, kind.Name(), obj)
	}
	now := time.Now().UTC()
	obj.Metadata().DeletedAt = &now
	task, op := a.cfg.Tasks.Begin(verb, who(ctx).Name(), obj)
	return task.Name, a.store.Commit(store.WithReserve(ctx), kind.UpdateOp(obj), op) // it makes room
}

// running returns the name of the latest task that still works on target, "" if
// there is none. It looks through the account's, some hundred.
func (a *API) running(ctx context.Context, kind string, target resource.Object) (string, error) {
	account, _, nested := strings.Cut(target.Key(), "/")
	if !nested {
		account = resource.PlatformTasks
	}
	tasks, err := all(ctx, store.Of[resource.Task](a.store), account)
	if err != nil {
		return "", err
	}
	for _, t := range slices.Backward(tasks) { // their IDs sort by time
		if t.Spec.Kind == kind && t.Spec.Target == target.Key() && t.Spec.TargetUID == target.Metadata().UID && !t.Ended() {
			return t.Name, nil
		}
	}
	return "", nil
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
