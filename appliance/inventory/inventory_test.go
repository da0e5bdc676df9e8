package inventory

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/paths"
)

// TestHalfWritten: what a killed process was writing is seen wherever that was,
// and is told from what is whole.
func TestHalfWritten(t *testing.T) {
	p := paths.Paths{Data: t.TempDir(), Run: t.TempDir()}
	half := []string{
		p.Data + "/node/.state.json.tmp-1234",
		p.Machines() + "/1/.record.json.tmp-99",
		p.Machines() + "/1/disk.img.partial",
		p.Payload() + "/tmp/blob",
		p.Payload() + "/tmp/tree",
	}
	whole := []string{
		p.Data + "/node/state.json",
		p.Machines() + "/1/record.json",
		p.Machines() + "/1/root/etc/.pwd.tmp-1", // the machine's own business
		p.Payload() + "/blobs/0123",
	}
	for _, name := range append(slices.Clone(half), whole...) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	traces := merged([]Traces{{
		Folders:   []OwnedFolder{{Dir: p.Machines(), Owner: Machine, HalfWritten: true}},
		Temporary: []string{p.Payload() + "/tmp"},
		Closed:    []string{p.Machines(), p.Payload()},
	}})
	s := &scan{p: p, traces: traces, inv: &Inventory{Number: map[string]int64{}, Gauges: map[string]int64{}}, inodes: map[inode]Owner{}}
	if err := s.files(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range s.inv.Items {
		if i.Detail == "temporary file" {
			got = append(got, i.Name)
		}
	}
	slices.Sort(got)
	slices.Sort(half)
	if !slices.Equal(got, half) {
		t.Errorf("half written:\n%q, want\n%q", got, half)
	}
}

// TestTables: tables of the names that are ours are seen, others are not.
func TestTables(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this needs root: it makes a network namespace")
	}
	// Never unlocked: the thread ends with this goroutine, and its namespace too.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"multipaas", "multipaas-vxlan", "customer"} {
		c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	s := &scan{
		traces: Traces{Network: &NetworkNames{Tables: []string{"multipaas", "multipaas-vxlan"}, Machine: "mpm-"}},
		inv:    &Inventory{Number: map[string]int64{}},
	}
	if err := s.tables("", "host", Appliance); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range s.inv.Items {
		got = append(got, i.Name)
	}
	slices.Sort(got)
	if want := []string{"ip multipaas", "ip multipaas-vxlan"}; !slices.Equal(got, want) {
		t.Errorf("tables %q, want %q", got, want)
	}
}

// TestMapped: a mapped device is known by its name and by what it is on, and one that goes meanwhile is none.
func TestMapped(t *testing.T) {
	dir := t.TempDir()
	for device, name := range map[string]string{"dm-0": "multipaas-0a1b\n", "dm-1": ""} {
		if err := os.MkdirAll(filepath.Join(dir, device, "slaves", "loop7"), 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "" {
			continue
		}
		if err := os.Mkdir(filepath.Join(dir, device, "dm"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, device, "dm", "name"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := mappedOn(dir); err != nil || len(all) != 1 || all[0] != (mappedDevice{"multipaas-0a1b", "dm-0", "loop7"}) {
		t.Errorf("mapped are %+v, %v", all, err)
	}
}
