package appliance

import (
	"fmt"
	"os"
	"strings"
	"testing"
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

func TestAddressMayStandAnywhere(t *testing.T) {
	for _, c := range [][2]string{
		{"multipaas node join https://a:7443 --name n1", "multipaas node join --name n1 https://a:7443"},
		{"multipaas node join --name n1 https://a:7443", "multipaas node join --name n1 https://a:7443"},
		{"multipaas node leave", "multipaas node leave"},
		{"multipaas status --config https://a", "multipaas status --config https://a"},
	} {
		if got := strings.Join(AddressLast(strings.Fields(c[0])), " "); got != c[1] {
			t.Errorf("%s: got %s, want %s", c[0], got, c[1])
		}
	}
}
