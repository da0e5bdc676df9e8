package volumes

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"k8s.io/kubernetes/pkg/volume/util/volumepathhandler"
)

func asBlock(r *csi.NodePublishVolumeRequest) {
	r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
}

// TestBlocks: a pod gets the node of a volume's device, and upstream's kubelet goes on with it as it does: it binds
// it once more, takes a loop device of it, and lets go of all again.
func TestBlocks(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { _ = unix.Unmount(kernelBlocks, unix.MNT_DETACH) }) // it is this process's own
	m.attach(two, 0)
	path := filepath.Join(m.cfg.Folder, one)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	m.mount("tmpfs", path, 0)
	device := unix.Mkdev(511, 1) // no driver has that
	if err := unix.Mknod(filepath.Join(path, deviceName), unix.S_IFBLK|0o600, int(device)); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(m.cfg.blocks(), "pvc-1", "aaaaaaaa-pod")
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		t.Fatal(err)
	}
	m.wantErr("a file system", m.publish(two, target, asBlock), codes.FailedPrecondition, "not raw blocks")
	m.wantErr("as a file system", m.publish(one, m.target("p"), nil), codes.FailedPrecondition, "volumeMode Block")
	m.wantErr("read-only", m.publish(one, target, func(r *csi.NodePublishVolumeRequest) { asBlock(r); r.Readonly = true }),
		codes.InvalidArgument, "read-only")
	m.wantErr("elsewhere", m.publish(one, filepath.Join(m.cfg.blocks(), "..", "x"), asBlock), codes.InvalidArgument, "not below")
	for range 2 {
		if err := m.publish(one, target, asBlock); err != nil {
			t.Fatal(err)
		}
	}
	if n := mounts(t, target); n != 1 {
		t.Errorf("it is bound %d times", n)
	}
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil || st.Rdev != device {
		t.Errorf("at the pod's is device %x: %v", st.Rdev, err)
	}

	other := m.another(one)
	elsewhere := filepath.Join(other.cfg.blocks(), "pvc-1", "pod")
	if err := os.MkdirAll(filepath.Dir(elsewhere), 0o750); err != nil {
		t.Fatal(err)
	}
	m.wantErr("another machine", other.publish(one, elsewhere, asBlock),
		codes.FailedPrecondition, "another machine")

	upstream := volumepathhandler.NewBlockVolumePathHandler()
	global := filepath.Join(filepath.Dir(m.cfg.blocks()), "pvc-1", "dev")
	if err := upstream.MapDevice(target, global, "aaaaaaaa-pod", true); err != nil {
		t.Fatal(err)
	}
	bound := filepath.Join(global, "aaaaaaaa-pod")
	defer func() { _ = unix.Unmount(bound, unix.MNT_DETACH) }()
	if _, err := upstream.AttachFileDevice(bound); err != nil {
		t.Errorf("the kubelet finds no loop device of it: %v", err)
	}
	if err := upstream.DetachFileDevice(bound); err != nil {
		t.Error(err)
	}
	if err := upstream.UnmapDevice(global, "aaaaaaaa-pod", true); err != nil {
		t.Error(err)
	}
	stats, err := m.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: one, VolumePath: target})
	if err != nil || !stats.VolumeCondition.Abnormal {
		t.Errorf("a device that isn't there: %v %v", stats, err)
	}
	for range 2 {
		if err := m.unpublish(one, target); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(target); err == nil {
		t.Error("the pod's file is there still")
	}
	if left, err := os.ReadDir(kernelBlocks); err != nil || len(left) > 0 {
		t.Errorf("left for the kubelet: %v %v", left, err)
	}
	if err := other.publish(one, elsewhere, asBlock); err != nil {
		t.Errorf("once it is free: %v", err)
	}
	if err := other.unpublish(one, elsewhere); err != nil {
		t.Error(err)
	}
}
