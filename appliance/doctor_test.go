package appliance

import (
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/paths"
)

// TestTraces: what is on a host is looked for in the places where parts put it.
func TestTraces(t *testing.T) {
	var folders, groups, trees, closed, temporary, networks []string
	counts := 0
	for _, tr := range traces(paths.Paths{Data: "/d", Run: "/r"}) {
		for _, f := range tr.Folders {
			folders = append(folders, f.Dir+" "+string(f.Owner("x")))
		}
		for group, owner := range tr.Groups {
			groups = append(groups, group+" "+string(owner("x")))
		}
		trees, closed, temporary = append(trees, tr.Trees...), append(closed, tr.Closed...), append(temporary, tr.Temporary...)
		if tr.Count != nil {
			counts++
		}
		if n := tr.Network; n != nil {
			networks = append(networks, n.Workspace, n.Machine, n.Uplink, n.Port, n.MachineLink)
			networks = append(append(networks, n.Links...), n.Tables...)
		}
	}
	for _, c := range []struct {
		what, want string
		got        []string
	}{
		{"folders", "/d/machines machine x, /d/node/machines machine x, /d/planes workspace x, /d/volumes volume x, /r/runc machine x", folders},
		{"groups", "machines machine x, planes workspace x, storage appliance", groups},
		{"trees", "/d/images, /d/payload/trees, /d/storage, /d/storage-images, /r/storage", trees},
		{"closed", "/d/etcd/data, /d/images, /d/machines, /d/payload, /d/registry, /d/storage, /d/storage-images, /d/volumes, /r/runc, /r/storage", closed},
		{"temporary", "/d/payload/tmp", temporary},
		{"networks", "br0, eth0, m-, mp-, mpm-, mpu-, multipaas, multipaas-vxlan, uplink, vxlan0", networks},
	} {
		slices.Sort(c.got)
		if got := strings.Join(c.got, ", "); got != c.want {
			t.Errorf("%s: got %s, want %s", c.what, got, c.want)
		}
	}
	if counts != 1 {
		t.Errorf("%d parts count, want the registry", counts)
	}
}
