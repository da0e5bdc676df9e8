package machine

import "testing"

// TestIoctls: what the rules let through is all but namespaces' mounts and loop devices, whatever stands in the other bits.
func TestIoctls(t *testing.T) {
	rules := ioctls()
	for cmd := range uint64(1 << 16) {
		allowed := false
		for _, r := range rules {
			allowed = allowed || cmd&r.Value == r.ValueTwo
		}
		want := cmd>>8 != 0x4c && (cmd>>8 != 0xb7 || cmd&8 == 0)
		if allowed != want {
			t.Fatalf("ioctl %#x: allowed is %t", cmd, allowed)
		}
	}
}
