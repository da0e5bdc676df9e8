package machine

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestUnitLeavesMachines: what a node's unit takes from the agent, machines inherit, and
// what runs in pods. It must be nothing that a machine has.
func TestUnitLeavesMachines(t *testing.T) {
	data, err := os.ReadFile("../../installer/units/multipaas-node.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := map[string][]string{}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			unit[name] = append(unit[name], strings.Fields(value)...)
		}
	}

	// Not without taking it from pods: set-user-ID programs and files, compilers in
	// time, programs of 32 bits, reading the clock's state, host names; and a machine's
	// /proc and /sys are mounted only where its host's are whole.
	for _, name := range []string{
		"NoNewPrivileges", "RestrictSUIDSGID", "MemoryDenyWriteExecute", "LockPersonality", "SystemCallArchitectures", "RestrictRealtime",
		"RestrictNamespaces", "ProtectClock", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelTunables", "ProtectControlGroups",
		"PrivateDevices", "PrivateUsers", "ProcSubset", "SecureBits",
	} {
		if unit[name] != nil {
			t.Errorf("%s= reaches into machines", name)
		}
	}

	filter := unit["SystemCallFilter"]
	if len(filter) == 0 || !strings.HasPrefix(filter[0], "~") {
		t.Fatalf("SystemCallFilter=%s, want what is refused", filter)
	}
	filter[0] = filter[0][1:]
	out, err := exec.Command("systemd-analyze", append([]string{"syscall-filter"}, filter...)...).Output()
	if err != nil {
		t.Fatalf("systemd-analyze, of package systemd: %v", err)
	}
	var refused []string
	for line := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(line); strings.HasPrefix(line, " ") && !strings.HasPrefix(name, "#") {
			refused = append(refused, name)
		}
	}
	if !slices.Contains(refused, "init_module") {
		t.Errorf("systemd-analyze lists %s, want init_module among them", refused)
	}
	caps := grantable()
	for _, mapped := range []bool{true, false} {
		b := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
		machine, err := syscalls(b, mapped)
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range machine.Syscalls {
			for _, name := range rule.Names {
				if rule.Action == specs.ActAllow && slices.Contains(refused, name) {
					t.Errorf("machines (with users of their own: %t) may call %s, their host's unit may not", mapped, name)
				}
			}
		}
	}

	for _, family := range []string{"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"} {
		if !slices.Contains(unit["RestrictAddressFamilies"], family) {
			t.Errorf("machines have sockets of %s, their host's unit has not", family)
		}
	}

	for _, name := range unit["CapabilityBoundingSet"] {
		name = strings.TrimPrefix(name, "~")
		if _, ok := capabilities[name]; ok || name == "CAP_SYS_RESOURCE" {
			t.Errorf("machines are given %s, their host's unit hasn't got it", name)
		}
	}

	// Set for all of a machine's processes by who has CAP_SYS_RESOURCE.
	if limit := unit["LimitNOFILE"]; len(limit) != 1 || limit[0] != "1048576" {
		t.Errorf("LimitNOFILE=%s, want more than machines have", limit)
	}
}
