package leaks

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/doctor"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

// A workspace's id and UIDs of a machine and a volume that nobody has.
const (
	noWorkspace = "00beef"
	noMachine   = "00000000-dead-4eef-8000-000000000000"
	noVolume    = "00000000-dead-4eef-8000-000000000001"
)

// planted is what nobody wants, and how it comes to be on a host.
type planted struct {
	kind   inventory.Kind
	name   string
	script string
}

// onServer are orphans of a workspace. Interfaces of every kind that the
// platform makes stand in a namespace of the workspace.
var onServer = []planted{
	{inventory.Netns, "mp-" + noWorkspace, `ip netns add mp-` + noWorkspace},
	{inventory.Link, "mpu-" + noWorkspace, `ip link add mpu-` + noWorkspace + ` type veth peer name uplink netns mp-` + noWorkspace},
	{inventory.Link, "br0", `ip -n mp-` + noWorkspace + ` link add br0 type bridge`},
	{inventory.Link, "vxlan0", `ip -n mp-` + noWorkspace + ` link add vxlan0 type vxlan id 48879 dstport 4789 local 127.0.0.1`},
	{inventory.Cgroup, "planes/" + noWorkspace, `for d in /sys/fs/cgroup/* /sys/fs/cgroup; do [ ! -e $d/cgroup.procs ] || [ ! -d $d/multipaas/planes ] || mkdir -p $d/multipaas/planes/` + noWorkspace + `; done`},
	{inventory.Process, " sleep", `setsid sleep 100000 </dev/null >/dev/null 2>&1 & p=$!
for d in /sys/fs/cgroup/* /sys/fs/cgroup; do [ ! -d $d/multipaas/planes/` + noWorkspace + ` ] || echo $p >$d/multipaas/planes/` + noWorkspace + `/cgroup.procs 2>/dev/null || true; done`}, // a cpuset without CPUs takes none
	{inventory.Folder, "/var/lib/multipaas/planes/" + noWorkspace, `mkdir /var/lib/multipaas/planes/` + noWorkspace + ` && echo x >/var/lib/multipaas/planes/` + noWorkspace + `/state.db`},
	{inventory.Mount, "/var/lib/multipaas/planes/" + noWorkspace, `mount -t tmpfs none /var/lib/multipaas/planes/` + noWorkspace},
	{inventory.File, "/var/lib/multipaas/.x.tmp-123", `touch -d 2020-01-01 /var/lib/multipaas/.x.tmp-123`},
}

// loopDevice is an orphan of a machine. The agent removes a machine's folder by
// itself, so its file is gone already: only doctor finds the device.
var loopDevice = planted{inventory.Loop, "/dev/loop", `d=/var/lib/multipaas/machines/` + noMachine + `.x; mkdir -p $d && truncate -s 8M $d/disk.img && losetup --find $d/disk.img && rm -r $d`}

// strangeVolume is kept until its UID is typed.
var strangeVolume = planted{inventory.Folder, "/var/lib/multipaas/volumes/" + noVolume,
	`d=/var/lib/multipaas/volumes/` + noVolume + `; mkdir -p $d/mount && echo data >$d/disk.img`}

// testDoctor plants orphans in a live datacenter, sees that doctor names each, that
// it removes each, and that all else stays as it was. Of firewall tables it can't plant
// one, for a host with a workspace wants its own: see appliance/doctor.
func testDoctor(t *testing.T, d *dctest.Datacenter) {
	settle(t, d)
	before := d.MustInventories(t)
	starts := d.MachineStarts(t)
	for _, p := range onServer {
		plant(t, d.Server, p)
	}
	client := d.Etcd(t)
	key := "/planes/" + noWorkspace + "/registry/x"
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, k := range []string{key, "/multipaas/vnis/48879"} {
		if _, err := client.Put(ctx, k, "{}"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.UserAddWithOptions(ctx, "plane-"+noWorkspace, "", &clientv3.UserAddOptions{NoPassword: true}); err != nil {
		t.Fatal(err)
	}
	all := append(onServer,
		planted{kind: inventory.EtcdKey, name: "/planes/" + noWorkspace + "/"},
		planted{kind: inventory.EtcdKey, name: "/multipaas/vnis/48879"},
		planted{kind: inventory.User, name: "plane-" + noWorkspace})
	named(t, d.Server, all)
	plant(t, d.Nodes[0], loopDevice)
	plant(t, d.Nodes[0], strangeVolume)
	named(t, d.Nodes[0], []planted{loopDevice, strangeVolume})

	// A comparison names them too, so it can fail.
	if got := d.Leaks(t, 15*time.Second, before); len(got) < len(onServer)-2 {
		t.Errorf("with %d orphans planted the inventories differ by only\n%s", len(onServer), strings.Join(got, "\n"))
	}
	r, err := examine(t.Context(), d.Nodes[0], "--fix")
	if err != nil || len(r.Orphans) != 2 || r.Orphans[0].Kept || !r.Orphans[1].Kept {
		t.Errorf("doctor --fix that was told of no volume: %+v, %v; want it kept, alone", r.Orphans, err)
	}
	for _, h := range []*lab.Host{d.Server, d.Nodes[0], d.Nodes[1]} {
		r, err := examine(t.Context(), h, "--fix", "--volume", noVolume)
		if err != nil {
			t.Errorf("%s: doctor --fix: %v", h.Name(), err)
		}
		for _, o := range r.Orphans {
			if !o.Removed {
				t.Errorf("%s: %s %s was not removed: %s", h.Name(), o.Kind, o.Name, o.Error)
			}
		}
	}
	settle(t, d)
	for _, l := range d.Leaks(t, 30*time.Second, before) {
		t.Error("after doctor --fix: ", l)
	}
	// And nothing that was wanted has gone.
	wait.For(t, wait.Patience, "all that was wanted is there", func(ctx context.Context) error {
		after, err := d.Inventories(ctx)
		for host := range before {
			for _, l := range dctest.Compare(after[host], before[host]) {
				err = errors.Join(err, fmt.Errorf("doctor --fix has taken what was wanted: %s: %s", host, l))
			}
		}
		return err
	})
	for machine, started := range d.MachineStarts(t) {
		if starts[machine] != started {
			t.Errorf("machine %s was started again", machine)
		}
	}
	d.Answers(t)
	t.Run("stopped", func(t *testing.T) { testStopped(t, d) })
}

// testStopped: with the server stopped doctor reads what is wanted from the data
// directory, removes what is an orphan for certain and leaves planes' data alone.
func testStopped(t *testing.T, d *dctest.Datacenter) {
	start := d.Stop(t, d.Server)
	stopped := []planted{onServer[0], onServer[1]}
	for _, p := range stopped {
		plant(t, d.Server, p)
	}
	named(t, d.Server, stopped)
	r, err := examine(t.Context(), d.Server, "--fix")
	if err != nil {
		t.Error(err)
	}
	if !strings.Contains(r.Source, "data directory") {
		t.Errorf("source is %q; want the data directory", r.Source)
	}
	start()
	d.Answers(t)
}

func plant(t *testing.T, h *lab.Host, p planted) {
	t.Helper()
	if _, err := h.Run(t.Context(), "/bin/sh", "-ec", p.script); err != nil {
		t.Fatal(err)
	}
}

// named waits until doctor names all of them, without removing any.
func named(t *testing.T, h *lab.Host, all []planted) {
	t.Helper()
	var r doctor.Report
	wait.For(t, wait.Patience, "doctor looks at "+h.Name(), func(ctx context.Context) (err error) {
		r, err = examine(ctx, h) // what goes while it looks is an error
		return err
	})
	for _, p := range all {
		found := false
		for _, o := range r.Orphans {
			if o.Kind == p.kind && (o.Name == p.name || strings.HasSuffix(o.Name, p.name) || p.kind == inventory.Loop && strings.HasPrefix(o.Name, p.name)) {
				found = true
				if o.Removed || o.Why == "" {
					t.Errorf("%s %s: removed is %v, why is %q; want it named with a reason and left", o.Kind, o.Name, o.Removed, o.Why)
				}
			}
		}
		if !found {
			t.Errorf("%s: doctor does not name the %s %s: %+v", h.Name(), p.kind, p.name, r.Orphans)
		}
	}
}
