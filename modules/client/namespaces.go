package client

import (
	"fmt"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) namespaces() noun[resource.Namespace] {
	return noun[resource.Namespace]{
		one:   "namespace",
		in:    inWorkspace,
		gone:  "being deleted", // Kubernetes takes its time
		keeps: true,
		empty: "The workspace has no namespaces.",
		columns: []column[resource.Namespace]{
			{head: "NAME", cell: func(n *resource.Namespace) string { return n.Name }},
			{head: "PHASE", cell: func(n *resource.Namespace) string { return n.Phase }},
		},
	}
}

func (p *program) namespaceCommands() *command {
	namespaces := p.namespaces()
	return group("ns, namespace, namespaces", "create, list, choose and delete Kubernetes namespaces",
		namespaces.create(command{
			usage: "create a namespace in the workspace, or open one to its developers",
			about: `Developers work in the namespaces that are made so, and in "default": those with the label
multipaas.internal/developers=true. There they may do what Kubernetes' role "edit" allows,
but for acting as service accounts that may do more than they may: no pods and workloads
with these, no exec into such pods, no tokens. A service account that makes pods counts
as all of its namespace. The same label on a service account opens that one to them. They
read the namespace's secrets, and change config maps and volumes that others' pods use:
keep operators in namespaces that you make with kubectl.`,
			examples: []string{"mp ns create staging"},
		}, nil),
		namespaces.list(help("list the workspace's namespaces", "mp ns list")),
		namespaces.use(command{
			usage:    "deploy into this namespace",
			examples: []string{"mp ns use staging"},
			run:      namespaces.on((*call).useNamespace),
		}),
		namespaces.delete("", command{
			usage:    "delete a namespace with everything in it",
			examples: []string{"mp ns delete staging --yes"},
			run:      (*call).deleteNamespace,
		}),
	)
}

// useNamespace looks for it in the list: the API shows no single one.
func (c *call) useNamespace(it thing) error {
	there, err := c.namespaces().names(c)
	if err != nil {
		return err
	}
	if !slices.Contains(there, it.name) {
		return &failure{
			text:   fmt.Sprintf("%s has no namespace %q", it.Target, it.name),
			remedy: "there are: " + strings.Join(there, ", "),
			code:   ExitNotFound,
		}
	}
	it.Namespace = it.name
	return c.choose(it.Target)
}

func (c *call) deleteNamespace() error {
	if err := c.namespaces().remove(c, "Delete namespace %s with everything in it?", ""); err != nil {
		return err
	}
	t, err := c.need(inWorkspace)
	if err != nil {
		return err
	}
	t.Namespace = c.arg(0)
	return c.forget(t)
}
