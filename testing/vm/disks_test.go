package vm_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/vm"
)

// TestDisks has disks tell how they are (SMART), within the bounds of the node's unit, and one that begins to fail.
func TestDisks(t *testing.T) {
	if os.Getenv("MULTIPAAS_LONG") == "" {
		t.Skip("it takes two minutes")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, node := bare(ctx, t, "appliance/disk")
	if err := node.PowerWithDisks(); err != nil {
		t.Fatal(err)
	}
	must(ctx, t, node, "sh", "-c", "mkdir -p /opt/multipaas && mount -o ro LABEL=multipaas /opt/multipaas && mkdir -p "+data)
	say := func(nvme, ata string) {
		t.Helper()
		out := confinedRun(ctx, t, node, "/opt/multipaas/disk.test -test.v -test.run=^TestHealth$", "MULTIPAAS_PAYLOAD=/opt/multipaas",
			"TMPDIR="+data, "MULTIPAAS_TEST_DISKS="+vm.Disks[0]+" "+nvme+", "+vm.Disks[1]+" "+ata)
		if !strings.Contains(out, "--- PASS: TestHealth") {
			t.Errorf("it was not run: %s", out)
		}
	}
	say("ok", "ok")
	if err := node.Warn(1 << 2); err != nil {
		t.Fatal(err)
	}
	say("it is not reliable any more (SMART)", "ok")
}
