package disk

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/loopdisk"
)

// loop is a device of a file that a test has.
func loop(t *testing.T, size int64) (Device, *os.File) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("this needs root: it makes a device")
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	device, err := loopdisk.Plug(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { device.Close() })
	d, err := Open(device.Name())
	if err != nil {
		t.Fatal(err)
	}
	return d, device
}

// TestDevice: what a device is, that nothing on it is taken for nothing, and that it isn't free while somebody has it.
func TestDevice(t *testing.T) {
	const size = 8 << 20
	d, f := loop(t, size)
	if d.SizeBytes != size || d.Serial != d.Name || !strings.HasPrefix(d.Name, "/dev/loop") || d.Behind() == "" {
		t.Errorf("it is %+v, behind it %q", d, d.Behind())
	}
	if what, err := d.Holds(); what != "" || err != nil {
		t.Errorf("an empty one holds %q, %v", what, err)
	}
	for _, c := range []struct {
		at         int64
		text, what string
	}{
		{0, "XFSB", "an XFS file system"},
		{0x438, "\x53\xef", "an ext file system"},
		{size - 512, "EFI PART", "a partition table"},
		{size - 65536, "\xfc\x4e\x2b\xa9", "a part of a RAID"},
		{300 << 10, "x", "something that is not known here"},
		{size - 1, "x", "something that is not known here"},
	} {
		if _, err := f.WriteAt([]byte(c.text), c.at); err != nil {
			t.Fatal(err)
		}
		if what, err := d.Holds(); what != c.what || err != nil {
			t.Errorf("with %q at %d it holds %q, %v; want %q", c.text, c.at, what, err, c.what)
		}
		if _, err := f.WriteAt(make([]byte, len(c.text)), c.at); err != nil {
			t.Fatal(err)
		}
	}
	if by, err := d.InUse(); by != "" || err != nil {
		t.Errorf("one that is free is used: %q, %v", by, err)
	}
	held, err := d.Open(unix.O_RDONLY | unix.O_EXCL)
	if err != nil {
		t.Fatal(err)
	}
	if by, err := d.InUse(); by == "" || err != nil {
		t.Errorf("one that somebody has is free: %v", err)
	}
	held.Close()
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNone) {
		t.Errorf("a folder is a device: %v", err)
	}
}
