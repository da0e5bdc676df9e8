package appliance

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/multipaas/multipaas/appliance/preflight"
)

// atLeast are kernel settings that are raised if they are lower, for the whole
// host. Each kubelet, containerd and plane watches files; a distribution's
// limits are for a few programs of one user, and all of ours are root's.
//
// A connection whose full packets vanish on the way tries smaller ones after
// three seconds (RFC 4821), and without that setting never: what nodes and
// servers say to each other goes on over a switch with a smaller MTU.
var atLeast = map[string]int{
	"net/ipv4/tcp_mtu_probing":      1,
	"fs/inotify/max_user_instances": preflight.InotifyInstances,
	"fs/inotify/max_user_watches":   524288,
}

// prepareKernel loads the kernel modules that nothing loads by itself and
// raises limits. What it can't do is no error yet: the preflight checks say
// what of it is needed.
func prepareKernel(ctx context.Context) (errs []error) {
	for _, m := range preflight.Modules() {
		if m.Loaded() {
			continue
		}
		if out, err := exec.CommandContext(ctx, "modprobe", m.Name).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("load kernel module %s: %w: %s", m.Name, err, bytes.TrimSpace(out)))
		}
	}
	for name, least := range atLeast {
		file := "/proc/sys/" + name
		data, err := os.ReadFile(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if have, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && have >= least {
			continue
		}
		if err := os.WriteFile(file, []byte(strconv.Itoa(least)), 0); err != nil {
			errs = append(errs, fmt.Errorf("raise kernel setting %s to %d: %w", name, least, err))
		}
	}
	return errs
}
