package datacenter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/lab"
)

// OnLab brings a datacenter up on a lab: its hosts are server, node1, node2 and
// so on, the desk is the lab's folder here. Hosts that are missing are added, and
// those that run another binary than the lab's boot anew.
func OnLab(ctx context.Context, l *lab.Lab, binary string, spec Spec, say func(format string, args ...any)) (*Datacenter, error) {
	d := &Datacenter{
		Spec: spec,
		Desk: Here{Binary: binary, Dir: l.Dir(), Say: say},
		Say:  say,
	}
	err := d.step(ctx, fmt.Sprintf("hosts: a server and %d nodes", spec.Nodes), func(ctx context.Context) error {
		server, err := d.host(ctx, l, binary, "server")
		if err != nil {
			return err
		}
		d.Server = server
		for i := range spec.Nodes {
			node, err := d.host(ctx, l, binary, fmt.Sprintf("node%d", i+1))
			if err != nil {
				return err
			}
			d.Nodes = append(d.Nodes, node)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d, d.Up(ctx)
}

// host adds a host, or boots it anew if it runs an older binary.
func (d *Datacenter) host(ctx context.Context, l *lab.Lab, binary, name string) (Host, error) {
	h, err := l.AddHost(ctx, name)
	if err != nil {
		return nil, err
	}
	if h.Running() && h.Binary() != "" && h.Binary() != lab.Fingerprint(binary) {
		d.say("    %s runs an older binary: it boots anew", name)
		services, err := h.Services(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range services {
			if err := h.Stop(ctx, s.Name); err != nil {
				d.say("    %v", err)
			}
		}
		if err := h.Kill(ctx); err != nil {
			return nil, err
		}
	}
	if err := h.Boot(ctx); err != nil {
		return nil, err
	}
	d.say("    %s %s", h.Name(), h.Address())
	return LabHost(h), nil
}

// LabHost is a host of a lab as a Host.
func LabHost(h *lab.Host) Host { return labHost{h} }

type labHost struct{ *lab.Host }

// service is the appliance, as a lab's host runs it.
const service = "multipaas"

// ensure starts the appliance unless it runs.
func (h labHost) ensure(ctx context.Context, s lab.Service) error {
	all, err := h.Services(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(o lab.ServiceStatus) bool { return o.Name == s.Name && o.PID != 0 }) {
		return nil
	}
	return h.Start(ctx, s)
}

func (h labHost) Serve(ctx context.Context) error {
	const file = "/etc/multipaas/config.yaml"
	config := fmt.Sprintf("name: %s\naddress: %s\ndomain: %s\n", h.Name(), h.Address(), Domain)
	if err := h.WriteFile(ctx, file, []byte(config), 0o600); err != nil {
		return err
	}
	return h.ensure(ctx, lab.Service{Name: service, Args: []string{"multipaas", "server", "--config", file}})
}

func (h labHost) Join(ctx context.Context, url string, token func(context.Context) (string, error)) error {
	s := lab.Service{
		Name: service,
		Args: []string{"multipaas", "node", "join", "--address", h.Address().String(), "--name", h.Name(), url},
	}
	if _, err := os.Stat(h.Data("node", "identity.json")); errors.Is(err, fs.ErrNotExist) {
		word, err := token(ctx)
		if err != nil {
			return err
		}
		s.Env = []string{"MULTIPAAS_JOIN_TOKEN=" + word}
		// One that waits with a token that is used up would wait for ever.
		if err := h.Stop(ctx, s.Name); err != nil {
			return err
		}
	}
	return h.ensure(ctx, s)
}

func (h labHost) Status(ctx context.Context) (*status.Status, error) {
	st, err := status.Fetch(ctx, h.Root("run", "multipaas", "status.sock"))
	if err == nil {
		return st, nil
	}
	services, serr := h.Services(ctx)
	if serr == nil && slices.ContainsFunc(services, func(s lab.ServiceStatus) bool { return s.Name == service && s.Restarts >= 3 }) {
		err = ErrFailed
	}
	return st, err
}

func (h labHost) LastWords(context.Context) string {
	data, err := os.ReadFile(h.LogFile(service))
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return "    " + strings.Join(all[max(0, len(all)-15):], "\n    ")
}
