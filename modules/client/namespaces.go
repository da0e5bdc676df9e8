package client

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
)

func namespaceTable() table[*resource.Namespace] {
	return table[*resource.Namespace]{
		name:  func(n *resource.Namespace) string { return n.Name },
		empty: "The workspace has no namespaces.",
		columns: []column[*resource.Namespace]{
			{head: "NAME", cell: func(n *resource.Namespace) string { return n.Name }},
			{head: "PHASE", cell: func(n *resource.Namespace) string { return n.Phase }},
		},
	}
}

func namespaceNames() func(*call) ([]string, error) {
	return names(func(n *resource.Namespace) string { return n.Name }, func(c *call) (string, error) {
		t, err := c.need(inWorkspace)
		return t.workspace("namespaces"), err
	})
}

func (p *program) namespaceCommands() *command {
	return &command{
		name: "ns", aliases: []string{"namespace", "namespaces"}, usage: "make, list, choose and delete Kubernetes namespaces",
		sub: []*command{
			{
				name: "create", usage: "make a namespace in the workspace", args: "NAME",
				examples: []string{"mp ns create staging"},
				flags:    flags(placeFlags(inWorkspace), dryRunFlag(), resultFlag()),
				run: func(c *call) error {
					t, err := c.namespaceArg()
					if err != nil {
						return err
					}
					made := resource.Namespace{Name: t.Namespace}
					if err := c.write(http.MethodPut, t.workspace("namespaces", t.Namespace), nil, &made); err != nil {
						return err
					}
					return printResult(c, &made, namespaceTable(), "Namespace %s is there.", t.Namespace)
				},
			},
			{
				name: "list", aliases: []string{"ls"}, usage: "list the workspace's namespaces",
				examples: []string{"mp ns list"},
				flags:    flags(placeFlags(inWorkspace), outputFlags()),
				run: func(c *call) error {
					t, err := c.need(inWorkspace)
					if err != nil {
						return err
					}
					items, err := list[*resource.Namespace](c, t.workspace("namespaces"), nil)
					if err != nil {
						return err
					}
					return printList(c, items, namespaceTable())
				},
			},
			{
				name: "use", usage: "deploy into this namespace", args: "NAME", names: namespaceNames(),
				examples: []string{"mp ns use staging"},
				flags:    placeFlags(inWorkspace),
				run: func(c *call) error {
					t, err := c.namespaceArg()
					if err != nil {
						return err
					}
					items, err := list[*resource.Namespace](c, t.workspace("namespaces"), nil)
					if err != nil {
						return err
					}
					var there []string
					for _, n := range items {
						there = append(there, n.Name)
					}
					if !contains(there, t.Namespace) {
						return &failure{text: fmt.Sprintf("%s has no namespace %q", t, t.Namespace), remedy: "there are: " + strings.Join(there, ", "), code: ExitNotFound}
					}
					return c.choose(t)
				},
			},
			{
				name: "delete", aliases: []string{"rm"}, usage: "delete a namespace with everything in it", args: "NAME", names: namespaceNames(),
				examples: []string{"mp ns delete staging --yes"},
				flags:    flags(placeFlags(inWorkspace), yesFlag(), dryRunFlag()),
				run: func(c *call) error {
					t, err := c.namespaceArg()
					if err != nil {
						return err
					}
					if err := c.confirm("Delete namespace "+t.Namespace+" of "+t.String()+" with everything in it?", ""); err != nil {
						return err
					}
					if err := c.write(http.MethodDelete, t.workspace("namespaces", t.Namespace), nil, nil); err != nil {
						return err
					}
					// Only the namespace goes; the workspace's tokens stay good.
					if c.config.Context == t {
						t.Namespace = ""
						if err := c.use(t); err != nil {
							return err
						}
					}
					_, err = fmt.Fprintf(c.out, "Namespace %s is being deleted.\n", c.arg(0))
					return err
				},
			},
		},
	}
}

// namespaceArg is the place of the namespace in the first argument.
func (c *call) namespaceArg() (Target, error) {
	t, err := c.need(inWorkspace)
	if err != nil {
		return t, err
	}
	t.Namespace = c.arg(0)
	return t, checkName("namespace", t.Namespace)
}
