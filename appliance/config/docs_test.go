package config_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance"
	"github.com/multipaas/multipaas/appliance/config"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew; the test fails all the same")

// TestDocs holds docs/configuration.md against the fields, each of which says
// what it is for.
func TestDocs(t *testing.T) {
	table := config.Markdown(appliance.Defaults())
	for line := range strings.Lines(table) {
		if strings.HasSuffix(line, "|  |\n") {
			t.Errorf("a setting without a word about it: %s", line)
		}
	}
	doc := "# Configuration\n\n" +
		"Settings stand in `/etc/multipaas/config.yaml`, or another file that `--config` names; all are optional. An environment\n" +
		"variable goes before the file and a flag before both. A variable is named after its setting, in upper case, with an\n" +
		"underscore for each dot: `MULTIPAAS_LIMITS_USERS=5`. Lists are written with commas, `registry_upstreams` as in YAML:\n" +
		"`MULTIPAAS_REGISTRY_UPSTREAMS='[{name: docker.io}]'`. `multipaas config` shows what is in force.\n\n" + table
	const file = "../../docs/configuration.md"
	have, err := os.ReadFile(file)
	if err == nil && string(have) == doc {
		return
	}
	if *update {
		if err := os.WriteFile(file, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Errorf("%s is not what the settings say: go test ./appliance/config -run TestDocs -update", file)
}
