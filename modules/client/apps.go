package client

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) apps() noun[resource.App] {
	return noun[resource.App]{
		one:   "app",
		in:    inWorkspace,
		tasks: true,
		pick: func(c *call, apps []resource.App) []resource.App {
			ns := c.String("namespace")
			return slices.DeleteFunc(apps, func(a resource.App) bool { return ns != "" && a.Spec.Namespace != ns })
		},
		also: func(a *resource.App) string {
			if a.Status.URL == "" {
				return ""
			}
			return " It answers at " + printable(a.Status.URL)
		},
		empty: "There are no apps. Deploy one with 'mp apps deploy NAME --image IMAGE'.",
		columns: standard([]column[resource.App]{
			{head: "INSTANCES", cell: func(a *resource.App) string {
				return fmt.Sprintf("%d/%d", a.Status.InstancesReady, a.Spec.Instances)
			}},
			{head: "IMAGE", cell: func(a *resource.App) string { return a.Spec.Image }},
			{head: "URL", cell: func(a *resource.App) string { return a.Status.URL }},
			{head: "NAMESPACE", wide: true, cell: func(a *resource.App) string { return a.Spec.Namespace }},
			{head: "PORT", wide: true, cell: func(a *resource.App) string {
				if a.Spec.Port == 0 {
					return ""
				}
				return strconv.Itoa(a.Spec.Port)
			}},
			{head: "DIGEST", wide: true, cell: func(a *resource.App) string { return a.Status.ImageDigest }},
			{head: "MADE", wide: true, cell: func(a *resource.App) string { return ago(a.Status.ImageMadeAt) }},
			{head: "PUSHED", wide: true, cell: func(a *resource.App) string { return ago(a.Status.ImagePushedAt) }},
			{head: "SCALED BY", wide: true, cell: func(a *resource.App) string { return a.Status.ScaledBy }},
		}),
	}
}

func (p *program) appCommands() *command {
	apps := p.apps()
	return group("apps, app", "deploy, list, show, scale and delete apps",
		&command{
			name:  "deploy",
			usage: "deploy an app, or change one",
			args:  "[NAME] [COMMAND]...",
			names: apps.names,
			about: `In an app that exists, what no flag names stays as it is; --env KEY= removes a variable, and
--volume NAME: a volume. With one that is not shared, an app has one instance, which ends before the next begins.
With --image, what the tag names now is taken, also if the app had that tag before; scaling
and other changes keep the image that runs. Values and arguments reach the app byte for byte.
The app gets an address below the platform's domain, unless --no-route is given.`,
			examples: []string{
				"mp apps deploy hello --image hello:1 --instances 2 --port 8080",
				"mp apps deploy hello --image hello:2",
				"mp apps deploy hello --env MODE=prod --env DEBUG=",
				"mp apps deploy db --image postgres:17 --port 5432 --volume data:/var/lib/postgresql",
				"mp apps deploy worker --image jobs:3 --no-route -- ./work --queue mail",
			},
			flags: flags(placeFlags(inWorkspace), namespaceFlag(),
				&cli.StringFlag{Name: "name", Usage: "`NAME` of the app, if not given as argument"},
				&cli.StringFlag{Name: "image", Aliases: []string{"i"}, Usage: "`IMAGE`: hello:1 of this organization, or a full reference"},
				&cli.IntFlag{Name: "instances", Usage: "`NUMBER` of instances; 1 for a new app"},
				&cli.IntFlag{Name: "port", Aliases: []string{"p"}, Usage: "`PORT` the app listens on; also its variable PORT"},
				&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set the variable `KEY=VALUE`; may be given more than once"},
				&cli.StringSliceFlag{Name: "volume", Usage: "have the claim `NAME:/PATH` as a folder; may be given more than once"},
				&cli.StringFlag{Name: "cpu", Usage: "`CPUS` of one instance: 1 or 250m"},
				&cli.StringFlag{Name: "memory", Usage: "memory `SIZE` of one instance: 256Mi"},
				&cli.StringFlag{Name: "health-path", Usage: "ask `PATH` by HTTP whether an instance is healthy; without it, a connection is enough"},
				&cli.BoolFlag{Name: "no-route", Usage: "do not give the app an address"},
				&cli.BoolFlag{Name: "route", Usage: "give the app an address again"},
				dryRunFlag(), waitFlags(), resultFlag()),
			run: (*call).deploy,
		},
		apps.list(command{
			usage:    "list the workspace's apps",
			examples: []string{"mp apps list", "mp apps list -o wide"},
			flags:    []cli.Flag{namespaceFlag()},
		}),
		apps.show(help("show an app and its state", "mp apps show hello", "mp apps show hello -o yaml")),
		apps.set(command{
			name:     "scale",
			usage:    "change the number of an app's instances",
			args:     "[NAME] [INSTANCES]",
			examples: []string{"mp apps scale hello 3", "mp apps scale hello --instances 0"},
			flags: []cli.Flag{
				&cli.StringFlag{Name: "name", Usage: "`NAME` of the app, if not given as argument"},
				&cli.IntFlag{Name: "instances", Aliases: []string{"n"}, Usage: "the wanted `NUMBER` of instances"},
			},
			run: (*call).scaleApp,
		}, nil),
		apps.delete("Delete app %s?", help("delete an app", "mp apps delete hello --yes")),
	)
}

// appArg is the app that --name or the first argument names, and the arguments
// behind that.
func (c *call) appArg() (thing, []string, error) {
	name, rest := c.String("name"), c.Args().Slice()
	if name == "" && len(rest) > 0 {
		name, rest = rest[0], rest[1:]
	}
	if name == "" {
		return thing{}, nil, usagef("give it as argument, or with --name", "%s: the app's name is missing", c.path)
	}
	it, err := c.apps().named(c, name)
	return it, rest, err
}

func (c *call) deploy() error {
	it, command, err := c.appArg()
	if err != nil {
		return err
	}
	if _, err := c.changeApp(&resource.AppSpec{}, command); err != nil {
		return err // a mistake in the flags is told before the server is asked
	}
	for try := 0; ; try++ {
		var app resource.App
		err := c.get(it.path, &app)
		prob, _ := errors.AsType[*Problem](err)
		missing := prob != nil && prob.Status == http.StatusNotFound
		isNew := missing && c.String("image") != ""
		if err != nil && !isNew {
			if missing && prob.Remedy != "" {
				prob.Remedy += " To make a new app, give --image."
			}
			return err
		}
		match := []string{"If-None-Match", "*"}
		if isNew {
			app.Spec = resource.AppSpec{Namespace: it.Namespace, Instances: 1}
		} else {
			match = []string{"If-Match", fmt.Sprintf("%q", fmt.Sprint(app.Revision))}
		}
		before := app
		before.Spec.Env = maps.Clone(app.Spec.Env)
		changed, err := c.changeApp(&app.Spec, command)
		if err != nil {
			return err
		}
		if !changed && !isNew {
			return usagef("see '"+c.path+" --help'", "app %s exists, and nothing to change is given", it.name)
		}
		accepted, err := c.apps().write(c, http.MethodPut, it.path, map[string]any{"spec": app.Spec}, match...)
		if prob, ok := errors.AsType[*Problem](err); ok && prob.Status == http.StatusPreconditionFailed && try < maxDeployTries {
			continue // somebody else changed it between our look and our write
		}
		if err != nil {
			return err
		}
		apps := c.apps()
		subject, address := apps.subject(it), apps.also
		apps.also = func(now *resource.App) string { return deployed(subject, &before, now) + address(now) }
		return apps.settle(c, it.path, accepted, subject+" is being changed.", "")
	}
}

// deployed says what a deployment has made of an app: which image runs, and how old it
// is. before is the app as it was; a new one has no name.
func deployed(subject string, before, now *resource.App) string {
	image := printable(now.Spec.Image)
	digest := printable(now.Status.ImageDigest)
	if digest == "" || now.Status.Release != now.Spec.Release {
		return subject + " is deployed."
	}
	if strings.HasSuffix(image, digest) {
		image = "its image"
	}
	age := ""
	if t := now.Status.ImageMadeAt; !t.IsZero() {
		age += ", made " + ago(t)
	}
	if t := now.Status.ImagePushedAt; !t.IsZero() {
		age += ", pushed " + ago(t)
	}
	was, is := before.Spec, now.Spec
	was.Release, is.Release = 0, 0
	same := before.Status.ImageDigest == digest && reflect.DeepEqual(was, is)
	if before.Name != "" && same {
		app := strings.ToLower(subject[:1]) + subject[1:]
		return fmt.Sprintf("Nothing has changed: %s is still %s%s, and %s runs it.", image, digest, age, app)
	}
	return fmt.Sprintf("%s is deployed: %s is %s%s.", subject, image, digest, age)
}

// ago is how long ago t was, in words, or "" for no time.
func ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return since(t) + " ago"
}

// maxDeployTries bounds how often a deployment starts over because somebody
// else changed the app at the same moment; the platform itself writes its
// status a few times while it starts.
const maxDeployTries = 10

// changeApp lays the flags over spec and tells whether they say anything.
func (c *call) changeApp(spec *resource.AppSpec, command []string) (changed bool, err error) {
	if c.IsSet("image") {
		spec.Release = 0 // what the tag names now
	}
	for flag, field := range map[string]*string{"image": &spec.Image, "namespace": &spec.Namespace, "health-path": &spec.HealthPath} {
		if c.IsSet(flag) {
			*field, changed = c.String(flag), true
		}
	}
	if c.IsSet("instances") {
		if err := checkInstances(c.Int("instances")); err != nil {
			return false, err
		}
		spec.Instances, changed = c.Int("instances"), true
	}
	if c.IsSet("port") {
		if p := c.Int("port"); p < 1 || p > 65535 {
			return false, usagef("use 1 to 65535", "--port %d is not a port", p)
		}
		spec.Port, changed = c.Int("port"), true
	}
	for _, pair := range c.StringSlice("env") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return false, usagef("write it like --env KEY=VALUE", "--env %q does not set a variable", pair)
		}
		if spec.Env == nil {
			spec.Env = map[string]string{}
		}
		spec.Env[key], changed = value, true
		if value == "" {
			delete(spec.Env, key)
		}
	}
	for _, pair := range c.StringSlice("volume") {
		claim, path, ok := strings.Cut(pair, ":")
		if !ok || claim == "" || path != "" && !strings.HasPrefix(path, "/") {
			return false, usagef("write it like --volume data:/var/lib/data", "--volume %q names no claim and folder", pair)
		}
		spec.Volumes = slices.DeleteFunc(slices.Clone(spec.Volumes), func(v resource.AppVolume) bool {
			return v.Claim == claim
		})
		if changed = true; path != "" {
			spec.Volumes = append(spec.Volumes, resource.AppVolume{Claim: claim, Path: path})
		}
	}
	for flag, field := range map[string]*int64{"cpu": &spec.MilliCPU, "memory": &spec.MemoryBytes} {
		n, err := amount(c, flag)
		if err != nil {
			return false, err
		}
		if n > 0 {
			*field, changed = n, true
		}
	}
	switch {
	case c.Bool("route") && c.Bool("no-route"):
		return false, usagef("give one of them", "%s: --route and --no-route contradict each other", c.path)
	case c.Bool("no-route"):
		spec.NoRoute, changed = true, true
	case c.Bool("route"):
		spec.NoRoute, changed = false, true
	}
	if len(command) > 0 {
		spec.Command, changed = command, true
	}
	return changed, nil
}

func checkInstances(n int) error {
	return checkCount(n, resource.MaxInstances, "an app can't have %d instances")
}

func (c *call) scaleApp() error {
	it, rest, err := c.appArg()
	if err != nil {
		return err
	}
	n := c.Int("instances")
	switch {
	case len(rest) > 1 || len(rest) == 1 && c.IsSet("instances"):
		return usagef("type it as: "+synopsis(c.path, c.cmd), "%s: %q is one argument too many", c.path, rest[len(rest)-1])
	case len(rest) == 1:
		if n, err = strconv.Atoi(rest[0]); err != nil {
			return usagef("give a number like 3", "%q is not a number of instances", rest[0])
		}
	case !c.IsSet("instances"):
		return usagef("give it as argument, or with --instances", "%s: the number of instances is missing", c.path)
	}
	if err := checkInstances(n); err != nil {
		return err
	}
	return c.apps().patch(c, it, map[string]any{"instances": n}, "has "+count(n, "instance"))
}
