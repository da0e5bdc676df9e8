package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/vm"
)

// host is a virtual machine as testing/datacenter knows hosts: systemd runs the
// appliance there.
type host struct{ *vm.VM }

var _ datacenter.Host = host{}

func (h host) Run(ctx context.Context, args ...string) ([]byte, error) {
	out, err := h.Must(ctx, args...)
	return []byte(out), err
}

func (h host) Serve(ctx context.Context) error {
	_, err := h.Must(ctx, "systemctl", "start", "multipaas-server")
	return err
}

func (h host) Join(ctx context.Context, url string, token func(context.Context) (string, error)) error {
	word, err := token(ctx)
	if err != nil {
		return err
	}
	r, err := h.VM.Run(ctx, word, "multipaas", "node", "join", "--no-run", "--token-file", "-", url)
	if err == nil && r.Code != 0 {
		err = errors.New(r.String())
	}
	if err == nil {
		_, err = h.Must(ctx, "systemctl", "start", "multipaas-node")
	}
	return err
}

func (h host) Status(ctx context.Context) (*status.Status, error) {
	out, err := h.Must(ctx, "multipaas", "status", "-o", "json")
	if err != nil {
		return nil, err
	}
	var s status.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return nil, fmt.Errorf("status: %w: %s", err, out)
	}
	return &s, nil
}

func (h host) LastWords(ctx context.Context) string {
	out, _ := h.Must(ctx, "journalctl", "--no-pager", "-n", "20", "-o", "cat", "-u", "multipaas-"+h.Name())
	return out
}

// desk is root's home in a virtual machine.
type desk struct{ *vm.VM }

var _ datacenter.Desk = desk{}

func (d desk) MP(ctx context.Context, who string, args ...string) (string, error) {
	return d.Must(ctx, append([]string{"env", "MP_CONFIG=" + d.Path("mp-"+who), "multipaas", "mp"}, args...)...)
}

func (d desk) Path(name string) string { return path.Join("/root", name) }

func (d desk) Write(ctx context.Context, name string, data []byte, _ fs.FileMode) error {
	return d.VM.Write(ctx, d.Path(name), string(data))
}
