package client

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
	quantity "k8s.io/apimachinery/pkg/api/resource"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) workspaces() noun[resource.Workspace] {
	return noun[resource.Workspace]{
		one:   "workspace",
		in:    inOrganization,
		place: true,
		tasks: true,
		start: func(c *call) string { return "Reach it with '" + c.hint("cluster", "config-kubectl") + "'." },
		empty: "There are no workspaces. Create one with 'mp ws create NAME'.",
		columns: standard([]column[resource.Workspace]{
			{head: "MACHINES", cell: func(w *resource.Workspace) string {
				return fmt.Sprintf("%d/%d", w.Status.MachinesReady, w.Spec.Machines)
			}},
			{head: "KUBERNETES", cell: func(w *resource.Workspace) string { return w.Spec.KubernetesVersion }},
			{head: "MACHINE-SIZE", wide: true, cell: func(w *resource.Workspace) string { return w.Spec.MachineSize.String() }},
			{head: "DATASTORE", wide: true, cell: func(w *resource.Workspace) string { return string(w.Spec.Datastore) }},
			{head: "POD-SECURITY", wide: true, cell: podSecurity},
			{head: "ID", wide: true, cell: func(w *resource.Workspace) string { return w.Status.ID }},
		}),
	}
}

// podSecurity shows a lifted level wherever a workspace is shown in full.
func podSecurity(w *resource.Workspace) string {
	if w.Spec.PodSecurity == "privileged" {
		return "privileged (LIFTED by a sysadmin)"
	}
	return w.Spec.PodSecurity
}

func (p *program) workspaceCommands() *command {
	workspaces := p.workspaces()
	return group("ws, workspace, workspaces", "create, list, choose, show, change and delete workspaces",
		workspaces.create(command{
			usage: "create a workspace, a Kubernetes cluster of its own, and work in it",
			about: `Whatever is not given, the platform chooses: its newest Kubernetes, its default size.
While no node has room for a machine, the command says so, and after 30 seconds of that
it ends with exit code 5, unless --timeout is given. The platform adds the machine as
soon as there is room.`,
			examples: []string{
				"mp ws create shop",
				"mp ws create shop --machines 2 --cpu 2 --memory 4Gi --disk 20Gi",
				"mp ws create shop --no-wait -o json",
			},
			flags: []cli.Flag{
				&cli.IntFlag{Name: "machines", Aliases: []string{"n", "nodes"}, Value: 1, Usage: "`NUMBER` of machines"},
				&cli.StringFlag{Name: "cpu", Usage: "`CPUS` of each machine: 2 or 500m"},
				&cli.StringFlag{Name: "memory", Usage: "memory `SIZE` of each machine: 4Gi"},
				&cli.StringFlag{Name: "disk", Usage: "disk `SIZE` of each machine: 20Gi"},
				&cli.StringFlag{Name: "kubernetes-version", Aliases: []string{"kubernetes"}, Usage: "minor `VERSION` of Kubernetes: 1.36"},
				&cli.StringFlag{Name: "datastore", Usage: "`KIND` of the control plane's datastore: kine or etcd"},
				&cli.StringFlag{Name: "pod-security", Usage: "`LEVEL`: baseline, or privileged (for sysadmins)"},
			},
		}, (*call).newWorkspace),
		workspaces.list(help("list the organization's workspaces", "mp ws list", "mp ws list -o wide")),
		workspaces.use(help("work in this workspace", "mp ws use shop")),
		workspaces.show(command{
			usage:    "show a workspace and its state",
			args:     "[NAME]",
			examples: []string{"mp ws show", "mp ws show shop -o yaml"},
		}),
		workspaces.set(command{
			usage: "change a workspace's settings",
			args:  "[NAME]",
			about: `Only sysadmins can lift Pod Security: with privileged, the tenant's pods can take over the
machines of this workspace. To change the number of machines, use 'mp cluster scale'.`,
			examples: []string{"mp ws set shop --pod-security privileged", "mp ws set shop --pod-security baseline"},
			flags:    []cli.Flag{&cli.StringFlag{Name: "pod-security", Usage: "`LEVEL`: baseline or privileged"}},
		}, (*call).newSettings),
		workspaces.delete("", command{
			usage: "delete a workspace with everything in it; its volumes go into the trash",
			about: `What is in its volumes can be had back for ` + trashLife() + `, also in another workspace: see
'mp volumes trash'. With --purge-volumes they are deleted with the workspace.`,
			examples: []string{"mp ws delete shop", "mp ws delete shop --yes --no-wait", "mp ws delete shop --purge-volumes"},
			flags:    []cli.Flag{&cli.BoolFlag{Name: "purge-volumes", Usage: "delete its volumes too, with all data in them"}},
			run:      (*call).deleteWorkspace,
		}),
	)
}

// workspaceSpec is what the user said about a new workspace. What he did not say
// is left out, for the platform to decide.
type workspaceSpec struct {
	KubernetesVersion string             `json:"kubernetesVersion,omitempty"`
	Datastore         resource.Datastore `json:"datastore,omitempty"`
	Machines          int                `json:"machines"`
	MachineSize       map[string]int64   `json:"machineSize,omitempty"`
	PodSecurity       string             `json:"podSecurity,omitempty"`
}

func (c *call) newWorkspace() (any, error) {
	spec := workspaceSpec{
		KubernetesVersion: c.String("kubernetes-version"),
		Datastore:         resource.Datastore(c.String("datastore")),
		Machines:          c.Int("machines"),
		PodSecurity:       c.String("pod-security"),
	}
	if err := checkMachines(spec.Machines); err != nil {
		return nil, err
	}
	var err error
	spec.MachineSize, err = amounts(c)
	return spec, err
}

// capacityFields are the flags for a size, and how the API calls what they set.
var capacityFields = map[string]string{"cpu": "milliCPU", "memory": "memoryBytes", "disk": "diskBytes"}

// amounts are what is given of a size, as the API names it.
func amounts(c *call) (map[string]int64, error) {
	size := map[string]int64{}
	for flag, field := range capacityFields {
		n, err := amount(c, flag)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			size[field] = n
		}
	}
	return size, nil
}

func checkMachines(n int) error {
	return checkCount(n, resource.MaxMachines, "a workspace can't have %d machines")
}

// checkCount refuses less than none and more than most; format says so.
func checkCount(n, most int, format string) error {
	if n < 0 || n > most {
		return usagef(fmt.Sprintf("use 0 to %d", most), format, n)
	}
	return nil
}

// amount reads a flag like "500m" or "2Gi": a whole number of thousandths or of
// bytes. A flag that is not given is 0.
func amount(c *call, flag string) (int64, error) {
	text := c.String(flag)
	if text == "" {
		return 0, nil
	}
	example, value := "2Gi or 512Mi", (*quantity.Quantity).Value
	if strings.HasSuffix(flag, "cpu") {
		example, value = "2, 1.5 or 500m", (*quantity.Quantity).MilliValue
	}
	q, err := quantity.ParseQuantity(text)
	if err != nil || q.Sign() <= 0 {
		return 0, usagef("write it like "+example, "--%s %q is not an amount", flag, text)
	}
	return value(&q), nil
}

func (c *call) newSettings() (map[string]any, string, error) {
	switch level := c.String("pod-security"); level {
	case "":
		return nil, "", nil
	case "baseline", "privileged":
		return map[string]any{"podSecurity": level}, "has Pod Security " + level, nil
	default:
		return nil, "", usagef("use baseline or privileged", "--pod-security %q is not a level", level)
	}
}
