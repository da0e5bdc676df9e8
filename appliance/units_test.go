package appliance

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/preflight"
)

// TestUnits: both are kept from what they don't need, and get what they do. DESIGN.md
// says what a node's exposure is made of.
func TestUnits(t *testing.T) {
	for _, role := range []string{"server", "node"} {
		file, err := filepath.Abs("../installer/units/multipaas-" + role + ".service")
		if err != nil {
			t.Fatal(err)
		}
		unit, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		most := strings.Join(settings(string(unit), "X-Exposure"), " ")
		out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+most, file).CombinedOutput()
		if err != nil {
			t.Errorf("%s is more exposed than %q tenths (of package systemd): %v\n%s", file, most, err, out)
		}
		modules := map[string][]preflight.Module{"server": preflight.ServerModules(), "node": preflight.NodeModules()}[role]
		for _, m := range modules {
			for _, word := range []string{"Wants", "After"} {
				if !slices.Contains(settings(string(unit), word), "modprobe@"+m.Name+".service") {
					t.Errorf("%s: no %s=modprobe@%s.service, and by itself it can't load the module", file, word, m.Name)
				}
			}
		}
		// Disks that operators give it are of any kind, and are looked for among all.
		if role == "node" && !slices.Contains(settings(string(unit), "DeviceAllow"), "block-*") {
			t.Errorf("%s: can't open the host's disks, and so makes no pools of them", file)
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
