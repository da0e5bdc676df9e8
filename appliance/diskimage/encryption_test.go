package diskimage

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/rootfs"
)

// storageRoot is the storage's root file system, unpacked, which has cryptsetup.
func storageRoot(t *testing.T) string {
	t.Helper()
	payload := os.Getenv("MULTIPAAS_PAYLOAD")
	if payload == "" {
		payload, _ = filepath.Abs("../../dist/payload")
	}
	root, err := rootfs.Store{Dir: t.TempDir()}.Unpack(t.Context(), filepath.Join(payload, "images", "storage"))
	if err != nil {
		t.Fatalf("%v: build it with: make payload", err)
	}
	return root
}

func encryption(name string, key []byte, root string) *Encryption {
	return &Encryption{Name: name,
		Key:   func(context.Context) ([]byte, error) { return bytes.Clone(key), nil },
		Tools: func(context.Context) (string, error) { return root, nil }}
}

// TestSealed: what is made to be an encrypted image opens with its key, and with no other. Where the kernel
// can't encrypt, none is made, and nothing plain in its place.
func TestSealed(t *testing.T) {
	if os.Getenv("MULTIPAAS_LONG") == "" {
		t.Skip("it unpacks an image for some seconds")
	}
	d := newImage(t, t.TempDir(), "a")
	key, root := []byte(rand.Text()+rand.Text()), storageRoot(t)
	d.Encryption = encryption("multipaas-test-"+rand.Text(), key, root)
	if err := errors.Join(os.WriteFile(d.File, nil, 0o600), os.Truncate(d.File, d.fileBytes(320*mib))); err != nil {
		t.Fatal(err)
	}
	if err := d.seal(t.Context(), d.File); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key []byte
		ok  bool
	}{{key, true}, {append(bytes.Clone(key), '\n'), false}, {nil, false}} {
		err := rootfs.Run(t.Context(), root, bytes.NewReader(c.key), "usr/sbin/cryptsetup", "open", "--batch-mode", "--disable-locks",
			"--test-passphrase", "--key-file", "-", d.File)
		if (err == nil) != c.ok {
			t.Errorf("opened by a key of %d bytes: %v, want %v", len(c.key), err, c.ok)
		}
	}
	if n := d.taken(t); n > HeaderBytes+64<<10 {
		t.Errorf("an empty one takes %d bytes", n)
	}
	if err := CanEncrypt(); err == nil {
		return // see TestEncrypted
	} else if !errors.Is(err, ErrNoEncryption) {
		t.Errorf("can it be encrypted: %v, want ErrNoEncryption", err)
	}
	b := newImage(t, t.TempDir(), "b")
	b.Encryption = d.Encryption
	if err := b.Ensure(t.Context(), 320*mib, root); !errors.Is(err, ErrNoEncryption) {
		t.Errorf("on a kernel that can't encrypt: %v, want ErrNoEncryption", err)
	}
	if left, _ := filepath.Glob(b.File + "*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestEncrypted runs where the kernel has dm-crypt: testing/vm runs it there.
func TestEncrypted(t *testing.T) {
	if err := CanEncrypt(); err != nil {
		t.Skip(err)
	}
	here, key, secret := t.TempDir(), []byte(rand.Text()+rand.Text()), bytes.Repeat([]byte("in plain text "), 5000)
	d := newImage(t, here, "a")
	name, root := "multipaas-test-"+rand.Text(), storageRoot(t)
	d.Encryption = encryption(name, key, root)
	d.must(t, 320*mib, root)
	file := filepath.Join(d.Mount, "file")
	if err := os.WriteFile(file, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(d.Mount, &fs); err != nil || fs.Type != unix.XFS_SUPER_MAGIC {
		t.Fatalf("its file system is of kind %x, %v", fs.Type, err)
	}
	for range 2 { // the second time there is nothing to do
		if err := d.Grow(t.Context(), 400*mib); err != nil {
			t.Fatal(err)
		}
	}
	before := fs.Blocks
	if err := unix.Statfs(d.Mount, &fs); err != nil || int64(fs.Blocks-before)*fs.Bsize != 80*mib {
		t.Errorf("it has grown by %d blocks, want 80 MiB; %v", fs.Blocks-before, err)
	}
	if n := d.fill(t, "more"); n < 250*mib || n > 400*mib {
		t.Errorf("it took %d MiB", n>>20)
	}
	if err := os.Remove(filepath.Join(d.Mount, "more")); err != nil {
		t.Fatal(err)
	}
	b := newImage(t, here, "b")
	if err := d.Copy(t.Context(), b.File, func(int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	b.Encryption = encryption(name+"-b", key, root)
	b.must(t, 0, "")
	if got, err := os.ReadFile(filepath.Join(b.Mount, "file")); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("a copy has another text: %v", err)
	}

	gone := func() {
		t.Helper()
		if err := errors.Join(hostmount.Unmount(d.Mount), AwaitFree(t.Context(), d.File)); err != nil {
			t.Fatal(err)
		}
		if _, err := mapped(name); !errors.Is(err, unix.ENXIO) {
			t.Errorf("unmounted, its device is there: %v", err)
		}
	}
	gone()
	text, err := os.ReadFile(d.File)
	if err != nil || bytes.Contains(text, []byte("in plain text")) || bytes.Contains(text, []byte("XFSB")) {
		t.Errorf("what is in it can be read: %v", err)
	}
	// Nobody mounts it without the key.
	d.Encryption = nil
	if err := d.Ensure(t.Context(), 0, ""); err == nil {
		t.Error("it is mounted as one that isn't encrypted")
	}
	d.Encryption = encryption(name, []byte(rand.Text()+rand.Text()), root)
	if err := d.Ensure(t.Context(), 0, ""); err == nil {
		t.Error("it is mounted by another key")
	}
	// A process that was killed leaves a device that nobody has mounted.
	d.Encryption = encryption(name, key, root)
	loop, err := openLoop(d.File, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.unlock(t.Context(), loop.Name()); err != nil {
		t.Fatal(err)
	}
	if err := loop.Close(); err != nil {
		t.Fatal(err)
	}
	d.must(t, 0, "")
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("it has another text: %v", err)
	}
	gone()
	if left, _ := filepath.Glob(mapperDir + "/" + name + "*"); len(left) > 1 { // b's may be
		t.Errorf("left: %v", left)
	}
}
