package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestTrash: what is put away is nowhere mounted, and holds what it held. For machines of another workspace,
// whose users are others, it comes back with the owners that it had.
func TestTrash(t *testing.T) {
	r := newRig(t)
	v := testVolume(300 * mib)
	v.FirstUID = testFirst + 1<<20 // of another workspace than the machine is
	r.must(r.Ensure(t.Context(), v))
	r.write("file", "kept")
	r.must(errors.Join(os.Chmod(filepath.Join(r.disk().Mount, "file"), 0o640), os.Chown(filepath.Join(r.disk().Mount, "file"), int(v.FirstUID)+7, int(v.FirstUID)+9)))
	v.Made = true
	in := v
	in.Key, in.Keep = "acme/web/data-0a1b", true
	for range 2 {
		r.must(r.Keep(t.Context(), in))
		if mounted, err := hostmount.Has(r.disk().Mount); mounted || err != nil {
			t.Errorf("in the trash it is mounted: %v", err)
		}
	}
	if got := r.seen(); got.Key != in.Key || got.Ready || !got.Fallen || got.NetworkID != "00002a" || got.SizeBytes != 300*mib {
		t.Errorf("in the trash it is %+v", got)
	}

	v.NetworkID = "00002b"
	r.must(r.Ensure(t.Context(), v))
	r.machine("m1")
	machine, file := newInside(t), r.shown("m1", testUID)+"/file"
	machine.can("ls "+r.shown("m1"), "")
	r.must(r.Attach(testUID, "m1"))
	r.must(r.Attach(testUID, "m1"))
	machine.can("stat -c %u:%g "+file+" "+filepath.Dir(file), "7:9\n0:0")
	machine.can("cat "+file+"; echo new >"+file+".new; chown 5:6 "+file+".new; stat -c %u:%g "+file+".new", "kept5:6")
	machine.cannot("mknod " + file + ".dev b 7 0")
	for name, first := range map[string]uint32{"file": 7, "file.new": 5} {
		info, err := os.Stat(filepath.Join(r.disk().Mount, name))
		r.must(err)
		if got := fmt.Sprintf("%+v", info.Sys()); !strings.Contains(got, fmt.Sprintf("Uid:%d ", v.FirstUID+first)) {
			t.Errorf("on the disk %s is %s", name, got)
		}
	}
	// Who has it open keeps it from being put away, and it is said.
	machine.can("mount -t tmpfs none /mnt && mkdir /mnt/v && mount --bind "+filepath.Dir(file)+" /mnt/v", "")
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := r.Keep(soon, in); err == nil || !strings.Contains(err.Error(), "has it open still") || strings.Contains(err.Error(), r.cfg.Dir) {
		t.Errorf("put away while it is used: %v", err)
	}
	machine.end()
	r.must(r.Keep(t.Context(), in))
	r.must(r.Remove(t.Context(), wire.Volume{UID: testUID}))
	if err := r.Keep(t.Context(), in); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is gone is kept: %v", err)
	}
	r.wantAttached()
}
