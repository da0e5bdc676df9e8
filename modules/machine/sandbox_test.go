package machine

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/cgroup"
	"github.com/multipaas/multipaas/appliance/diskimage"
	"github.com/multipaas/multipaas/appliance/hostmount"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/modules/linklocal"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// payloadDir is the payload as `make` builds it.
func payloadDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("MULTIPAAS_PAYLOAD")
	if dir == "" {
		dir, _ = filepath.Abs("../../dist/payload")
	}
	for _, f := range []string{"runtime/runc", "runtime/init", "images/machine/index.json", "images/hello/index.json", "kube/1.36/kube"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Fatalf("no payload: %v: build it with: make payload", err)
		}
	}
	return dir
}

const testFirst = 0x20000000

// testNamespace is a network namespace such as modules/network makes for a
// machine, with a link that leads nowhere.
func testNamespace(t *testing.T, suffix string) *netns.NS {
	t.Helper()
	name := fmt.Sprintf("mptest-machine-%d-%s", os.Getpid(), suffix)
	ns, err := netns.CreateOwned(name, testFirst, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close(); netns.Remove(name) })
	h, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "peer"}
	v.Name = "eth0"
	address := func(link, a string) error {
		l, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		p, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		return errors.Join(h.AddrAdd(l, p), h.LinkSetUp(l))
	}
	if err := errors.Join(h.LinkAdd(v), address("eth0", "172.30.0.11/20"), address("peer", "172.30.8.1/20"),
		address("lo", wire.LinkLocal.String()+"/32")); err != nil {
		t.Fatal(err)
	}
	return ns
}

func testCertificates(t *testing.T) (ca []byte, c wire.MachineKeyPairs) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	k := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return ca, wire.MachineKeyPairs{MachineCertificates: wire.MachineCertificates{KubeletClient: ca, KubeletServing: ca, KubeProxy: ca},
		KubeletClientKey: k, KubeletServingKey: k, KubeProxyKey: k}
}

func testSpec(t *testing.T, uid string, ns *netns.NS, disk int64) order {
	t.Helper()
	ca, certificates := testCertificates(t)
	address, pods := wire.DefaultPlan().Machine(1)
	return order{
		Machine: wire.Machine{Key: "acme/web/shop/shop-1", UID: uid, Name: "shop-1", NetworkID: "00002a",
			KubernetesVersion: "1.36", Plan: wire.DefaultPlan(), ClusterCA: ca,
			Spec: resource.MachineSpec{Driver: "sandbox", Index: 1, FirstUID: testFirst, Address: address, PodCIDR: pods,
				Size: resource.Size{MilliCPU: 1500, MemoryBytes: 512 << 20, DiskBytes: disk}}},
		netns: ns.Path(), keys: certificates,
	}
}

// rig is a sandbox with one machine in it.
type rig struct {
	t      *testing.T
	s      *Sandbox
	spec   order
	ns     *netns.NS
	exited chan string
}

func newRig(t *testing.T, disk int64) *rig {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	uid := fmt.Sprintf("mptest-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	ns := testNamespace(t, "a")
	r := &rig{t: t, spec: testSpec(t, uid, ns, disk), ns: ns, exited: make(chan string, 10)}
	r.s = r.sandbox(dir, payloadDir(t))
	t.Cleanup(func() {
		if err := r.s.Remove(context.Background(), uid); err != nil {
			t.Error(err)
		}
		r.s.unwatch(uid)
	})
	return r
}

func (r *rig) sandbox(dir, payload string) *Sandbox {
	return NewSandbox(Config{Dir: filepath.Join(dir, "machines"), Images: filepath.Join(dir, "images"), Runc: filepath.Join(dir, "runc"),
		Payload: payload, Exited: func(uid string) { r.exited <- uid }, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil))})
}

func (r *rig) ensure() {
	r.t.Helper()
	if err := r.s.Ensure(r.t.Context(), r.spec.Machine, r.spec.netns, r.spec.keys); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) prepare(m home) error {
	owner, err := openOwner(r.spec.netns, testFirst)
	if err != nil {
		return err
	}
	defer owner.Close()
	return r.s.prepare(r.t.Context(), r.spec, m, owner)
}

// exec runs a command inside the machine.
func (r *rig) exec(command ...string) (string, error) {
	cmd := r.s.runc.Command(r.t.Context(), append([]string{"exec", r.spec.UID}, command...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *rig) mustExec(command ...string) string {
	r.t.Helper()
	out, err := r.exec(command...)
	if err != nil {
		r.t.Fatalf("%v: %v\n%s\n%s", command, err, out, r.logs())
	}
	return out
}

func (r *rig) logs() string {
	var b strings.Builder
	m := r.s.home(r.spec.UID)
	files, _ := filepath.Glob(m.at("disk/log/*.log"))
	for _, f := range append(files, m.at(consoleName)) {
		data, _ := os.ReadFile(f)
		fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(f), data[max(0, len(data)-4000):])
	}
	return b.String()
}

type service struct {
	Name, State   string
	PID, Restarts int
}

// await waits until a service is in the state, after a number of restarts.
func (r *rig) await(name string, restarts int) service {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		out, err := r.exec("cat", initState)
		var st struct{ Services []service }
		if err == nil {
			err = json.Unmarshal([]byte(out), &st)
		}
		i := slices.IndexFunc(st.Services, func(s service) bool { return s.Name == name })
		if err == nil && i >= 0 && st.Services[i].State == "ready" && st.Services[i].Restarts >= restarts {
			return st.Services[i]
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is not ready: %v\n%s\n%s", name, err, out, r.logs())
		}
	}
}

func (r *rig) pid() int {
	r.t.Helper()
	c, ok, err := r.s.runc.State(r.t.Context(), r.spec.UID)
	if err != nil || !ok {
		r.t.Fatalf("no container: %v", err)
	}
	return c.PID
}

// traces counts what machines may leave on the host.
func (r *rig) traces() map[string]int {
	r.t.Helper()
	loops, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		r.t.Fatal(err)
	}
	ours := 0
	for _, l := range loops {
		file, _ := os.ReadFile(filepath.Join(l, "backing_file"))
		if strings.HasPrefix(string(file), r.s.cfg.Dir) {
			ours++
		}
	}
	mounted, err := hostmount.Below(r.s.cfg.Dir)
	if err != nil {
		r.t.Fatal(err)
	}
	procs, err := cgroup.Procs(cgroupName(r.spec.UID))
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := cgroup.Path(cgroupName(r.spec.UID))
	if err != nil {
		r.t.Fatal(err)
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*" + p)
	if err != nil {
		r.t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(r.s.cfg.Dir, "*"))
	states, _ := filepath.Glob(filepath.Join(r.s.cfg.Runc, "*"))
	return map[string]int{"loops": ours, "mounts": len(mounted), "processes": len(procs), "cgroups": len(groups), "folders": len(files), "containers": len(states)}
}

func (r *rig) wantNoTraces() {
	r.t.Helper()
	for what, n := range r.traces() {
		if n != 0 {
			r.t.Errorf("%d %s left", n, what)
		}
	}
}

func TestSandbox(t *testing.T) {
	r := newRig(t, 400<<20)
	if err := r.s.Supports(); err != nil {
		t.Fatal(err)
	}
	e := linklocal.New(linklocal.Config{Images: r.s.cfg.payload("images"), Transport: http.NewFileTransport(http.Dir(t.TempDir())), Log: slog.New(slog.DiscardHandler)})
	e.SetState(&wire.State{Registry: "registry.example"}) // which has nothing
	defer e.Close(r.spec.UID)
	if err := e.Open(t.Context(), r.spec.Machine, "acme/web/shop", r.ns.Path()); err != nil {
		t.Fatal(err)
	}
	r.ensure()
	r.await("containerd", 0)

	t.Run("it is itself", func(t *testing.T) {
		if got := strings.TrimSpace(r.mustExec("uname", "-n")); got != "shop-1" {
			t.Errorf("host name %q", got)
		}
		if got := r.mustExec("sh", "-c", "cat /proc/1/comm; cat /etc/resolv.conf /etc/hostname"); !strings.HasPrefix(got, "init\nnameserver 169.254.20.10\nshop-1") {
			t.Errorf("got %q", got)
		}
	})

	t.Run("nft knows protocols by name", func(t *testing.T) {
		got := r.mustExec("sh", "-c", "nft add table ip t && nft add set ip t s '{ type inet_proto; elements = { tcp, udp } }' && nft -j list table ip t && nft delete table ip t")
		if !strings.Contains(got, `"tcp"`) {
			t.Error(got)
		}
	})

	t.Run("a container from the payload", func(t *testing.T) {
		ctr := func(args ...string) string {
			t.Helper()
			return r.mustExec(append([]string{insideRuntime + "/ctr", "-n", "test"}, args...)...)
		}
		ctr("images", "pull", "--hosts-dir", insideConfig+"/certs.d", "multipaas.internal/hello:1")
		ctr("run", "-d", "--net-host", "multipaas.internal/hello:1", "hello")
		c := &http.Client{Transport: &http.Transport{DialContext: r.ns.DialContext, DisableKeepAlives: true}}
		var got string
		for deadline := time.Now().Add(10 * time.Second); got == "" && time.Now().Before(deadline); {
			if res, err := c.Get("http://172.30.0.11:8080/"); err == nil {
				b, _ := io.ReadAll(res.Body)
				res.Body.Close()
				got = string(b)
			}
		}
		if got == "" {
			t.Errorf("hello does not answer\n%s", ctr("tasks", "ls"))
		}
		// Whatever is not in the payload is refused with a reason, at once.
		began := time.Now()
		out, err := r.exec(insideRuntime+"/ctr", "-n", "test", "images", "pull", "--hosts-dir", insideConfig+"/certs.d", "registry.example/no/such:1")
		if err == nil || time.Since(began) > 30*time.Second {
			t.Errorf("after %v: %v %s", time.Since(began), err, out)
		}
		ctr("tasks", "kill", "-s", "SIGKILL", "hello")
	})

	t.Run("the host is out of reach", func(t *testing.T) {
		for _, c := range []string{
			"echo 1 >/proc/sys/kernel/panic",
			"echo x >/proc/sys/kernel/core_pattern",
			"echo b >/proc/sysrq-trigger",
			"echo 1 >/sys/kernel/mm/ksm/run",
			"mknod /root/disk b 254 0 && head -c1 /root/disk",
			"mknod /root/mem c 1 1 && head -c1 /root/mem",
			"head -c1 /dev/kmsg | grep .",
			"mkdir -p /root/m && mknod /root/loop b 7 0 && mount /root/loop /root/m",
			"date -s 2001-01-01",
			"echo x >/etc/multipaas/init.json",
			"echo x >/opt/multipaas/runtime/runc",
			"ulimit -n 10000000",
		} {
			if out, err := r.exec("bash", "-c", c); err == nil {
				t.Errorf("%s: done: %s", c, out)
			}
		}
	})

	t.Run("limits", func(t *testing.T) {
		out, err := r.exec("dd", "if=/dev/zero", "of=/var/lib/containerd/fill", "bs=1M", "count=500")
		if err == nil || !strings.Contains(out, "No space left") {
			t.Errorf("500 MiB on a disk of 400: %v %s", err, out)
		}
		if out, err := r.exec("sh", "-c", "echo x >/root/x; dd if=/dev/zero of=/root/fill bs=1M count=5"); err == nil {
			t.Errorf("the root file system is not on the disk: %s", out)
		}
		r.mustExec("rm", "-f", "/var/lib/containerd/fill", "/root/fill")
		// tail keeps all of a line that does not end.
		if out, err := r.exec("bash", "-c", "tail /dev/zero"); err == nil {
			t.Errorf("memory beyond the limit: %s", out)
		}
		stat := r.mustExec("sh", "-c", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null; true")
		if !strings.Contains(stat, "150000") {
			t.Errorf("CPU limit: %s", stat)
		}
	})

	t.Run("services come back", func(t *testing.T) {
		before := r.await("containerd", 0)
		r.mustExec("kill", "-9", fmt.Sprint(before.PID))
		if after := r.await("containerd", before.Restarts+1); after.PID == before.PID {
			t.Errorf("containerd is still %d", after.PID)
		}
	})

	t.Run("an agent that starts again adopts it", func(t *testing.T) {
		pid := r.pid()
		r.s.unwatch(r.spec.UID)
		r.s = r.sandbox(filepath.Dir(r.s.cfg.Dir), r.s.cfg.Payload)
		r.spec.keys.KubeProxy = append(bytes.Clone(r.spec.keys.KubeProxy), "# renewed\n"...)
		r.ensure()
		if got := r.pid(); got != pid {
			t.Errorf("process 1 was %d, is %d", pid, got)
		}
		if got := r.mustExec("cat", insideConfig+"/pki/kube-proxy.crt"); !strings.HasSuffix(got, "# renewed\n") {
			t.Error("a renewed certificate is not seen inside")
		}
		states, err := r.s.List(t.Context())
		if err != nil || len(states) != 1 || !states[0].Running || states[0].Key != r.spec.Key || states[0].Restarts != 0 {
			t.Errorf("list: %+v %v", states, err)
		}
	})

	t.Run("its state comes by a file of the host's", func(t *testing.T) {
		r.await("containerd", 0)
		said := func() string {
			t.Helper()
			states, err := r.s.List(t.Context())
			if err != nil || len(states) != 1 || !states[0].Running {
				t.Fatalf("list: %+v %v", states, err)
			}
			return states[0].Message
		}
		if got := said(); strings.Contains(got, "containerd") || strings.Contains(got, "read") {
			t.Errorf("containerd is ready: %q", got)
		}
		r.mustExec("sh", "-c", `echo '{"services":[{"name":"a","state":"b"}]}' >`+initState)
		if got := said(); got != "a b" {
			t.Errorf("of what is written inside: %q", got)
		}
		for _, c := range []string{"rm -f " + initState, "mv " + initState + " /run/x", "chmod 777 " + initState, "chown 1 " + initState,
			"ln -sf /dev/zero " + initState, "flock -n " + initState + " true && mount -o remount,size=1g " + initState} {
			if out, err := r.exec("bash", "-c", c); err == nil {
				t.Errorf("%s: done: %s", c, out)
			}
		}
		// Another over it is nobody's business; nor is what it was told to be.
		r.mustExec("sh", "-c", "mkfifo /run/pipe && mount --bind /run/pipe "+initState)
		if got := said(); got != "a b" {
			t.Errorf("with a pipe over it: %q", got)
		}
		r.mustExec("sh", "-c", "umount "+initState+" && rm /run/pipe")
		if out, err := r.exec("dd", "if=/dev/zero", "of="+initState, "bs=1M", "count=1", "conv=notrunc"); err == nil || !strings.Contains(out, "No space left") {
			t.Errorf("a large one: %v %s", err, out)
		}
		if got := said(); got != "what its init says can't be read" {
			t.Errorf("of rubbish: %q", got)
		}
		// Machines that were started before there was one.
		if err := hostmount.Unmount(r.s.home(r.spec.UID).at(stateDir)); err != nil {
			t.Fatal(err)
		}
		if got := said(); got != "" {
			t.Errorf("without the file: %q", got)
		}
	})

	// attached mounts something on the host where volumes are, as modules/volume does.
	attached := r.s.home(r.spec.UID).at(volumesDir + "/v1")
	inside := wire.VolumesInMachine + "/v1"
	t.Run("volumes appear, and nothing comes back", func(t *testing.T) {
		if err := cmp.Or(os.Mkdir(attached, 0o700), unix.Mount("tmpfs", attached, "tmpfs", unix.MS_NODEV, "size=1m,mode=777")); err != nil {
			t.Fatal(err)
		}
		r.mustExec("sh", "-c", "echo written >"+inside+"/file")
		if got, err := os.ReadFile(attached + "/file"); err != nil || string(got) != "written\n" {
			t.Errorf("on the host: %q, %v", got, err)
		}
		for _, c := range []string{"mkdir " + wire.VolumesInMachine + "/own", "chmod 777 " + wire.VolumesInMachine, "rmdir " + inside,
			"mount -o remount,size=1g " + wire.VolumesInMachine, "mount -o remount,bind,dev " + inside, "mknod " + inside + "/disk b 254 0 && head -c1 " + inside + "/disk"} {
			if out, err := r.exec("bash", "-c", c); err == nil {
				t.Errorf("%s: done: %s", c, out)
			}
		}
		before, err := hostmount.Below(r.s.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		r.mustExec("sh", "-c", "mkdir "+inside+"/x && mount --make-rshared "+wire.VolumesInMachine+" && mount -t tmpfs none "+inside+"/x && mount --bind "+inside+" "+wire.VolumesInMachine)
		if after, err := hostmount.Below(r.s.cfg.Dir); err != nil || !slices.Equal(before, after) {
			t.Errorf("what is mounted inside is on the host: %v, %v, before %v", after, err, before)
		}
		r.mustExec("sh", "-c", "umount "+wire.VolumesInMachine+" && umount "+inside+"/x && umount "+inside)
		if has, err := hostmount.Has(attached); err != nil || !has {
			t.Errorf("unmounted inside, on the host it is mounted: %t, %v", has, err)
		}
	})

	t.Run("killed", func(t *testing.T) {
		r.mustExec("sh", "-c", "echo kept >/var/lib/kubelet/kept; echo kept >/root/kept; sync")
		if err := unix.Kill(r.pid(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		select {
		case uid := <-r.exited:
			if uid != r.spec.UID {
				t.Errorf("%s ended", uid)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("nobody was told")
		}
		r.ensure()
		r.await("containerd", 0)
		if got := r.mustExec("cat", inside+"/file"); got != "written\n" {
			t.Errorf("started again, the volume has %q", got)
		}
	})

	t.Run("power cycle", func(t *testing.T) {
		// Everything that a reboot takes away.
		r.s.unwatch(r.spec.UID)
		if err := cgroup.Kill(t.Context(), cgroupName(r.spec.UID)); err != nil {
			t.Fatal(err)
		}
		if err := hostmount.Unmount(r.s.cfg.Dir); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(r.s.cfg.Runc); err != nil {
			t.Fatal(err)
		}
		r.ensure()
		r.await("containerd", 0)
		if got := r.mustExec("cat", "/var/lib/kubelet/kept", "/root/kept"); got != "kept\nkept\n" {
			t.Errorf("kept: %q", got)
		}
		// The image that was pulled is still there.
		if got := r.mustExec(insideRuntime+"/ctr", "-n", "test", "images", "ls", "-q"); !strings.Contains(got, "hello") {
			t.Errorf("images: %q", got)
		}
		if states, _ := r.s.List(t.Context()); len(states) != 1 || states[0].Restarts != 2 {
			t.Errorf("list: %+v", states)
		}
	})

	t.Run("remove", func(t *testing.T) {
		// What a volume has is not the machine's to delete.
		of := t.TempDir()
		if err := cmp.Or(os.WriteFile(of+"/file", nil, 0o600), os.Mkdir(attached, 0o700), unix.Mount(of, attached, "", unix.MS_BIND, "")); err != nil {
			t.Fatal(err)
		}
		r.mustExec("test", "-d", inside)
		for range 2 {
			if err := r.s.Remove(t.Context(), r.spec.UID); err != nil {
				t.Fatal(err)
			}
			r.wantNoTraces()
		}
		if _, err := os.Stat(of + "/file"); err != nil {
			t.Errorf("removed with the machine: %v", err)
		}
	})
}

// TestHalf removes machines whose making was cut off at some point.
func TestHalf(t *testing.T) {
	r := newRig(t, 200<<20)
	m := r.s.home(r.spec.UID)
	image, err := r.s.images.Unpack(t.Context(), r.s.cfg.payload("images", "machine"))
	if err != nil {
		t.Fatal(err)
	}
	for name, cut := range map[string]func() error{
		"folder":  func() error { return os.MkdirAll(string(m), 0o700) },
		"partial": func() error { return os.WriteFile(m.disk().File+diskimage.Partial, []byte("x"), 0o600) },
		"disk":    func() error { return m.disk().Ensure(t.Context(), 200<<20, image) },
		"root":    func() error { return r.prepare(m) },
		"state":   func() error { return os.MkdirAll(filepath.Join(r.s.cfg.Runc, r.spec.UID), 0o700) },
		"created": func() error {
			owner, err := openOwner(r.spec.netns, testFirst)
			if err != nil {
				return err
			}
			defer owner.Close()
			if err := errors.Join(writeConfig(r.spec, m.at("config"), 1450), r.s.prepare(t.Context(), r.spec, m, owner)); err != nil {
				return err
			}
			cmd := r.s.runc.Command(t.Context(), "create", "--bundle", m.at("bundle"), r.spec.UID)
			return cmd.Run()
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := cmp.Or(os.MkdirAll(string(m), 0o711), os.Chmod(r.s.cfg.Dir, 0o711)); err != nil {
				t.Fatal(err)
			}
			if err := cut(); err != nil {
				t.Fatal(err)
			}
			if states, err := r.s.List(t.Context()); err != nil || len(states) != 1 || states[0].Running {
				t.Errorf("list: %+v %v", states, err)
			}
			if name == "created" { // and Ensure goes on from there
				r.ensure()
				r.await("containerd", 0)
			}
			if err := r.s.Remove(t.Context(), r.spec.UID); err != nil {
				t.Fatal(err)
			}
			r.wantNoTraces()
		})
	}
}

// TestKubeletEnvironment: a kubelet is told where volumes appear, and where its machine is if that is known.
func TestKubeletEnvironment(t *testing.T) {
	m := order{Machine: wire.Machine{UID: "u-1", Place: "host-1a2b3c4d"}}
	for _, want := range []string{"MULTIPAAS_VOLUMES=/run/volumes", "MULTIPAAS_MACHINE_UID=u-1", "MULTIPAAS_PLACE=host-1a2b3c4d"} {
		if got := kubeletEnvironment(m); !slices.Contains(got, want) {
			t.Errorf("%q, want %s", got, want)
		}
	}
	m.Place = ""
	if got := kubeletEnvironment(m); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "MULTIPAAS_PLACE") }) {
		t.Errorf("of a machine without a place: %q", got)
	}
}

func TestSpecCheck(t *testing.T) {
	good := order{netns: "/run/netns/x", Machine: wire.Machine{UID: "u-1", Name: "shop-1", KubernetesVersion: "1.36", Plan: wire.DefaultPlan(),
		Spec: resource.MachineSpec{Address: netip.MustParseAddr("172.30.0.11"), PodCIDR: netip.MustParsePrefix("10.42.1.0/24"), Size: resource.Size{MilliCPU: 1000, MemoryBytes: 1 << 30, DiskBytes: 1 << 30}}}}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*order){
		"uid":     func(s *order) { s.UID = "../x" },
		"name":    func(s *order) { s.Name = "A b" },
		"version": func(s *order) { s.KubernetesVersion = "../../x" },
		"memory":  func(s *order) { s.Machine.Spec.Size.MemoryBytes = 1 },
		"disk":    func(s *order) { s.Machine.Spec.Size.DiskBytes = 1 },
		"address": func(s *order) { s.Machine.Spec.Address = netip.Addr{} },
		"plan":    func(s *order) { s.Plan.Plane = netip.Addr{} },
	} {
		bad := good
		change(&bad)
		if bad.check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
