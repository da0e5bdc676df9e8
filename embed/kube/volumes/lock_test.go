package volumes

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// another is a second machine on the same host: it sees the same volume by a mount of its own.
func (m *machine) another(id string) *machine {
	m.Helper()
	o := newMachine(m.T)
	path := filepath.Join(o.cfg.Folder, id)
	if err := os.Mkdir(path, 0o755); err != nil {
		m.Fatal(err)
	}
	if err := unix.Mount(filepath.Join(m.cfg.Folder, id), path, "", unix.MS_BIND, ""); err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return o
}

// die is what the kernel does when the process ends.
func (m *machine) die() {
	m.node.locks.mu.Lock()
	defer m.node.locks.mu.Unlock()
	for _, root := range m.node.locks.held {
		_ = unix.Close(root)
	}
	m.node.locks.held = map[uint64]int{}
}

func as(mode csi.VolumeCapability_AccessMode_Mode) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode.Mode = mode }
}

// TestOneMachine: of the machines of one host the first has a volume, until its last pod is gone.
func TestOneMachine(t *testing.T) {
	a := newMachine(t)
	a.attach(one, 0)
	b := a.another(one)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	refused := func(m *machine, mode csi.VolumeCapability_AccessMode_Mode) {
		t.Helper()
		m.wantErr("on a second machine", m.publish(one, m.target("x"), as(mode)), codes.FailedPrecondition, "one machine at a time")
		if n := mounts(t, m.target("x")); n != 0 {
			t.Errorf("%d mounts where it was refused", n)
		}
	}
	const multi, single = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	must(a.publish(one, a.target("1"), as(multi)))
	must(a.publish(one, a.target("2"), as(multi))) // two pods of one machine may share it
	refused(b, multi)
	refused(b, single)
	must(a.unpublish(one, a.target("1")))
	refused(b, multi)
	must(a.unpublish(one, a.target("2")))
	must(b.publish(one, b.target("1"), as(single)))
	refused(a, multi)

	// The kubelet is killed and comes again: it has what its pods have.
	b.die()
	again, err := New(b.cfg)
	must(err)
	must(again.retake())
	refused(a, multi)
	b.node.locks.held, again.locks.held = again.locks.held, nil
	must(b.publish(one, b.target("1"), as(single))) // as the kubelet asks anew
	must(b.unpublish(one, b.target("1")))

	// While it was dead another got it: that is said to who asks for it.
	must(a.publish(one, a.target("1"), as(multi)))
	a.die()
	must(b.publish(one, b.target("1"), as(multi)))
	must(a.node.retake())
	a.wantErr("lost meanwhile", a.publish(one, a.target("1"), as(multi)), codes.FailedPrecondition, "one machine at a time")
	must(a.unpublish(one, a.target("1")))
	refused(a, multi)
	must(b.unpublish(one, b.target("1")))

	// What all may have is locked by none, also if the start could not know that.
	const all = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	for _, m := range []*machine{a, b} {
		must(m.publish(one, m.target("all"), as(all)))
	}
	must(a.node.retake())
	must(a.publish(one, a.target("all"), as(all)))
	must(b.publish(one, b.target("1"), as(multi)))
	for _, m := range []*machine{a, b} {
		must(m.unpublish(one, m.target("all")))
	}
	must(b.unpublish(one, b.target("1")))
	if len(a.node.locks.held)+len(b.node.locks.held) > 0 {
		t.Error("locks are left")
	}
}
