package machine

import (
	"slices"
	"testing"
)

// TestIoctls: what the rules let through is all but the three families, and of these what is named, whatever stands in the
// bits that the kernel doesn't take; and no two rules say the same.
func TestIoctls(t *testing.T) {
	rules := ioctls()
	allowed := func(cmd uint64) (by int) {
		for _, r := range rules {
			if cmd&r.Value == r.ValueTwo {
				by++
			}
		}
		return by
	}
	for low := range uint64(1 << 16) {
		// As they are, with a size and a direction, and with bits that the kernel drops.
		for _, cmd := range []uint64{low, low | 0x8008_0000, low | 0x8004_0000, low | 0xc048_0000, low | 0x1_0000_0000, low | ^uint64(0xffff)} {
			want := 1
			switch low >> 8 {
			case 0x4c:
				want = 0
			case 0x12:
				if !slices.Contains(blockCalls, cmd&0xffff_ffff) {
					want = 0
				}
			case 0xb7:
				if low&0xff >= 8 {
					want = 0
				}
			}
			if by := allowed(cmd); by != want {
				t.Fatalf("ioctl %#x: allowed by %d rules, want %d", cmd, by, want)
			}
		}
	}
	for _, refused := range []uint64{0xc048_1273, 0x1274, 0x1276, 0x1269, 0x125f, 0x125d, 0x1261, 0x127d, 0xb70a} { // BLKTRACESETUP and others
		if allowed(refused) > 0 {
			t.Errorf("ioctl %#x is allowed", refused)
		}
	}
}
