package volume

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/wire"
)

const testPool = "5a1a8d5e-6b0a-4f3c-9d52-7c1e0c0ffee1"

// number is that of the volume's device.
func (r *rig) number() uint32 {
	r.t.Helper()
	var st unix.Stat_t
	r.must(unix.Stat(filepath.Join(r.disk().Mount, diskimage.Node), &st))
	return unix.Minor(st.Rdev)
}

// TestBlocks: a machine reads and writes the raw blocks of its volume and makes no other node; wherever it is killed, the host
// goes on; once the volume is put away nothing in the machine opens it, and what was written is there when it is back.
func TestBlocks(t *testing.T) {
	r := newRig(t)
	r.machine("m1")
	machine := newInside(t)
	v := testVolume(320 * mib)
	v.Block = true
	walk := func(what string, points ...string) {
		t.Helper()
		text, err := json.Marshal(step{r.cfg.Dir, r.cfg.Machines, "", "blocks: " + what, "m1", 320 * mib})
		r.must(err)
		for _, point := range append(points, "") {
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), stepEnv+"="+string(text), failpoint.Variable+"="+point)
			out, err := cmd.CombinedOutput()
			if killed := strings.Contains(string(out), failpoint.Mark(point)); point != "" && !killed || point == "" && err != nil {
				t.Fatalf("%s at %q: %v: %s", what, point, err, out)
			}
		}
	}
	walk("ensure", "volume/make/recorded")
	walk("attach", "volume/attach/folder-made")
	if got := r.seen(); !got.Ready || got.SizeBytes != 320*mib {
		t.Errorf("made: %+v", got)
	}
	node := filepath.Join(r.shown("m1", testUID), diskimage.Node)
	machine.can("printf tenant | dd of="+node+" conv=notrunc oflag=sync status=none && head -c 6 "+node, "tenant")
	machine.cannot("mknod /dev/shm/mine b 7 0")
	machine.cannot("touch " + filepath.Join(filepath.Dir(node), "more"))
	machine.cannot("rm " + node)
	machine.can("mount -t tmpfs own /mnt && touch /mnt/node && mount --bind "+node+" /mnt/node", "")
	machine.can("head -c 6 /mnt/node", "tenant")

	v.SizeBytes = 400 * mib
	r.must(r.Ensure(t.Context(), v))
	machine.can("blockdev --getsize64 "+node, "419430400")

	snapshot := wire.Volume{Key: "acme/web/shop/before", UID: "0a1b-snapshot", NetworkID: "00002a", Class: "local", Source: testUID,
		Snapshot: true, Block: true, SizeBytes: v.SizeBytes}
	for {
		if err := r.Ensure(t.Context(), snapshot); err == nil {
			break
		} else if !strings.Contains(err.Error(), copyingText) {
			t.Fatal(err)
		}
	}
	copied, err := os.Open(r.place(snapshot.UID).stored().File)
	r.must(err)
	defer copied.Close()
	begins := make([]byte, 6)
	info, err := copied.Stat()
	if _, readErr := copied.Read(begins); cmp.Or(err, readErr) != nil || info.Size() != v.SizeBytes || string(begins) != "tenant" {
		t.Errorf("copied: %d bytes, %q: %v", info.Size(), begins, cmp.Or(err, readErr))
	}
	r.must(r.Remove(t.Context(), wire.Volume{UID: snapshot.UID}))

	was := r.number()
	r.must(r.Detach(testUID, "m1"))
	machine.cannot("head -c 6 /mnt/node")
	r.must(r.Attach(testUID, "m1"))
	machine.can("head -c 6 "+node, "tenant")
	machine.cannot("head -c 6 /mnt/node")
	if now := r.number(); now <= was {
		t.Errorf("shown anew it has number %d, after %d", now, was)
	}

	v.Keep = true
	r.must(r.Keep(t.Context(), v))
	machine.cannot("head -c 6 /mnt/node")
	r.wantAttached()
	v.Keep, v.Made = false, true
	r.must(errors.Join(r.Ensure(t.Context(), v), r.Attach(testUID, "m1")))
	machine.can("head -c 6 "+node, "tenant")
	machine.cannot("head -c 6 /mnt/node")

	// A machine holds it open, and it is destroyed under it.
	held, err := os.OpenFile(filepath.Join(r.disk().Mount, diskimage.Node), os.O_RDWR|unix.O_DIRECT, 0)
	r.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // or it waits ten seconds for who holds it
	if err := r.Remove(ctx, wire.Volume{UID: testUID}); err == nil {
		t.Error("it was removed while somebody had it open")
	}
	if _, err := held.Write(make([]byte, 4096)); err == nil {
		t.Error("what was removed is written to")
	}
	r.must(held.Close())
	walk("remove", "volume/remove/unmounted", "volume/remove/disk-deleted")
	if all, err := r.List(); err != nil || len(all) > 0 {
		t.Errorf("left: %+v, %v", all, err)
	}
	if all, err := filepath.Glob("/sys/block/loop[1-9]?????*/loop/backing_file"); err != nil {
		t.Error(err)
	} else {
		for _, name := range all {
			if text, _ := os.ReadFile(name); strings.HasPrefix(string(text), r.cfg.Dir) {
				t.Errorf("left: %s of %s", name, text)
			}
		}
	}
}

// TestKinds: what a tenant wrote as blocks is never mounted, whatever a server or a record says, and wherever it comes from; and
// raw blocks are nobody's on a host whose machines have no users of their own.
func TestKinds(t *testing.T) {
	r := newRig(t)
	r.machine("m1")
	v := testVolume(320 * mib)
	v.Block = true
	r.must(r.Ensure(t.Context(), v))
	v.Made, v.Block = true, false
	refused := func(what string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "never taken for each other") {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("as a file system", r.Ensure(t.Context(), v))
	v.Made = false
	refused("as a new one", r.Ensure(t.Context(), v))
	clone := wire.Volume{Key: "acme/web/shop/clone", UID: "0a1b-clone", NetworkID: "00002a", Class: "local", Source: testUID, SizeBytes: v.SizeBytes}
	refused("a clone", r.Ensure(t.Context(), clone))
	clone.Snapshot = true
	refused("a snapshot", r.Ensure(t.Context(), clone))
	r.must(os.Remove(r.place(testUID).at(recordName)))
	refused("without its record", r.Ensure(t.Context(), v))

	// On it is written that it is a pool, as far as a host could find it (its file is behind no pool's path).
	device := fmt.Sprintf("/dev/loop%d", r.number())
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "uuid="+testPool, device).CombinedOutput(); err != nil {
		t.Log("no mkfs.xfs here: ", err, string(out))
	}
	own := r.own
	r.cfg.Dir, r.own = "/elsewhere", &pool{dir: "/elsewhere"}
	if found, _, err := r.withXFS(testPool); err != nil || len(found) > 0 {
		t.Errorf("raw blocks are taken for a pool: %v %v", found, err)
	}
	r.cfg.Dir, r.own = own.dir, own

	r.cfg.MachineUser = func(string) (uint32, error) { return 0, nil }
	if err := r.Attach(testUID, "m1"); err == nil || !strings.Contains(err.Error(), "no users of their own") {
		t.Errorf("shown to a machine of the host's root: %v", err)
	}
	// Its disk is away: its node is closed all the same.
	r.cfg.MachineUser = func(string) (uint32, error) { return testFirst, nil }
	r.must(r.Attach(testUID, "m1"))
	r.must(os.Rename(r.blocks(testUID).File, r.blocks(testUID).File+".away"))
	r.must(r.closeNodes(r.own))
	var st unix.Stat_t
	r.must(unix.Stat(filepath.Join(r.shown("m1", testUID), diskimage.Node), &st))
	if st.Uid != 0 || st.Mode&0o7777 != 0 {
		t.Errorf("its node is %d's, with mode %o", st.Uid, st.Mode)
	}
	r.must(os.Rename(r.blocks(testUID).File+".away", r.blocks(testUID).File))
	r.must(r.Remove(t.Context(), wire.Volume{UID: testUID}))
}
