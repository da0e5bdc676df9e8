package client

import (
	"io"
	"net/url"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) tasks() noun[resource.Task] {
	return noun[resource.Task]{
		one:   "task",
		in:    anywhere,
		query: (*call).taskQuery,
		pick: func(c *call, tasks []resource.Task) []resource.Task {
			if n := c.Int("limit"); n > 0 && len(tasks) > n {
				return tasks[:n] // the newest come first
			}
			return tasks
		},
		more: func(w io.Writer, t *resource.Task) {
			printConditions(w, "STEPS", t.Status.Steps)
		},
		empty: "There are no tasks.",
		columns: []column[resource.Task]{
			{head: "ID", cell: func(t *resource.Task) string { return t.Name }},
			{head: "OPERATION", cell: func(t *resource.Task) string { return t.Spec.Operation }},
			{head: "TARGET", cell: func(t *resource.Task) string { return t.Spec.Target }},
			{head: "STATE", cell: func(t *resource.Task) string { return string(t.Status.State) }},
			{head: "AGE", cell: func(t *resource.Task) string { return since(t.CreatedAt) }},
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
func (c *call) taskQuery(q url.Values) error {
	t, err := c.place()
	if t.Account != "" && !c.Bool("all") {
		q.Set("account", t.Account)
	}
	if target := c.String("target"); target != "" {
		q.Set("target", target)
	}
	return err
}

func (p *program) taskCommands() *command {
	tasks := p.tasks()
	return group("tasks, task", "list, show and follow what the platform is doing",
		tasks.list(command{
			usage:    "list the account's tasks",
			examples: []string{"mp tasks", "mp tasks list --target acme/web/shop -o wide"},
			flags: flags(placeFlags(inAccount),
				&cli.StringFlag{Name: "target", Usage: "only tasks about `TARGET`, like acme/web/shop"},
				&cli.IntFlag{Name: "limit", Value: 50, Usage: "show the newest `NUMBER`, 0 for all"},
				&cli.BoolFlag{Name: "all", Usage: "show tasks of all accounts and of the platform, as far as you may see them"}),
		}),
		tasks.show(command{
			usage:    "show a task and its steps",
			args:     "ID",
			examples: []string{"mp tasks show 01JD...", "mp tasks show 01JD... -o json"},
		}),
		&command{
			name:  "follow, watch",
			usage: "follow a task until it ends",
			args:  "ID",
			names: tasks.names,
			about: `Ctrl-C detaches: the platform goes on, and this command comes back to the task. The exit
code is 1 if the task fails.`,
			examples: []string{"mp tasks follow 01JD...", "mp tasks follow 01JD... --timeout 1h"},
			flags:    flags(timeoutFlag(), resultFlag()),
			run: func(c *call) error {
				task, err := c.follow(c.arg(0), c.Duration("timeout"), 0)
				if err != nil {
					return err
				}
				return tasks.printResult(c, task, "%s of %s is done.", printable(task.Spec.Operation), printable(task.Spec.Target))
			},
		},
	)
}
