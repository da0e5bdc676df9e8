package storage

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

func TestMain(m *testing.M) {
	lab.Hook()
	os.Exit(m.Run())
}

// TestStorage tries volumes in a datacenter of their own.
func TestStorage(t *testing.T) {
	d := &trial{Datacenter: dctest.Start(t, "storage")}
	d.PushProbe(t)
	defer func() {
		dctest.Count(t, "storage", "storage: %d checks, %d ok, %d bytes lost", d.checks, d.checks-d.failed, d.lost)
	}()
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"life", d.life},
		{"people", d.people},
		{"snapshots", func(t *testing.T) { d.snapshots(t, "local") }},
		{"snapshots of shared", func(t *testing.T) { d.snapshots(t, "shared") }},
		{"moves", d.moves},
		{"files", d.files},
		{"files of shared", d.sharedFiles},
		{"raw blocks", d.rawBlocks},
		{"shared", d.shared},
		{"shared trash", d.sharedTrash},
		{"refused", d.refused},
		{"two machines of a host", d.twoMachines},
		{"upstream", d.sanity},
		{"bad days", d.badDays},
		{"disks", d.disks},
		{"three hosts", d.threeHosts},
	} {
		t.Run(part.name, func(t *testing.T) {
			defer d.Tell(t)
			part.test(t)
		})
	}
}

// refused: what a tenant writes into his cluster himself reaches no volume but his own.
func (d *trial) refused(t *testing.T) {
	const uid = "00000000-dead-4eef-8000-000000000000"
	d.Apply(t, `
apiVersion: v1
kind: PersistentVolume
metadata: {name: strange}
spec:
  capacity: {storage: 320Mi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: none
  claimRef: {namespace: default, name: strange}
  csi: {driver: storage.multipaas.internal, volumeHandle: `+uid+`}
`+claim("strange", "320Mi", ", storageClassName: none, volumeName: strange")+d.pod("strange", "strange", "wait"))
	d.event(t, "strange", "this machine does not see volume")
	d.delete(t, "pod/strange", "pvc/strange", "pv/strange")

	d.Must(t, datacenter.Admin, "accounts", "set", "acme", "--max-storage", "1Gi")
	d.Apply(t, claim("large", "2Gi", "")+d.pod("large", "large", "wait"))
	d.event(t, "large", "storage: at most 1Gi")
	d.delete(t, "pod/large", "pvc/large")
	d.Must(t, datacenter.Admin, "accounts", "set", "acme", "--max-storage", "0")
}

// twoMachines: of two machines on one host, which both see a volume, one has it at a time.
func (d *trial) twoMachines(t *testing.T) {
	machines := len(d.Nodes) + 1
	scale := func(n int) {
		d.Must(t, datacenter.Owner, "cluster", "scale", datacenter.Workspace, "--machines", fmt.Sprint(n), "--timeout", "5m")
		d.NodesReady(t, n)
	}
	defer scale(machines - 1)
	scale(machines)
	var pair []string
	wait.For(t, wait.Patience, "two machines say that they are on one host", func(context.Context) error {
		out := d.Kubectl(t, "get", "nodes", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.metadata.labels.storage\.multipaas\.internal/host}{"\n"}{end}`)
		on := map[string]string{}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 {
				if pair = []string{on[f[1]], f[0]}; pair[0] != "" {
					return nil
				}
				on[f[1]] = f[0]
			}
		}
		return fmt.Errorf("they say %s", out)
	})
	at := func(machine, pod string) string {
		return strings.Replace(d.pod(pod, "shared", "wait"), "spec:\n", "spec:\n  nodeSelector: {kubernetes.io/hostname: "+machine+"}\n", 1)
	}
	d.Apply(t, claim("shared", "320Mi", "")+at(pair[0], "first"))
	d.runs(t, "first")
	d.Apply(t, at(pair[0], "beside")) // on the same machine it may
	d.runs(t, "beside")
	d.Apply(t, at(pair[1], "second"))
	d.event(t, "second", "one machine at a time")

	// A kubelet that comes again has what its pods have had before.
	uid := d.volumeOf(t, "shared")
	h := d.on(t, uid)
	holder := func() string { return d.holderOf(t, h.Root("var/lib/multipaas/volumes", uid, "mount")) }
	before := holder()
	d.check(t, before != "", "nobody has locked the volume")
	for pid := range d.Processes(t, h, "kube kubelet") {
		d.Kill(t, h, pid)
	}
	wait.For(t, wait.Patience, "the volume is locked again", func(context.Context) error {
		if now := holder(); now == "" || now == before {
			return fmt.Errorf("process %q has it", now)
		}
		return nil
	})
	r := d.Kube(t, d.Kubeconfig(), "", "get", "pod", "second", "-o", "jsonpath={.status.phase}")
	d.check(t, r.Out == "Pending", "the pod on the other machine is %s", r)
	d.delete(t, "pod/first", "pod/beside")
	d.runs(t, "second")
	d.delete(t, "pod/second", "pvc/shared")
}

// holderOf is the process that has locked a folder (flock(2)); "" is none.
func (d *trial) holderOf(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		if f := strings.Fields(line); len(f) > 5 && f[1] == "FLOCK" && f[5] == inode {
			return f[4]
		}
	}
	return ""
}

// badDays: whatever ends while a pod writes, it goes on, and what it was told to be on the
// disk is there.
func (d *trial) badDays(t *testing.T) {
	d.Apply(t, claim("log", "320Mi", "")+d.pod("writer", "log", "write", "/data/log"))
	d.runs(t, "writer")
	uid := d.volumeOf(t, "log")
	h := d.on(t, uid)
	told := d.writes(t, "writer", 10)
	kept := func(t *testing.T) { d.kept(t, t.Name(), "writer", "/data/log", told) }

	t.Run("agent killed", func(t *testing.T) {
		if err := h.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		told = d.writes(t, "writer", told)
		d.PartsReady(t, h)
		told = d.writes(t, "writer", told)
		kept(t)
	})
	t.Run("server killed", func(t *testing.T) {
		if err := d.Server.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.PartsReady(t, d.Server)
		told = d.writes(t, "writer", told)
		kept(t)
	})
	t.Run("power", func(t *testing.T) {
		told = d.writes(t, "writer", told)
		// What is in memory is lost, as nothing but this shows: the kernel outlives a lab's host.
		d.shutDown(t, h.Root("var/lib/multipaas/volumes", uid, "mount"))
		if err := h.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.PartsReady(t, h)
		wait.For(t, wait.Patience, "the pod runs again", func(context.Context) error {
			r := d.Kube(t, d.Kubeconfig(), "", "exec", "writer", "--", "/probe", "read", "/data/log")
			if r.Code != 0 || !strings.HasPrefix(r.Out, "has ") {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
		kept(t)
		told = d.writes(t, "writer", told)
	})
	d.delete(t, "pod/writer", "pvc/log")
	d.gone(t, uid)
}

// shutDown has a file system forget what it has not written, its log too
// (XFS_IOC_GOINGDOWN with XFS_FSOP_GOING_FLAGS_NOLOGFLUSH, xfs_fs.h).
func (d *trial) shutDown(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const goingDown, noLogFlush = 0x8004587d, 2
	if err := unix.IoctlSetPointerInt(int(f.Fd()), goingDown, noLogFlush); err != nil {
		t.Fatal(err)
	}
}
