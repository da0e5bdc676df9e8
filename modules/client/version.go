package client

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

// versionView is what `mp version` shows.
type versionView struct {
	Client string         `json:"client"`
	Server *resource.Info `json:"server,omitempty"`
}

// versionTimeout keeps `mp version` quick when the server is away.
const versionTimeout = 5 * time.Second

func (p *program) versionCommand() *command {
	return &command{
		name: "version", usage: "show the versions of client and platform, and the platform's addresses",
		examples: []string{"mp version", "mp version --client"},
		flags:    flags(&cli.BoolFlag{Name: "client", Usage: "do not ask the server"}, resultFlag()),
		run:      (*call).version,
	}
}

func (c *call) version() error {
	view := versionView{Client: buildVersion()}
	t := noun[versionView]{columns: []column[versionView]{
		{head: "CLIENT", cell: func(v *versionView) string { return v.Client }},
	}}
	conf, err := c.conf()
	if err != nil {
		return err
	}
	if conf.Server != "" && !c.Bool("client") {
		r, err := c.anonymous()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context.Context, versionTimeout)
		defer cancel()
		var info resource.Info
		if err := r.do(ctx, http.MethodGet, apiPath("info"), nil, &info); err != nil {
			c.note("mp: the server's version is not known: %s", printable(err.Error()))
		} else {
			view.Server = &info
			t.columns = append(t.columns,
				column[versionView]{head: "PLATFORM", cell: func(v *versionView) string { return v.Server.Version }},
				column[versionView]{head: "KUBERNETES", cell: func(v *versionView) string { return strings.Join(v.Server.KubernetesVersions, ", ") }},
				column[versionView]{head: "APPS-BELOW", cell: func(v *versionView) string { return v.Server.Domain }},
				column[versionView]{head: "REGISTRY", cell: func(v *versionView) string { return v.Server.Registry }},
				column[versionView]{head: "KUBERNETES-API", cell: func(v *versionView) string { return v.Server.KubernetesAPI }},
			)
		}
	}
	return t.printOne(c, &view)
}
