package doctor

import (
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/inventory"
)

// TestVolumesAreKept: what is in a volume that nobody wants is listed and kept, unless its UID was
// named; what it is mounted by goes. Where nobody can tell which are wanted none is judged.
func TestVolumesAreKept(t *testing.T) {
	const pool = "/var/lib/multipaas/volumes/"
	var inv inventory.Inventory
	for _, uid := range []string{"wanted", "stranger"} {
		inv.Items = append(inv.Items,
			inventory.Item{Kind: inventory.Mount, Name: pool + uid + "/mount", Owner: inventory.Volume(uid)},
			inventory.Item{Kind: inventory.Mapped, Name: "multipaas-" + uid, Owner: inventory.Volume(uid)},
			inventory.Item{Kind: inventory.Loop, Name: "/dev/loop-" + uid, Owner: inventory.Volume(uid)},
			inventory.Item{Kind: inventory.Folder, Name: pool + uid, Owner: inventory.Volume(uid)},
			inventory.Item{Kind: inventory.File, Name: pool + uid + "/disk.img.partial", Owner: inventory.Volume(uid)})
	}
	w := Wanted{Volumes: Set([]string{"wanted"})}
	for _, c := range []struct {
		what    string
		wanted  Wanted
		named   map[string]bool
		names   string
		kept    string
		healthy bool
	}{
		{"one that nobody wants", w, nil, pool + "stranger/mount multipaas-stranger /dev/loop-stranger " + pool + "stranger", pool + "stranger", false},
		{"named", w, Set([]string{"stranger", "wanted"}), pool + "stranger/mount multipaas-stranger /dev/loop-stranger " + pool + "stranger", "", false},
		{"nobody can tell", Wanted{}, Set([]string{"stranger"}), "", "", true},
	} {
		r := Report{Orphans: judge(inv, c.wanted, c.named)}
		var names, kept []string
		for _, o := range r.Orphans {
			names = append(names, o.Name)
			if o.Kept {
				kept = append(kept, o.Name)
				if !strings.Contains(o.Why, "--fix --volume stranger") {
					t.Errorf("%s: why is %q", c.what, o.Why)
				}
			}
		}
		if strings.Join(names, " ") != c.names || strings.Join(kept, " ") != c.kept || r.Healthy() != c.healthy {
			t.Errorf("%s: orphans %q, kept %q, healthy is %t", c.what, names, kept, r.Healthy())
		}
		r.Orphans = slices.DeleteFunc(r.Orphans, func(o Orphan) bool { return !o.Kept })
		fix(t.Context(), Config{}, inv, r.Orphans)
		for _, o := range r.Orphans {
			if o.Removed || o.Error != "" || !r.Healthy() {
				t.Errorf("%s: it was not left alone: %+v", c.what, o)
			}
		}
	}
}
