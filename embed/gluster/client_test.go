package gluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/testing/wait"
)

// seen is where a test sees what a node has mounted.
func (n *node) seen(m Mount) string { return filepath.Join(n.cluster.dir, n.name, "seen", m.name()) }

// show has it be seen there, as modules/volume has a machine see it.
func (n *node) show(t *testing.T, m Mount) {
	t.Helper()
	at := n.seen(m)
	_ = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := n.Take(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
}

// testUsers: what is mounted for a machine with users of its own is for them alone, by their numbers: its root
// gives files away, who is in a group gets at what is the group's, and what is the kernel's stays so.
// It follows the machine when that has others.
func testUsers(t *testing.T, a *node, volume string, brick Brick, servers []netip.Addr) {
	for dir := a.cluster.dir; strings.HasPrefix(dir, os.TempDir()) && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil { // root of a machine passes through
			t.Fatal(err)
		}
	}
	for _, dir := range []string{filepath.Dir(a.cfg.Dir), a.cfg.Dir} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	m := Mount{volume, "m1"}
	mount := func() *Users {
		t.Helper()
		file, err := netns.NewUsers(0x2000_0000, 1<<16)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		u := &Users{File: file, First: 0x2000_0000, Count: 1 << 16}
		for range 2 {
			if err := a.Mount(t.Context(), m, u, servers); err != nil {
				t.Fatal(err)
			}
		}
		a.show(t, m)
		return u
	}
	users := mount()
	at := a.seen(m)
	// in runs a script as root of the users, in the volume, with processes of its own as a machine has.
	in := func(script string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "nsenter", fmt.Sprintf("--user=/proc/%d/fd/%d", os.Getpid(), users.File.Fd()), "--",
			"unshare", "--pid", "--fork", "sh", "-euc", "cd "+at+"; "+script)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGKILL) }
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	as := func(who string) string { return "setpriv --reuid 1000 --regid 1000 " + who + " touch " }
	for script, want := range map[string]string{
		"mkdir db; touch db/f; chown 999:998 db db/f; stat -c %u:%g db/f; touch db/g; stat -c %u db/g":     "999:998\n0",
		"mkdir by-mode; chgrp 5000 by-mode; chmod 2775 by-mode; stat -c %u:%g:%a by-mode":                  "0:5000:2775",
		"mkdir g; chgrp 5000 g; chmod 2770 g; " + as("--groups 5000") + "g/f; stat -c %u:%g g/f":           "1000:5000",
		"mkdir h; chgrp 5000 h; chmod 2770 h; " + as("--groups 5001") + "h/f 2>/dev/null || echo refused":  "refused",
		"mkdir i; chgrp 5000 i; chmod 2770 i; " + as("--clear-groups") + "i/f 2>/dev/null || echo refused": "refused",
		"mknod c c 1 3 2>/dev/null || echo refused":                                                        "refused",
		"mknod b b 7 0 2>/dev/null || echo refused":                                                        "refused",
		"cp /usr/bin/id s; chmod 4755 s; setpriv --reuid 1000 --regid 1000 --clear-groups ./s -u":          "1000",
		"ls .glusterfs >/dev/null 2>&1 || echo refused":                                                    "refused",
		"mkdir .glusterfs/x 2>/dev/null || echo refused":                                                   "refused",
	} {
		if got, err := in(script); err != nil || got != want {
			t.Errorf("%s\nsays %q, %v; want %q", script, got, err, want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(a.in(brick, "db", "f"), &st); err != nil || st.Uid != 999 || st.Gid != 998 {
		t.Errorf("in the brick a file is of %d:%d, %v", st.Uid, st.Gid, err)
	}
	if _, err := os.ReadDir(at); !errors.Is(err, unix.EACCES) { // FUSE answers none but them
		t.Errorf("the host's root reads it: %v", err)
	}
	other := a.seen(Mount{volume, "m0"}) // the same volume, with the host's users
	if err := unix.Stat(filepath.Join(other, "db", "f"), &st); err != nil || st.Uid != 999 {
		t.Errorf("another machine sees a file of %d, %v", st.Uid, err)
	}

	client := func() int {
		now, err := a.find(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return now.pid
	}
	was := client()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", was))
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Pss:") {
			t.Logf("a client has %s", strings.TrimSpace(line))
		}
	}
	if err := unix.Stat(fmt.Sprintf("/proc/%d", was), &st); err != nil || st.Uid != users.First {
		t.Errorf("its client is user %d, %v", st.Uid, err)
	}
	// The machine was started anew, with another user namespace, of the same numbers.
	users = mount()
	if client() == was {
		t.Error("a client of other users serves it")
	}
	if got, err := in("cat db/f; echo hello > db/f; cat db/f"); err != nil || got != "hello" {
		t.Errorf("mounted anew it says %q, %v", got, err)
	}
	if err := syscall.Kill(client(), syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	wait.For(t, wait.Patience, "its end is seen", func(ctx context.Context) error {
		if _, err := a.Device(ctx, m); !errors.Is(err, ErrNotMounted) {
			return fmt.Errorf("it is not: %w", err)
		}
		return nil
	})
	if err := a.Unmount(t.Context(), m); err != nil {
		t.Error(err)
	}
}
