package client

import (
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func taskTable(c *call) table[*resource.Task] {
	now := c.now()
	return table[*resource.Task]{
		name:  func(t *resource.Task) string { return t.Name },
		empty: "There are no tasks.",
		columns: []column[*resource.Task]{
			{head: "ID", cell: func(t *resource.Task) string { return t.Name }},
			{head: "OPERATION", cell: func(t *resource.Task) string { return t.Spec.Operation }},
			{head: "TARGET", cell: func(t *resource.Task) string { return t.Spec.Target }},
			{head: "STATE", cell: func(t *resource.Task) string { return string(t.Status.State) }},
			{head: "AGE", cell: func(t *resource.Task) string { return age(t.CreatedAt, now) }},
			{head: "BY", wide: true, cell: func(t *resource.Task) string { return t.Spec.By }},
			{head: "TOOK", wide: true, cell: func(t *resource.Task) string {
				if t.Status.EndedAt == nil {
					return ""
				}
				return t.Status.EndedAt.Sub(t.CreatedAt).Round(time.Second).String()
			}},
			{head: "MESSAGE", wide: true, cell: func(t *resource.Task) string { return t.Status.Message }},
		},
	}
}

// taskQuery asks for the tasks of one account, or of all one may see.
func (c *call) taskQuery() (url.Values, error) {
	q := url.Values{}
	t, err := c.place()
	if err != nil {
		return nil, err
	}
	if t.Account != "" && !c.Bool("all") {
		q.Set("account", t.Account)
	}
	if target := c.String("target"); target != "" {
		q.Set("target", target)
	}
	return q, nil
}

func (c *call) tasks() ([]*resource.Task, error) {
	q, err := c.taskQuery()
	if err != nil {
		return nil, err
	}
	return list[*resource.Task](c, apiPath("tasks"), q)
}

func taskNames(c *call) ([]string, error) {
	items, err := c.tasks()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, t := range items {
		ids = append(ids, t.Name)
	}
	return ids, nil
}

func (p *program) taskCommands() *command {
	return &command{
		name: "tasks", aliases: []string{"task"}, usage: "list, show and follow what the platform is doing",
		sub: []*command{
			{
				name: "list", aliases: []string{"ls"}, usage: "list the account's tasks",
				examples: []string{"mp tasks", "mp tasks list --target acme/web/shop -o wide"},
				flags: flags(placeFlags(inAccount),
					&cli.StringFlag{Name: "target", Usage: "only tasks for `ACCOUNT/ORGANIZATION/WORKSPACE` and the like"},
					&cli.IntFlag{Name: "limit", Value: 50, Usage: "at most the newest `NUMBER`, 0 for all"},
					&cli.BoolFlag{Name: "all", Usage: "of all accounts, and the platform's own, as far as you may see them"},
					outputFlags()),
				run: func(c *call) error {
					items, err := c.tasks()
					if err != nil {
						return err
					}
					if n := c.Int("limit"); n > 0 && len(items) > n {
						items = items[:n] // the newest come first
					}
					return printList(c, items, taskTable(c))
				},
			},
			{
				name: "show", aliases: []string{"get"}, usage: "show a task and its steps", args: "ID", names: taskNames,
				examples: []string{"mp tasks show 01JD...", "mp tasks show 01JD... -o json"},
				flags:    flags(resultFlag()),
				run: func(c *call) error {
					var got resource.Task
					if err := c.get(apiPath("tasks", c.arg(0)), &got); err != nil {
						return err
					}
					return c.showTask(&got)
				},
			},
			{
				name: "follow", aliases: []string{"watch"}, usage: "follow a task until it ends", args: "ID", names: taskNames,
				about:    "Ctrl-C detaches: the platform goes on, and this command comes back to the task. A task\nthat failed exits with 1.",
				examples: []string{"mp tasks follow 01JD...", "mp tasks follow 01JD... --timeout 1h"},
				flags:    flags(timeoutFlag(), resultFlag()),
				run: func(c *call) error {
					task, err := c.follow(c.arg(0), c.Duration("timeout"))
					if err != nil {
						return err
					}
					return printResult(c, task, taskTable(c), "%s of %s is done.", printable(task.Spec.Operation), printable(task.Spec.Target))
				},
			},
		},
	}
}

func (c *call) showTask(task *resource.Task) error {
	return printOne(c, task, taskTable(c), func(w io.Writer) {
		if len(task.Status.Steps) == 0 {
			return
		}
		fmt.Fprintln(w, "\nSTEPS")
		for _, s := range task.Status.Steps {
			fmt.Fprintf(w, "  %s (%s)\n", stepLine(s, ".."), age(s.Since, c.now()))
		}
	})
}
