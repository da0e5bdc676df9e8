package disk

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/rootfs"
)

// TestHealth asks disks how they are. Here is none that could tell; testing/vm runs it with two that can, named in
// MULTIPAAS_TEST_DISKS as "DEVICE what it says, ...".
func TestHealth(t *testing.T) {
	payload := os.Getenv("MULTIPAAS_PAYLOAD")
	if payload == "" {
		payload, _ = filepath.Abs("../../dist/payload")
	}
	store := rootfs.Store{Dir: t.TempDir()}
	tools := func(ctx context.Context) (string, error) {
		return store.Unpack(ctx, filepath.Join(payload, "images", "storage"))
	}
	if _, err := tools(t.Context()); err != nil {
		t.Fatalf("%v: build it with: make payload", err)
	}
	disks := os.Getenv("MULTIPAAS_TEST_DISKS")
	if disks == "" {
		d, _ := loop(t, 1<<20)
		disks = d.Name + " " + Unknown
	}
	for _, text := range strings.Split(disks, ", ") {
		name, want, _ := strings.Cut(text, " ")
		d, err := Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Health(t.Context(), tools); got != want {
			t.Errorf("%s: %s; want %s", name, got, want)
		}
	}
}

// TestJudge reads answers of smartctl 7.3 (Debian 12), shortened, of disks that QEMU emulates, with one number changed.
func TestJudge(t *testing.T) {
	const (
		nvme = `{"device":{"type":"nvme"},"smart_status":{"passed":true,"nvme":{"value":0}},"nvme_smart_health_information_log":` +
			`{"critical_warning":0,"available_spare":0,"percentage_used":0,"media_errors":0}}`
		sata = `{"device":{"type":"sat"},"smart_status":{"passed":true},"ata_smart_attributes":{"revision":1,"table":[` +
			`{"id":1,"raw":{"value":0}},{"id":197,"raw":{"value":0}}]}}`
	)
	for _, c := range []struct{ answer, was, is, want string }{
		{nvme, "", "", Well},
		{sata, "", "", Well},
		{nvme, `warning":0`, `warning":5`, "its spare blocks run out; it is not reliable any more (SMART)"},
		{nvme, `used":0`, `used":103`, "it has been written to 103 % of what it was made for (SMART)"},
		{nvme, `errors":0`, `errors":2`, "2 times it could not give what was written to it (SMART)"},
		{sata, `197,"raw":{"value":0`, `197,"raw":{"value":3`, "it can't read 3 sectors now (SMART)"},
		{sata, "true", "false", "it says that it fails soon (SMART)"},
		{`{"smartctl":{"exit_status":1}}`, "", "", Unknown},
		{"no such program", "", "", Unknown},
	} {
		if got := judge([]byte(strings.Replace(c.answer, c.was, c.is, 1))); got != c.want {
			t.Errorf("with %s: %s; want %s", c.is, got, c.want)
		}
	}
}

// TestBelow: a partition's disk is asked, and who is on no disk has none.
func TestBelow(t *testing.T) {
	if got, err := Below("/proc"); len(got) > 0 || err != nil {
		t.Errorf("below /proc is %v, %v", got, err)
	}
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	d, _ := loop(t, 1<<20)
	if got, err := d.Disks(); err != nil || !slices.Equal(got, []Device{d}) {
		t.Errorf("below %+v is %+v, %v", d, got, err)
	}
	for _, d := range all {
		disks, err := d.Disks()
		if err != nil || len(disks) == 0 {
			t.Errorf("below %s is %v, %v", d.Name, disks, err)
		}
		for _, below := range disks {
			if attribute(below.sys, "partition") != "" {
				t.Errorf("below %s is %s, a partition", d.Name, below.Name)
			}
		}
	}
}
