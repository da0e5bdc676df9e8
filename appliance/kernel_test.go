package appliance

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRaise(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		have string // "": there is none
		mode os.FileMode
		want string
	}{
		"fs/lower":     {"65536\n", 0o644, "1000000"},
		"fs/the-same":  {"1000000\n", 0o644, "1000000\n"},
		"fs/higher":    {"9223372036854775807\n", 0o644, "9223372036854775807\n"},
		"fs/no-number": {"many\n", 0o644, "1000000"},
		"net/shown":    {"65536\n", 0o444, "65536\n"},
		"net/none":     {},
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if c.have != "" {
			if err := os.WriteFile(file, []byte(c.have), c.mode); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if errs := raise(dir, []setting{{name, 1000000}}); len(errs) > 0 {
				t.Errorf("%s: %v", name, errs)
			}
		}
		if got, _ := os.ReadFile(file); string(got) != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// What a tenant takes of a pot that is one for all is charged to him: his memory ends
// before the pot does, though it be all of the host's.
func TestPotsOutlastMemory(t *testing.T) {
	for _, memory := range []uint64{1 << 30, 24 << 30, 1 << 40, 1 << 45} {
		have := map[string]int{}
		for _, s := range atLeast(memory) {
			if s.least < 1 || s.least >= 1<<31 {
				t.Errorf("%s is %d with %d bytes of memory", s.name, s.least, memory)
			}
			have[s.name] = s.least
		}
		for name, bytes := range map[string]uint64{"fs/aio-max-nr": 64, "fs/file-max": 176, "kernel/pty/max": 1100} {
			if n := uint64(have[name]); n*bytes < memory && n < 1<<31-1 {
				t.Errorf("%s is %d: %d bytes take all of it, of %d", name, n, n*bytes, memory)
			}
		}
		if n := uint64(have["net/netfilter/nf_conntrack_max"]); n*320 > memory/200 {
			t.Errorf("nf_conntrack_max is %d, which takes more than half a percent of %d bytes", n, memory)
		}
	}
}
