package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUnseen: where there is udev, raw blocks are shown once it knows that it leaves them alone. (What Debian's udev
// makes of the rule was tried by udevadm test, systemd 252: of a disk that is written as an ext4 it makes no links.)
func TestUnseen(t *testing.T) {
	udev := t.TempDir()
	if err := unseen(udev); err != nil {
		t.Errorf("no udev: %v", err)
	}
	if err := os.WriteFile(filepath.Join(udev, "control"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := unseen(udev); err == nil {
			t.Error("shown before udev knows")
		}
	}
	rules := filepath.Join(udev, "rules.d", "59-multipaas-blocks.rules")
	before := time.Now().Add(-time.Minute)
	text, err := os.ReadFile(rules)
	if err := errors.Join(err, os.Chtimes(rules, before, before)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n != 1 || !strings.Contains(string(text), `KERNEL=="loop[1-9]`) {
		t.Errorf("%d rules:\n%s", n, text)
	}
	if err := unseen(udev); err != nil {
		t.Errorf("once it knows: %v", err)
	}
}
