package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// insideEnv says that this process has a mount namespace of its own already.
const insideEnv = "MULTIPAAS_VOLUMES_TEST"

// TestMain runs the tests in a mount namespace of their own, all threads of them.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" || os.Getuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const (
	machineUID = "11111111-2222-3333-4444-555555555555"
	one        = "aaaaaaaa-0000-4000-8000-000000000001"
	two        = "aaaaaaaa-0000-4000-8000-000000000002"
)

// machine is a folder of volumes as the host makes it, a folder of pods, and the services.
type machine struct {
	*testing.T
	cfg  Config
	node *Node
	csi.NodeClient
	conn *grpc.ClientConn
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, who may mount")
	}
	dir := t.TempDir()
	m := &machine{T: t, cfg: Config{Folder: filepath.Join(dir, "volumes"), Machine: machineUID, Place: "host-1", Pods: filepath.Join(dir, "pods")}}
	for _, d := range []string{m.cfg.Folder, m.cfg.Pods} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.mount("tmpfs", m.cfg.Folder, 0)
	node, err := New(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.node = node
	socket := filepath.Join(dir, "s")
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // left by one that was killed
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- node.Serve(ctx, filepath.Join(dir, "plugins", "csi.sock"), socket) }()
	m.conn, err = grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	m.NodeClient = csi.NewNodeClient(m.conn)
	t.Cleanup(func() {
		_ = m.conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return m
}

func (m *machine) mount(fs, path string, flags uintptr) {
	m.Helper()
	if err := unix.Mount(fs, path, fs, flags, "size=1m"); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

// attach mounts a volume as the host does, with a file in it that says which it is.
func (m *machine) attach(id string, flags uintptr) {
	m.Helper()
	path := filepath.Join(m.cfg.Folder, id)
	if err := os.Mkdir(path, 0o755); err != nil {
		m.Fatal(err)
	}
	m.mount("tmpfs", path, flags)
	if err := os.WriteFile(filepath.Join(path, "id"), []byte(id), 0o644); err != nil {
		m.Fatal(err)
	}
}

// target is where the kubelet wants a volume for a pod; the folder above is there.
func (m *machine) target(pod string) string {
	m.Helper()
	path := filepath.Join(m.cfg.Pods, pod, "volumes", "kubernetes.io~csi", "pv", "mount")
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		m.Fatal(err)
	}
	return path
}

func request(id, target string, change func(*csi.NodePublishVolumeRequest)) *csi.NodePublishVolumeRequest {
	r := &csi.NodePublishVolumeRequest{VolumeId: id, TargetPath: target, VolumeCapability: &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}}
	if change != nil {
		change(r)
	}
	return r
}

func readOnly(r *csi.NodePublishVolumeRequest) { r.Readonly = true }

func (m *machine) publish(id, target string, change func(*csi.NodePublishVolumeRequest)) error {
	_, err := m.NodePublishVolume(m.Context(), request(id, target, change))
	return err
}

func (m *machine) unpublish(id, target string) error {
	_, err := m.NodeUnpublishVolume(m.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
	return err
}

func (m *machine) wantErr(what string, err error, code codes.Code, words string) {
	m.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), words) {
		m.Errorf("%s: %v; want %s with %q", what, err, code, words)
	}
}

// mounts counts what is mounted at path.
func mounts(t *testing.T, path string) (n int) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == path {
			n++
		}
	}
	return n
}

func TestPublish(t *testing.T) {
	m := newMachine(t)
	m.attach(one, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)
	m.attach(two, 0)
	a, b := m.target("a"), m.target("b")
	if err := os.RemoveAll(filepath.Join(m.cfg.Pods, "b")); err != nil { // as the kubelet does
		t.Fatal(err)
	}
	for range 2 { // twice is once
		if err := m.publish(one, a, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := mounts(t, a); n != 1 {
		t.Errorf("%d mounts at the target, want 1", n)
	}
	if got, err := os.ReadFile(filepath.Join(a, "id")); string(got) != one || err != nil {
		t.Errorf("in the pod's folder is volume %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(a, "x"), nil, 0o644); err != nil {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(a, &st); err != nil || st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC) != unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC {
		t.Errorf("flags %x, %v: want those of the source", st.Flags, err)
	}
	if err := m.publish(one, b, readOnly); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only volume: %v", err)
	}
	if err := m.publish(one, b, readOnly); err != nil {
		t.Error(err)
	}
	alone := func(r *csi.NodePublishVolumeRequest) {
		r.VolumeCapability.AccessMode.Mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	}
	m.wantErr("alone, and others have it", m.publish(one, m.target("c"), alone), codes.FailedPrecondition, "one pod alone")
	for range 2 {
		if err := m.publish(two, m.target("d"), alone); err != nil {
			t.Errorf("alone: %v", err)
		}
	}
	if err := m.unpublish(two, m.target("d")); err != nil {
		t.Error(err)
	}
	m.wantErr("another volume there", m.publish(two, a, nil), codes.AlreadyExists, "something else")
	m.wantErr("read-only, where it can be written", m.publish(one, a, readOnly), codes.AlreadyExists, "can be written")

	for range 2 {
		for _, target := range []string{a, b} {
			if err := m.unpublish(one, target); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there: %v", target, err)
			}
		}
	}
	if err := m.unpublish(one, filepath.Join(m.cfg.Pods, "gone", "volumes", "mount")); err != nil {
		t.Errorf("of a pod that is gone: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(m.cfg.Folder, one, "x")); err != nil {
		t.Errorf("what was written is lost: %q, %v", got, err)
	}
}

// TestAppears: a pod waits for a moment for what the host has not shown its machine yet.
func TestAppears(t *testing.T) {
	m := newMachine(t)
	cfg := m.cfg
	cfg.Appears = time.Minute
	patient, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	shown := make(chan error)
	go func() {
		_, err := patient.NodePublishVolume(t.Context(), request(one, m.target("a"), nil))
		shown <- err
	}()
	m.attach(one, 0)
	if err := <-shown; err != nil {
		t.Fatal(err)
	}
	if _, err := m.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: one, TargetPath: m.target("a")}); err != nil {
		t.Error(err)
	}
}

// TestPublishRefuses is what a hostile API server could ask for, and what a tenant writes into his PersistentVolume.
func TestPublishRefuses(t *testing.T) {
	m := newMachine(t)
	m.attach(one, 0)
	mountOf := func(r *csi.NodePublishVolumeRequest) *csi.VolumeCapability_MountVolume {
		return r.VolumeCapability.GetMount()
	}
	for _, c := range []struct {
		what, id string
		change   func(*csi.NodePublishVolumeRequest)
		code     codes.Code
		words    string
	}{
		{"not seen", two, nil, codes.NotFound, "does not see"},
		{"a path", "../" + one, nil, codes.NotFound, "UID"},
		{"the folder itself", ".", nil, codes.NotFound, "UID"},
		{"inline", "csi-0123456789abcdef", nil, codes.NotFound, "UID"},
		{"nothing", "", nil, codes.InvalidArgument, "no volume"},
		{"a block device", one, func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, codes.FailedPrecondition, "not raw blocks"},
		{"ephemeral", one, func(r *csi.NodePublishVolumeRequest) {
			r.VolumeContext = map[string]string{"csi.storage.k8s.io/ephemeral": "true"}
		}, codes.InvalidArgument, "PersistentVolumeClaim"},
		{"an option", one, func(r *csi.NodePublishVolumeRequest) { mountOf(r).MountFlags = []string{"ro", "suid"} }, codes.InvalidArgument, `"suid"`},
		{"another file system", one, func(r *csi.NodePublishVolumeRequest) { mountOf(r).FsType = "ext4" }, codes.InvalidArgument, "fsType"},
		{"no mode", one, func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode = nil }, codes.InvalidArgument, "access mode"},
		{"outside", one, func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "/etc/mount" }, codes.InvalidArgument, "not below"},
		{"upwards", one, func(r *csi.NodePublishVolumeRequest) { r.TargetPath = m.cfg.Pods + "/a/../../x" }, codes.InvalidArgument, "not below"},
		{"all pods", one, func(r *csi.NodePublishVolumeRequest) { r.TargetPath = m.cfg.Pods }, codes.InvalidArgument, "not below"},
		{"relative", one, func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "a/mount" }, codes.InvalidArgument, "not below"},
	} {
		m.wantErr(c.what, m.publish(c.id, m.target("a"), c.change), c.code, c.words)
	}
	// A folder that is no mount of its own: what is in it would be the machine's.
	if err := os.Mkdir(filepath.Join(m.cfg.Folder, two), 0o755); err != nil {
		t.Fatal(err)
	}
	m.wantErr("no file system there", m.publish(two, m.target("a"), nil), codes.NotFound, "does not see")
	if err := errors.Join(os.Remove(filepath.Join(m.cfg.Folder, two)), os.Symlink("/etc", filepath.Join(m.cfg.Folder, two))); err != nil {
		t.Fatal(err)
	}
	if err := m.publish(two, m.target("a"), nil); err == nil {
		t.Error("a link was followed to what is bound")
	}

	// Links in the pods' folder, on the way and at the end.
	outside := t.TempDir()
	link := m.target("linked")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	if err := m.publish(one, link, nil); err == nil {
		t.Error("a link was followed to what it is bound to")
	}
	if err := m.unpublish(one, link); err == nil {
		t.Error("a link was taken away for a folder")
	}
	if err := os.Symlink(outside, filepath.Join(m.cfg.Pods, "b")); err != nil {
		t.Fatal(err)
	}
	m.wantErr("a link on the way", m.publish(one, filepath.Join(m.cfg.Pods, "b", "mount"), nil), codes.Internal, "symbolic link")
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 || mounts(t, outside) > 0 {
		t.Errorf("behind the links: %v, %v", entries, err)
	}

	// What was written while no volume was mounted isn't destroyed.
	full := m.target("full")
	if err := errors.Join(os.Mkdir(full, 0o755), os.WriteFile(filepath.Join(full, "kept"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	m.wantErr("a folder with files", m.unpublish(one, full), codes.Internal, "not empty")
	if _, err := os.Stat(filepath.Join(full, "kept")); err != nil {
		t.Error(err)
	}

	if err := unix.Unmount(m.cfg.Folder, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.cfg.Folder); err != nil {
		t.Fatal(err)
	}
	m.wantErr("a machine from before", m.publish(one, m.target("a"), nil), codes.FailedPrecondition, "started again")
}

// TestUnpublishAll: a mount on a mount, by whoever, is taken off with it.
func TestUnpublishAll(t *testing.T) {
	m := newMachine(t)
	m.attach(one, 0)
	target := m.target("a")
	if err := m.publish(one, target, nil); err != nil {
		t.Fatal(err)
	}
	m.mount("tmpfs", target, 0)
	if err := m.unpublish(one, target); err != nil || mounts(t, target) != 0 {
		t.Errorf("%v, %d mounts left", err, mounts(t, target))
	}
}

func TestStats(t *testing.T) {
	m := newMachine(t)
	m.attach(one, 0)
	target := m.target("a")
	stats := func(path string) (*csi.NodeGetVolumeStatsResponse, error) {
		return m.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: one, VolumePath: path})
	}
	_, err := stats(target)
	m.wantErr("not mounted", err, codes.NotFound, "no volume is mounted")
	if err := m.publish(one, target, nil); err != nil {
		t.Fatal(err)
	}
	got, err := stats(target)
	if err != nil || got.VolumeCondition.Abnormal || len(got.Usage) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	if u := got.Usage[0]; u.Unit != csi.VolumeUsage_BYTES || u.Total != 1<<20 || u.Used == 0 || u.Used+u.Available != u.Total {
		t.Errorf("bytes: %v", u)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, 0) })
	if u := got.Usage[1]; u.Unit != csi.VolumeUsage_INODES || u.Used != 2 || u.Used+u.Available != u.Total {
		t.Errorf("inodes: %v, want two used, the root and a file", u)
	}
	for _, path := range []string{filepath.Dir(target), "/etc", "nowhere"} {
		_, err := stats(path)
		m.wantErr(path, err, codes.NotFound, "no volume is mounted")
	}
}

// TestStopped: a file system that has given up is told as that, and can be taken off.
func TestStopped(t *testing.T) {
	m := newMachine(t)
	mkfs := "mkfs.xfs" // what hosts make; ext4 gives up in the same way
	if _, err := exec.LookPath(mkfs); err != nil {
		mkfs = "mkfs.ext4"
	}
	image := filepath.Join(t.TempDir(), "image")
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
	run("truncate", "-s", "300M", image)
	run(mkfs, "-q", image)
	source := filepath.Join(m.cfg.Folder, one)
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	run("mount", "-o", "loop", image, source)
	t.Cleanup(func() { _ = unix.Unmount(source, 0) })
	target := m.target("a")
	if err := m.publish(one, target, nil); err != nil {
		t.Fatal(err)
	}
	shutDown(t, source)
	got, err := m.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: one, VolumePath: target})
	if err != nil || !got.VolumeCondition.GetAbnormal() || !strings.Contains(got.VolumeCondition.Message, "stopped") {
		t.Errorf("%v, %v", got, err)
	}
	if err := m.unpublish(one, target); err != nil || mounts(t, target) != 0 {
		t.Errorf("%v, %d mounts left", err, mounts(t, target))
	}
}

// shutDown has a file system give up at once, as it does when its log can't be written.
func shutDown(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const goingDown = 0x8004587d // XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN, _IOR('X', 125, __uint32_t)
	if err := unix.IoctlSetPointerInt(int(f.Fd()), goingDown, 2); err != nil {
		t.Fatal(err)
	}
}

// TestHangs: one answer is late, the next says so, and others go on.
func TestHangs(t *testing.T) {
	n, err := New(Config{Folder: "/v", Pods: "/p", Machine: machineUID, Place: "x"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	hangs, begun := make(chan struct{}), make(chan struct{})
	answer := make(chan error)
	go func() {
		answer <- n.within(ctx, "mount", one, place{"/", "a"}, func() error { close(begun); <-hangs; return nil })
	}()
	<-begun
	cancel()
	if err := <-answer; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	again := func(target string) error {
		return n.within(t.Context(), "unmount", one, place{"/", target}, func() error { return nil })
	}
	if err := again("a"); status.Code(err) != codes.Aborted {
		t.Errorf("the same again: %v", err)
	}
	if err := again("b"); err != nil {
		t.Errorf("another: %v", err)
	}
	close(hangs)
	for deadline := time.Now().Add(10 * time.Second); again("a") != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still under way")
		}
	}
}

func TestIdentity(t *testing.T) {
	m := newMachine(t)
	info, err := registration.NewRegistrationClient(m.conn).GetInfo(t.Context(), &registration.InfoRequest{})
	if err != nil || info.Type != registration.CSIPlugin || info.Name != Driver || info.Endpoint == "" {
		t.Fatalf("%v, %v", info, err)
	}
	if filepath.Base(info.Endpoint) != "csi.sock" {
		t.Errorf("the kubelet is sent to %s", info.Endpoint)
	}
	if st, err := os.Stat(info.Endpoint); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	who, err := csi.NewIdentityClient(m.conn).GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || who.Name != Driver {
		t.Errorf("%v, %v", who, err)
	}
	node, err := m.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	if err != nil || node.NodeId != machineUID || node.AccessibleTopology.Segments[HostLabel] != "host-1" {
		t.Errorf("%v, %v", node, err)
	}
	can, err := m.NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	if err != nil || slices.ContainsFunc(can.Capabilities, func(c *csi.NodeServiceCapability) bool {
		return c.GetRpc().GetType() == csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME
	}) {
		t.Errorf("%v, %v", can, err)
	}
}

func TestConfig(t *testing.T) {
	env := map[string]string{"MULTIPAAS_VOLUMES": "/run/volumes", "MULTIPAAS_MACHINE_UID": machineUID, "MULTIPAAS_PLACE": "host-1"}
	cfg, there := Environment(func(k string) string { return env[k] }, "/var/lib/kubelet/pods")
	if want := (Config{"/run/volumes", machineUID, "host-1", "/var/lib/kubelet/pods", appears}); !there || cfg != want {
		t.Errorf("%+v, %t", cfg, there)
	}
	if _, there := Environment(func(string) string { return "" }, "/p"); there {
		t.Error("volumes without a folder")
	}
	for _, bad := range []Config{{"volumes", machineUID, "x", "/p", 0}, {"/v", "m1", "x", "/p", 0}, {"/v", machineUID, "", "/p", 0}, {"/v", machineUID, "x", "", 0}} {
		if _, err := New(bad); err == nil {
			t.Errorf("%+v: accepted", bad)
		}
	}
}

// TestDead: what FUSE has mounted is dead once its client is, also where it is bound. A volume is not given to
// a pod then, and where it was, it is taken off and bound anew once the host has mounted it anew.
func TestDead(t *testing.T) {
	m := newMachine(t)
	source, target := filepath.Join(m.cfg.Folder, one), m.target("a")
	for _, dir := range []string{source, target} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	client, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("dead", source, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0", client.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(client.Close(), unix.Mount(source, target, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	both := func(r *csi.NodePublishVolumeRequest) {
		r.VolumeCapability.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	}
	m.wantErr("a dead one", m.publish(one, target, both), codes.Unavailable, "mounts it anew")
	if err := errors.Join(unix.Unmount(source, unix.MNT_DETACH), os.Remove(source)); err != nil {
		t.Fatal(err)
	}
	m.attach(one, 0)
	if err := m.publish(one, target, both); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(target, "id")); err != nil || string(got) != one || mounts(t, target) != 1 {
		t.Errorf("the pod reads %q, %v; %d mounts", got, err, mounts(t, target))
	}
	if err := m.unpublish(one, target); err != nil {
		t.Error(err)
	}
}
