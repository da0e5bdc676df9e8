package vm_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/vm"
	"github.com/multipaas/multipaas/testing/wait"
)

// encrypted is the life of an encrypted volume that an app has: its pod writes, the host boots again and asks the server for
// the key, the pod reads, and all of it goes. The node's disk shows nothing of what was written.
func (p *platform) encrypted(ctx context.Context, t *testing.T) {
	const (
		app, volume = datacenter.VolumesApp, "secret"
		word        = "in-plain-text"
		timeout     = "25m"
	)
	mp := func(args ...string) string {
		t.Helper()
		out, err := p.built.Desk.MP(ctx, datacenter.Owner, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	host := strings.Replace(datacenter.AppHost, datacenter.App, app, 1)
	ca := p.built.Desk.Path(datacenter.CAFile)
	notes := func(more ...string) (has string) {
		t.Helper()
		wait.For(t, patience, "the app with a volume answers", func(ctx context.Context) (err error) {
			has, err = p.node.Must(ctx, append([]string{"curl", "-sS", "--fail", "--max-time", "60", "--cacert", ca,
				"--resolve", host + ":443:" + p.server.Address().String(), "https://" + host + "/notes"}, more...)...)
			return err
		})
		return has
	}

	mp("volumes", "create", volume, "--size", "320Mi", "--encrypted", "--timeout", timeout)
	wait.For(t, patience, "the volume is bound", func(ctx context.Context) error { // emulated, a plane that has much to do is slow to answer
		_, err := p.built.Desk.MP(ctx, datacenter.Owner, "volumes", "bind", volume, "--claim", volume, "--timeout", timeout)
		return err
	})
	mp("apps", "deploy", app, "--image", "multipaas.internal/hello:1", "--port", "8080", "--instances", "1",
		"--volume", volume+":"+datacenter.VolumesPath, "--timeout", timeout)
	notes("--data-binary", word)
	must(ctx, t, p.node, "sync")
	images := strings.Fields(must(ctx, t, p.node, "sh", "-c", "ls "+data+"/volumes/*/disk.img"))
	if len(images) != 1 {
		t.Fatalf("the node has the images %v, want one", images)
	}
	if got := must(ctx, t, p.node, "sh", "-c", "head -c 4 "+images[0]+"; grep -c -e "+word+" -e XFSB "+images[0]+"; true"); got != "LUKS0" {
		t.Errorf("its image begins with, and has lines that can be read: %q", got)
	}

	if err := p.node.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if got := notes(); !strings.Contains(got, word) {
		t.Errorf("after its host was booted again it holds %q", got)
	}
	p.well(ctx, t)

	mp("apps", "delete", app, "--yes", "--timeout", timeout)
	wait.For(t, patience, "the claim lets go", func(ctx context.Context) error {
		_, err := p.built.Desk.MP(ctx, datacenter.Owner, "volumes", "unbind", volume, "--yes")
		return err
	})
	mp("volumes", "delete", volume, "--purge", "--yes", "--timeout", timeout)
	wait.For(t, patience, "nothing is left of it", func(ctx context.Context) error { return nothingOf(ctx, p.node) })
}

// nothingOf looks for what is left of volumes on a host.
func nothingOf(ctx context.Context, v *vm.VM) error {
	left, err := v.Must(ctx, "sh", "-c", "ls /dev/mapper | grep -v control; losetup -a | grep "+data+"/volumes; ls "+data+"/volumes | grep -x '[0-9a-f-]*'; true")
	if err == nil && left != "" {
		err = fmt.Errorf("there is %s", left)
	}
	return err
}
