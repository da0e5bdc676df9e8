package appliance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/preflight"
)

// What `systemd-analyze security` gives the units at most, in tenths. DESIGN.md says
// what a node's is made of.
var exposure = map[string]int{"server": 49, "node": 69}

// TestUnits: both are kept from what they don't need, and get what they do.
func TestUnits(t *testing.T) {
	for role, most := range exposure {
		file, err := filepath.Abs("../installer/units/multipaas-" + role + ".service")
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", fmt.Sprintf("--threshold=%d", most), file).CombinedOutput()
		if err != nil {
			t.Errorf("%s is more exposed than %d tenths (of package systemd): %v\n%s", file, most, err, out)
		}
		unit, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		modules := map[string][]preflight.Module{"server": preflight.ServerModules(), "node": preflight.NodeModules()}[role]
		for _, m := range modules {
			for _, word := range []string{"Wants", "After"} {
				if !slices.Contains(settings(string(unit), word), "modprobe@"+m.Name+".service") {
					t.Errorf("%s: no %s=modprobe@%s.service, and by itself it can't load the module", file, word, m.Name)
				}
			}
		}
		if !slices.Contains(settings(string(unit), "Environment"), hostmount.Variable+"=/proc/1/ns/mnt") {
			t.Errorf("%s: has mounts of its own and does not say where the host's are", file)
		}
	}
}

// settings are the words of a unit's setting.
func settings(unit, name string) (words []string) {
	for line := range strings.Lines(unit) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			words = append(words, strings.Fields(value)...)
		}
	}
	return words
}
