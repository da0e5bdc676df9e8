package diskimage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func isDevice(number int) bool {
	_, err := os.Stat(fmt.Sprintf("/sys/block/loop%d", number))
	return err == nil
}

// TestNumbers: a number that was shown is given to nobody again in a boot, whatever of it is left by whom; and one that is of no
// file goes, or as long as somebody has it open nobody else is given it.
func TestNumbers(t *testing.T) {
	dir := t.TempDir()
	b := newBlock(t, dir, "one")
	b.must(t, mib)
	first := b.number(t)
	if first < firstShown || first > lastShown {
		t.Fatalf("number %d", first)
	}
	if info, err := os.Stat(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", first)); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("others read of what file it is: %v, %v", info.Mode(), err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if isDevice(first) {
		t.Errorf("%d is there after it was given back", first)
	}
	again := Block{b.File, b.Mount, &Numbers{File: b.Numbers.File}} // another process
	again.must(t, mib)
	second := again.number(t)
	if second <= first {
		t.Errorf("%d comes after %d", second, first)
	}

	// Somebody is opening the first one still, and the kernel makes it again. He has it open, and it is nobody's.
	node := filepath.Join(dir, "node")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(first)))); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(node)
	if errors.Is(err, unix.ENXIO) {
		t.Skip("this kernel makes no device that is opened")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := Tidy(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/sys/block/loop%d/loop", first)); err != nil {
		t.Errorf("one that is held open is anybody's: %v", err)
	}
	if n, err := held.ReadAt(make([]byte, 512), 0); n > 0 {
		t.Errorf("%d octets are read of nothing: %v", n, err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Tidy(); err != nil || isDevice(first) {
		t.Errorf("it is there after nobody has it open: %v", err)
	}

	// The file is lost: those that are there count. It says another boot: they do.
	for _, text := range []string{"", "{", `{"boot":"former","next":200000}`} {
		if err := os.WriteFile(b.Numbers.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, err := b.Numbers.take(); n <= second || n >= 200000 || err != nil {
			t.Errorf("after %q: %d, %v", text, n, err)
		}
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOthersNumbers: no image that isn't shown has such a number, also if the kernel offers it, and none are given beyond the last.
func TestOthersNumbers(t *testing.T) {
	dir := t.TempDir()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	n := Numbers{File: filepath.Join(dir, "loops.json")}
	offered, err := n.take()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(control.Fd()), unix.LOOP_CTL_ADD, offered); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = retire(offered) })
	// Somebody holds it so that it can't be taken away, nor bound to nothing.
	held, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", offered), os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := Tidy(); err != nil {
		t.Fatal(err)
	}
	if free, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE); err != nil || free >= firstShown {
		t.Errorf("who asks for any device is given %d: %v", free, err)
	}
	for range 2 {
		number, err := below(control, offered)
		if err != nil || number >= firstShown {
			t.Fatalf("in its place there is %d: %v", number, err)
		}
		if _, err := retire(number); err != nil || isDevice(number) {
			t.Errorf("%d is left: %v", number, err)
		}
		if err := held.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Fatal(err)
		}
	}
	if isDevice(offered) {
		t.Error("nobody has it, and it is there")
	}

	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.File, fmt.Appendf(nil, `{"boot":%q,"next":%d}`, boot[:len(boot)-1], lastShown), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := n.take(); got != lastShown || err != nil {
		t.Errorf("the last one: %d, %v", got, err)
	}
	if _, err = n.take(); !errors.Is(err, ErrNumbers) {
		t.Errorf("once all are given: %v", err)
	}
}
