package appliance

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// TestUnitsStartAgain: whatever ends a service, it is started again, but for a node that
// has left.
func TestUnitsStartAgain(t *testing.T) {
	status := errLeft.ExitCode()
	for unit, want := range map[string][]string{
		"server": {"Restart=always"},
		"node":   {"Restart=always", fmt.Sprintf("RestartPreventExitStatus=%d", status), fmt.Sprintf("SuccessExitStatus=%d", status)},
	} {
		text, err := os.ReadFile("../installer/units/multipaas-" + unit + ".service")
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range want {
			if !strings.Contains(string(text), "\n"+line+"\n") {
				t.Errorf("the %s's unit has no %s", unit, line)
			}
		}
		if prevents := strings.Count(string(text), "RestartPrevent"); prevents != len(want)/2 {
			t.Errorf("the %s's unit prevents starts %d times", unit, prevents)
		}
	}
}

// TestNodeThatHasNotJoined: it says so and what to do, and leaves the machine as it was.
func TestNodeThatHasNotJoined(t *testing.T) {
	for _, verb := range []string{"run", "leave"} {
		dir := t.TempDir()
		app := cli.App{Commands: []*cli.Command{NodeCommand("test")}, ExitErrHandler: func(*cli.Context, error) {}}
		err := app.RunContext(t.Context(), []string{"multipaas", "node", verb, "--data-dir", dir, "--address", "192.0.2.11"})
		if err == nil || !strings.Contains(err.Error(), "this machine has not joined any platform") ||
			!strings.Contains(err.Error(), "multipaas node join https://SERVER:7443") {
			t.Errorf("node %s: %v", verb, err)
		}
		if made, _ := os.ReadDir(dir); len(made) > 0 {
			t.Errorf("node %s made %v", verb, made)
		}
	}
}
