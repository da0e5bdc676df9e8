package diskimage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
)

// blockOwner is the host's user who has the blocks in tests.
const (
	blockOwner = 1_000_000
	blockUsers = 1000 // of his
)

func newBlock(t *testing.T, dir, name string) Block {
	t.Helper()
	b := Block{File: filepath.Join(dir, name+".img"), Mount: filepath.Join(dir, name),
		Numbers: &Numbers{File: filepath.Join(dir, "loops.json")}}
	t.Cleanup(func() {
		if err := errors.Join(b.Close(), AwaitFree(context.Background(), b.File)); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b Block) at() string { return filepath.Join(b.Mount, Node) }

// number is that of its device.
func (b Block) number(t *testing.T) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(b.at(), &st); err != nil {
		t.Fatal(err)
	}
	return int(unix.Minor(st.Rdev))
}

func (b Block) must(t *testing.T, size int64) {
	t.Helper()
	if err := cmp.Or(b.Ensure(size), b.Give(blockOwner, blockUsers)); err != nil {
		t.Fatal(err)
	}
}

// asOwner reads a file as the user who has the blocks, without rights of root's.
func asOwner(t *testing.T, name string) error {
	t.Helper()
	cmd := exec.Command("/usr/bin/head", "-c", "1", name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: blockOwner, Gid: blockOwner, NoSetGroups: true}}
	return cmd.Run()
}

// TestBlocks: raw blocks are their owner's as long as they are shown; then the node opens nothing any more wherever
// somebody has bound it, and who has it open keeps the device from being given to another image.
func TestBlocks(t *testing.T) {
	dir := t.TempDir()
	for at := dir; at != "/"; at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b := newBlock(t, dir, "one")
	if err := b.Ensure(0); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("one that shall be there and isn't: %v", err)
	}
	b.must(t, 4*mib)
	if err := os.Chmod(b.Mount, 0o755); err != nil {
		t.Fatal(err)
	}
	held, err := os.OpenFile(b.at(), os.O_RDWR|unix.O_DSYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	wrote := bytes.Repeat([]byte("mine"), 1024)
	if _, err := held.WriteAt(wrote, 4096); err != nil {
		t.Fatal(err)
	}
	if err := asOwner(t, b.at()); err != nil {
		t.Errorf("its owner can't open it: %v", err)
	}

	b.must(t, 8*mib) // grows, under who has it open
	if size, err := held.Seek(0, io.SeekEnd); size != 8*mib || err != nil {
		t.Errorf("it has %d bytes, want 8 MiB: %v", size, err)
	}
	if err := b.Ensure(mib); !errors.Is(err, ErrShrink) {
		t.Errorf("shall shrink: %v", err)
	}

	elsewhere := filepath.Join(dir, "elsewhere")
	if err := os.WriteFile(elsewhere, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(b.at(), elsewhere, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(elsewhere, unix.MNT_DETACH) }()
	if err := asOwner(t, elsewhere); err != nil {
		t.Errorf("its owner can't open it where he has bound it: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if asOwner(t, elsewhere) == nil {
		t.Error("it can be opened after it was closed")
	}
	if _, err := b.Check(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("closed, it is: %v", err)
	}
	if devices, err := loopsOf(b.File); len(devices) != 1 || err != nil {
		t.Errorf("its device was freed under who has it open: %v %v", devices, err)
	}
	other := newBlock(t, dir, "two")
	other.must(t, mib)
	got := make([]byte, len(wrote))
	if _, err := held.ReadAt(got, 4096); err != nil || !bytes.Equal(got, wrote) {
		t.Errorf("who has it open reads another's: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(elsewhere, 0); err != nil {
		t.Fatal(err)
	}

	// Killed at each step: the next finds what is there.
	if err := AwaitFree(t.Context(), b.File); err != nil {
		t.Fatal(err)
	}
	loop, err := b.Numbers.openShown(b.File)
	if err != nil {
		t.Fatal(err)
	}
	loop.Close()
	b.must(t, 8*mib)
	was := b.number(t)
	if err := errors.Join(os.Chmod(b.at(), 0o666), os.Chown(b.at(), 0, 0)); err != nil {
		t.Fatal(err)
	}
	b.must(t, 8*mib)
	if now := b.number(t); now <= was {
		t.Errorf("what was half closed has number %d again, after %d", now, was)
	}
	if err := b.Give(blockOwner+blockUsers, blockUsers); !errors.Is(err, ErrOthers) {
		t.Errorf("given to somebody else beside: %v", err)
	}
	if err := os.Chown(b.at(), blockOwner+7, 0); err != nil { // as its owner may
		t.Fatal(err)
	}
	b.must(t, 8*mib)
	if err := os.Remove(b.at()); err != nil {
		t.Fatal(err)
	}
	b.must(t, 8*mib)
	data, err := os.ReadFile(b.at())
	if err != nil || len(data) != 8*mib || !bytes.Equal(data[4096:4096+len(wrote)], wrote) {
		t.Errorf("what was written is not there any more: %d bytes, %v", len(data), err)
	}

	held, err = os.OpenFile(b.at(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := b.ShutDown(); err != nil {
		t.Fatal(err)
	}
	if _, err := held.WriteAt(wrote, 0); err == nil {
		t.Error("it was shut down, and is written to")
	}
	if info, err := os.Stat(b.File); err != nil || info.Size() != 0 {
		t.Errorf("shut down, it has %d bytes: %v", info.Size(), err)
	}
	if mounted, err := hostmount.Has(other.Mount); err != nil || !mounted {
		t.Errorf("the other one went: %v", err)
	}
}
