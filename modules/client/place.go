package client

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

// conf is what `mp init` and the `use` verbs remembered.
func (c *call) conf() (*Config, error) {
	if c.config != nil {
		return c.config, nil
	}
	dir, err := c.configDir()
	if err != nil {
		return nil, err
	}
	conf := &Config{} // there may be none yet
	if err := readJSON(filepath.Join(dir, "config.json"), conf, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c.dir, c.config = dir, conf
	return conf, nil
}

// place is where this call works: the remembered context, changed by the
// environment, changed by flags.
func (c *call) place() (Target, error) {
	conf, err := c.conf()
	if err != nil {
		return Target{}, err
	}
	env := Target{os.Getenv("MP_ACCOUNT"), os.Getenv("MP_ORGANIZATION"), os.Getenv("MP_WORKSPACE"), os.Getenv("MP_NAMESPACE")}
	flags := Target{c.String("account"), c.String("organization"), c.String("workspace"), c.String("namespace")}
	return conf.Context.with(env).with(flags), nil
}

// depth says how much of a place a command needs.
type depth int

const (
	anywhere depth = iota
	inAccount
	inOrganization
	inWorkspace
	inNamespace // of its cluster: "default", if none is chosen
)

func (d depth) String() string {
	return [...]string{"platform", "account", "organization", "workspace", "namespace"}[d]
}

// need is place, with everything down to d set.
func (c *call) need(d depth) (Target, error) {
	t, err := c.place()
	if err != nil {
		return t, err
	}
	if d == inNamespace {
		t.Namespace = cmp.Or(t.Namespace, "default")
	}
	for i, name := range t.levels()[:d] {
		if *name == "" {
			level, noun := depth(i+1), [...]string{"accounts", "org", "ws"}[i]
			remedy := fmt.Sprintf("choose one with '%s', or give --%v", c.hint(noun, "use", "NAME"), level)
			return t, usagef(remedy, "%s: no %v is chosen", c.path, level)
		}
	}
	return t, nil
}

// placeArg is need(d), but for the last name, which is the first argument if
// there is one.
func (c *call) placeArg(d depth) (Target, error) {
	if c.NArg() == 0 {
		return c.need(d)
	}
	t, err := c.need(d - 1)
	if err != nil {
		return t, err
	}
	levels := t.levels()
	for _, below := range levels[d:] {
		*below = ""
	}
	*levels[d-1] = c.arg(0)
	return t, checkName(d.String(), c.arg(0))
}

// checkName is resource.CheckName as a usage error: the API would say the same.
func checkName(what, name string) error {
	if err := resource.CheckName(what, name); err != nil {
		return usagef("names are RFC 1123 labels, like \"shop\" or \"team-2\"", "%v", err)
	}
	return nil
}

// use remembers t as the context, which was read before.
func (c *call) use(t Target) error {
	c.config.Context = t
	return writeConfig(c.dir, c.config)
}

// choose remembers t on top of the context and says so.
func (c *call) choose(t Target) error {
	now := c.config.Context.with(t)
	if err := c.use(now); err != nil {
		return err
	}
	text := now.String()
	if now.Namespace != "" {
		text += ", namespace " + now.Namespace
	}
	_, err := fmt.Fprintf(c.out, "Working in %s.\n", printable(text))
	return err
}

// forget leaves a place that goes, for the one above it, and cached tokens for it.
func (c *call) forget(gone Target) error {
	if err := c.dropKubeToken(gone); err != nil {
		return err
	}
	if now := c.config.Context; now.with(gone) != now {
		return nil // another place is chosen
	}
	for _, last := range slices.Backward(gone.levels()) {
		if *last != "" {
			*last = ""
			break
		}
	}
	return c.use(gone)
}

// at is the API's path of a place, as deep as d, with more words behind.
func (t Target) at(d depth, words ...string) string {
	place := []string{"accounts", t.Account, "organizations", t.Organization, "workspaces", t.Workspace, "namespaces", t.Namespace}
	return apiPath(slices.Concat(place[:2*d], words)...)
}

// anonymous opens the server without a session.
func (c *call) anonymous() (*remote, error) {
	conf, err := c.conf()
	if err != nil {
		return nil, err
	}
	if conf.Server == "" {
		return nil, usagef("run '"+c.hint("init", "https://SERVER:7443", "--ca", "FILE")+"' first", "no server is set")
	}
	return newRemote(conf.Server, []byte(conf.CA))
}

// remote opens the server with the session's token.
func (c *call) remote() (*remote, error) {
	if c.opened != nil {
		return c.opened, nil
	}
	if file := c.String("credentials"); file != "" {
		r, err := c.asOperator(file)
		c.opened = r
		return r, err
	}
	if c.String("server") != "" || c.String("ca") != "" {
		const remedy = "give --credentials too, or 'mp init' and 'mp login' first"
		return nil, usagef(remedy, "%s: --server and --ca go with --credentials", c.path)
	}
	r, err := c.anonymous()
	if err != nil {
		return nil, err
	}
	s, err := readSession(c.dir, r.server)
	if err != nil {
		return nil, err
	}
	login := "log in with '" + c.hint("login") + "'"
	switch {
	case s == nil:
		return nil, &failure{text: "you are not logged in to " + r.server, remedy: login, code: ExitDenied}
	case !s.ExpiresAt.IsZero() && time.Now().After(s.ExpiresAt):
		return nil, &failure{text: "your session has ended", remedy: login, code: ExitDenied}
	}
	r.token = s.Token
	c.opened = r
	return r, nil
}

// get reads one resource.
func (c *call) get(path string, out any) error {
	r, err := c.remote()
	if err != nil {
		return err
	}
	return r.do(c.Context.Context, http.MethodGet, path, nil, out)
}

// write sends a changing request, or shows it when --dry-run is given.
func (c *call) write(method, path string, in, out any, header ...string) error {
	if c.Bool("dry-run") {
		return c.showRequest(method, path, in)
	}
	r, err := c.remote()
	if err != nil {
		return err
	}
	return r.do(c.Context.Context, method, path, in, out, header...)
}

// showRequest prints what would be sent. The server has not looked at it.
func (c *call) showRequest(method, path string, in any) error {
	format, err := c.format()
	if err != nil {
		return err
	}
	request := struct {
		Method string `json:"method"`
		Path   string `json:"path"`
		Body   any    `json:"body,omitempty"`
	}{method, path, in}
	if format == asJSON || format == asYAML {
		return cmp.Or(printData(c, format, request), errDryRun)
	}
	fmt.Fprintf(c.out, "%s %s\n", method, path)
	if in != nil {
		data, err := json.MarshalIndent(in, "", "  ")
		if err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%s\n", data)
	}
	c.note("Nothing was sent, and the server has not checked it.")
	return errDryRun
}

// Flags that several commands have. Each call makes new ones: urfave keeps
// state in them.

func outputFlags() []cli.Flag {
	return []cli.Flag{
		resultFlag(),
		&cli.BoolFlag{Name: "no-headers", Usage: "leave out the table's header"},
	}
}

func resultFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT`: table, wide, json, yaml or name"}
}

func placeFlags(d depth) []cli.Flag {
	all := []cli.Flag{
		&cli.StringFlag{Name: "account", Aliases: []string{"a"}, Usage: "work in account `NAME` (MP_ACCOUNT)"},
		&cli.StringFlag{Name: "organization", Aliases: []string{"org"}, Usage: "work in organization `NAME` (MP_ORGANIZATION)"},
		&cli.StringFlag{Name: "workspace", Aliases: []string{"w", "ws"}, Usage: "work in workspace `NAME` (MP_WORKSPACE)"},
	}
	if d == inNamespace {
		return append(all, namespaceFlag())
	}
	return all[:d]
}

func namespaceFlag() cli.Flag {
	return &cli.StringFlag{Name: "namespace", Aliases: []string{"ns"}, Usage: "Kubernetes namespace `NAME` (MP_NAMESPACE)"}
}

func waitFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "wait", Value: true, Usage: "wait until the platform is done"},
		&cli.BoolFlag{Name: "no-wait", Usage: "return at once; follow the task later"},
		timeoutFlag(),
	}
}

func timeoutFlag() cli.Flag {
	return &cli.DurationFlag{
		Name:  "timeout",
		Value: defaultTimeout,
		Usage: "wait at most `DURATION`, 0 for no limit; then exit with 5, and the platform goes on",
	}
}

func yesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask for confirmation"}
}

func dryRunFlag() cli.Flag {
	return &cli.BoolFlag{Name: "dry-run", Usage: "show the request instead of sending it"}
}

// flags puts groups of flags together.
func flags(groups ...any) []cli.Flag {
	var all []cli.Flag
	for _, g := range groups {
		switch g := g.(type) {
		case cli.Flag:
			all = append(all, g)
		case []cli.Flag:
			all = append(all, g...)
		}
	}
	return all
}
