package client

import (
	"fmt"
	"io"
	"net/http"

	"github.com/urfave/cli/v2"
	quantity "k8s.io/apimachinery/pkg/api/resource"

	"github.com/multipaas/multipaas/modules/resource"
)

func workspaceTable(c *call) table[*resource.Workspace] {
	now := c.now()
	return table[*resource.Workspace]{
		name:  func(w *resource.Workspace) string { return w.Name },
		empty: "There is no workspace. Make one with 'mp ws create NAME'.",
		columns: []column[*resource.Workspace]{
			{head: "NAME", cell: func(w *resource.Workspace) string { return w.Name }},
			{head: "PHASE", cell: func(w *resource.Workspace) string { return phaseOf(&w.Meta, w.Status.Phase) }},
			{head: "MACHINES", cell: func(w *resource.Workspace) string {
				return fmt.Sprintf("%d/%d", w.Status.MachinesReady, w.Spec.Machines)
			}},
			{head: "KUBERNETES", cell: func(w *resource.Workspace) string { return w.Spec.KubernetesVersion }},
			{head: "AGE", cell: func(w *resource.Workspace) string { return age(w.CreatedAt, now) }},
			{head: "MACHINE-SIZE", wide: true, cell: func(w *resource.Workspace) string { return sizeText(w.Spec.MachineSize) }},
			{head: "DATASTORE", wide: true, cell: func(w *resource.Workspace) string { return string(w.Spec.Datastore) }},
			{head: "POD-SECURITY", wide: true, cell: podSecurity},
			{head: "ID", wide: true, cell: func(w *resource.Workspace) string { return w.Status.ID }},
		},
	}
}

// podSecurity shows a lifted level wherever a workspace is shown in full.
func podSecurity(w *resource.Workspace) string {
	if w.Spec.PodSecurity == "privileged" {
		return "privileged (LIFTED by a sysadmin)"
	}
	return w.Spec.PodSecurity
}

// phaseOf is the phase, or Deleting as soon as that was asked for.
func phaseOf(m *resource.Meta, p resource.Phase) string {
	switch {
	case m.Deleting():
		return string(resource.Deleting)
	case p == "":
		return string(resource.Pending)
	}
	return string(p)
}

func workspaceNames() func(*call) ([]string, error) {
	return names(func(w *resource.Workspace) string { return w.Name }, func(c *call) (string, error) {
		t, err := c.need(inOrganization)
		return t.organization("workspaces"), err
	})
}

// workspaceArg is the place of the workspace in argument i, or of the chosen
// one if it is left out.
func (c *call) workspaceArg(i int) (Target, error) {
	if c.NArg() <= i {
		return c.need(inWorkspace)
	}
	t, err := c.need(inOrganization)
	if err != nil {
		return t, err
	}
	return Target{Account: t.Account, Organization: t.Organization, Workspace: c.arg(i)}, checkName("workspace", c.arg(i))
}

func (p *program) workspaceCommands() *command {
	return &command{
		name: "ws", aliases: []string{"workspace", "workspaces"}, usage: "make, list, choose, show, change and delete workspaces",
		sub: []*command{
			{
				name: "create", usage: "make a workspace, a Kubernetes cluster of its own, and work in it", args: "NAME",
				about:    "What is not given is chosen by the platform: its newest Kubernetes, its default size.",
				examples: []string{"mp ws create shop", "mp ws create shop --machines 2 --cpu 2 --memory 4Gi --disk 20Gi", "mp ws create shop --no-wait -o json"},
				flags: flags(placeFlags(inOrganization),
					&cli.IntFlag{Name: "machines", Aliases: []string{"n", "nodes"}, Value: 1, Usage: "`NUMBER` of machines"},
					&cli.StringFlag{Name: "cpu", Usage: "`CPUS` of each machine: 2 or 500m"},
					&cli.StringFlag{Name: "memory", Usage: "memory `SIZE` of each machine: 4Gi"},
					&cli.StringFlag{Name: "disk", Usage: "disk `SIZE` of each machine: 20Gi"},
					&cli.StringFlag{Name: "kubernetes-version", Aliases: []string{"kubernetes"}, Usage: "minor `VERSION` of Kubernetes: 1.36"},
					&cli.StringFlag{Name: "datastore", Usage: "`KIND` of the control plane's datastore: kine or etcd"},
					&cli.StringFlag{Name: "pod-security", Usage: "`LEVEL`: baseline, or privileged (for sysadmins)"},
					dryRunFlag(), waitFlags(), resultFlag()),
				run: (*call).createWorkspace,
			},
			{
				name: "list", aliases: []string{"ls"}, usage: "list the organization's workspaces",
				examples: []string{"mp ws list", "mp ws list -o wide"},
				flags:    flags(placeFlags(inOrganization), outputFlags()),
				run: func(c *call) error {
					t, err := c.need(inOrganization)
					if err != nil {
						return err
					}
					items, err := list[*resource.Workspace](c, t.organization("workspaces"), nil)
					if err != nil {
						return err
					}
					return printList(c, items, workspaceTable(c))
				},
			},
			{
				name: "use", usage: "work in this workspace", args: "NAME", names: workspaceNames(),
				examples: []string{"mp ws use shop"},
				flags:    placeFlags(inOrganization),
				run: func(c *call) error {
					t, err := c.workspaceArg(0)
					if err != nil {
						return err
					}
					if err := c.get(t.workspace(), &resource.Workspace{}); err != nil {
						return err
					}
					return c.choose(t)
				},
			},
			{
				name: "show", aliases: []string{"get"}, usage: "show a workspace and how far it is", args: "[NAME]", names: workspaceNames(),
				examples: []string{"mp ws show", "mp ws show shop -o yaml"},
				flags:    flags(placeFlags(inWorkspace), resultFlag()),
				run: func(c *call) error {
					t, err := c.workspaceArg(0)
					if err != nil {
						return err
					}
					return c.showWorkspace(t, "")
				},
			},
			{
				name: "set", usage: "change a workspace's settings", args: "[NAME]", names: workspaceNames(),
				about:    "Pod Security is lifted by sysadmins only: with privileged, pods of the tenant can take\nover the machines of this workspace. The number of machines is changed by\n'mp cluster scale'.",
				examples: []string{"mp ws set shop --pod-security privileged", "mp ws set shop --pod-security baseline"},
				flags: flags(placeFlags(inWorkspace),
					&cli.StringFlag{Name: "pod-security", Usage: "`LEVEL`: baseline or privileged"},
					dryRunFlag(), waitFlags(), resultFlag()),
				run: (*call).setWorkspace,
			},
			{
				name: "delete", aliases: []string{"rm"}, usage: "delete a workspace with everything in it", args: "NAME", names: workspaceNames(),
				examples: []string{"mp ws delete shop", "mp ws delete shop --yes --no-wait"},
				flags:    flags(placeFlags(inOrganization), yesFlag(), dryRunFlag(), waitFlags(), resultFlag()),
				run: func(c *call) error {
					t, err := c.workspaceArg(0)
					if err != nil {
						return err
					}
					if err := c.confirm("Delete workspace "+t.String()+" with its apps and data?", t.Workspace); err != nil {
						return err
					}
					return remove[*resource.Workspace](c, t.workspace(), workspaceTable(c), "Workspace "+t.String(), t)
				},
			},
		},
	}
}

// showWorkspace prints the workspace; with a sentence, that one for people.
func (c *call) showWorkspace(t Target, sentence string) error {
	var got resource.Workspace
	if err := c.get(t.workspace(), &got); err != nil {
		return err
	}
	if sentence != "" {
		return printResult(c, &got, workspaceTable(c), "%s", sentence)
	}
	return printOne(c, &got, workspaceTable(c), func(w io.Writer) { printConditions(w, got.Status.Conditions, c.now()) })
}

// workspaceCreate is what the user said about a new workspace. What he did not
// say is left out, for the platform to decide.
type workspaceCreate struct {
	Spec struct {
		KubernetesVersion string             `json:"kubernetesVersion,omitempty"`
		Datastore         resource.Datastore `json:"datastore,omitempty"`
		Machines          int                `json:"machines"`
		MachineSize       map[string]int64   `json:"machineSize,omitempty"`
		PodSecurity       string             `json:"podSecurity,omitempty"`
	} `json:"spec"`
}

func (c *call) createWorkspace() error {
	t, err := c.workspaceArg(0)
	if err != nil {
		return err
	}
	var body workspaceCreate
	s := &body.Spec
	s.KubernetesVersion, s.Datastore, s.Machines = c.String("kubernetes-version"), resource.Datastore(c.String("datastore")), c.Int("machines")
	s.PodSecurity = c.String("pod-security")
	if err := checkMachines(s.Machines); err != nil {
		return err
	}
	if s.MachineSize, err = c.machineSize(); err != nil {
		return err
	}
	var accepted resource.Accepted[*resource.Workspace]
	if err := c.write(http.MethodPut, t.workspace(), body, &accepted, "If-None-Match", "*"); err != nil {
		return err
	}
	if err := c.dropKubeToken(t); err != nil { // of a workspace that was called the same
		return err
	}
	if err := c.use(t); err != nil {
		return err
	}
	return c.settle(accepted.Task,
		func() error {
			return printResult(c, accepted.Resource, workspaceTable(c), "Workspace %s is being made, and chosen.", t)
		},
		func() error {
			return c.showWorkspace(t, fmt.Sprintf("Workspace %s is ready, and chosen. Reach it with '%s'.", t, c.hint("cluster", "config-kubectl")))
		})
}

// checkMachines refuses what no workspace can have.
func checkMachines(n int) error {
	if n < 0 || n > resource.MaxMachines {
		return usagef(fmt.Sprintf("use 0 to %d", resource.MaxMachines), "a workspace can't have %d machines", n)
	}
	return nil
}

// machineSize is what the flags say about the size; what they leave out the
// platform decides.
func (c *call) machineSize() (map[string]int64, error) {
	size := map[string]int64{}
	for _, f := range []struct {
		flag, field string
		milli       bool
	}{{"cpu", "milliCPU", true}, {"memory", "memoryBytes", false}, {"disk", "diskBytes", false}} {
		n, err := amount(c, f.flag, f.milli)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			size[f.field] = n
		}
	}
	return size, nil
}

// amount reads a flag like "500m" or "2Gi": a whole number of thousandths or of
// bytes. A flag that is not given is 0.
func amount(c *call, flag string, milli bool) (int64, error) {
	text := c.String(flag)
	if text == "" {
		return 0, nil
	}
	example := "2Gi or 512Mi"
	if milli {
		example = "2, 1.5 or 500m"
	}
	q, err := quantity.ParseQuantity(text)
	if err != nil || q.Sign() <= 0 {
		return 0, usagef("write it like "+example, "--%s %q is no amount", flag, text)
	}
	if milli {
		return q.MilliValue(), nil
	}
	return q.Value(), nil
}

func (c *call) setWorkspace() error {
	t, err := c.workspaceArg(0)
	if err != nil {
		return err
	}
	level := c.String("pod-security")
	switch level {
	case "baseline", "privileged":
	case "":
		return usagef("see '"+c.path+" --help'", "%s: nothing to set is given", c.path)
	default:
		return usagef("use baseline or privileged", "--pod-security %q is no level", level)
	}
	return c.patchWorkspace(t, map[string]any{"podSecurity": level}, "Workspace "+t.String()+" has Pod Security "+level+".")
}

// patchWorkspace changes fields of the spec and waits until that is so.
func (c *call) patchWorkspace(t Target, spec map[string]any, sentence string) error {
	var accepted resource.Accepted[*resource.Workspace]
	if err := c.write(http.MethodPatch, t.workspace(), map[string]any{"spec": spec}, &accepted); err != nil {
		return err
	}
	return c.settle(accepted.Task,
		func() error {
			return printResult(c, accepted.Resource, workspaceTable(c), "Workspace %s is being changed.", t)
		},
		func() error { return c.showWorkspace(t, sentence) })
}
