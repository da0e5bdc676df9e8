package volumes

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// locks keeps a volume that one machine at a time may have from the others on its host,
// which see it too: the root of its file system is locked (flock(2)) as long as a pod here has it.
// The inode is one for all of them, whatever they have mounted it by, and with this process the
// kernel drops the lock. A file of the platform's in there would be the tenant's to delete, and
// somebody else who decides would have to be asked before each pod starts.
//
// What it costs: a program in a pod that locks the volume's root itself finds it taken.
type locks struct {
	mu   sync.Mutex
	held map[uint64]int // open roots, by the device of their file system
}

// retakeTime is how long the start waits for disks that hang.
const retakeTime = 2 * time.Second

// oneMachine says whether a volume that is had in such a way is had by one machine at a time.
func oneMachine(mode csi.VolumeCapability_AccessMode_Mode) bool {
	switch mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		return true
	}
	return false
}

func (p *handle) device() uint64 { return unix.Mkdev(p.stat.Dev_major, p.stat.Dev_minor) }

// with calls do while this machine has the volume alone, which it has from then on, until release
// finds that no pod has it. If it is for all machines, do is called without, and a lock
// that was taken at the start, when nobody said so, is dropped.
func (l *locks) with(volume *handle, id string, alone bool, do func() error) error {
	root := -1
	if alone {
		var err error // not below the mutex: the disk may hang
		if root, err = unix.Openat(volume.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open its root: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	dev := volume.device()
	have, held := l.held[dev]
	switch {
	case !alone:
		if held {
			_ = unix.Close(have)
			delete(l.held, dev)
		}
		return do()
	case held:
		_ = unix.Close(root)
		return do()
	}
	err := unix.Flock(root, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = do()
	}
	if err != nil {
		_ = unix.Close(root)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return status.Errorf(codes.FailedPrecondition, "volume %s is for one machine at a time, and a pod on another machine "+
				"has it: delete that pod, or have both run on one machine, by podAffinity say", id)
		}
		return err
	}
	l.held[dev] = root
	return nil
}

// release drops the locks of volumes that no pod here has any more.
func (n *Node) release() error {
	n.locks.mu.Lock()
	defer n.locks.mu.Unlock()
	if len(n.locks.held) == 0 {
		return nil
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !n.ofPods(m), false })
	if err != nil {
		return err
	}
	had := map[uint64]bool{}
	for _, m := range mounts {
		had[unix.Mkdev(uint32(m.Major), uint32(m.Minor))] = true
	}
	for dev, root := range n.locks.held {
		if !had[dev] {
			_ = unix.Close(root)
			delete(n.locks.held, dev)
		}
	}
	return nil
}

// retake takes the locks of what pods have from before this process. How each is had
// nobody says yet: the kubelet does when it asks for it again, as it does for all pods that go on.
// What is no disk of this host, a mount by FUSE, is for all machines.
func (n *Node) retake() error {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	ids := map[uint64]string{}
	for _, m := range mounts {
		rel, err := filepath.Rel(n.cfg.Folder, m.Mountpoint)
		if err == nil && uid.MatchString(rel) && !strings.HasPrefix(m.FSType, "fuse") {
			ids[unix.Mkdev(uint32(m.Major), uint32(m.Minor))] = rel
		}
	}
	var all sync.WaitGroup
	for _, m := range mounts {
		dev := unix.Mkdev(uint32(m.Major), uint32(m.Minor))
		id := ids[dev]
		if !n.ofPods(m) || id == "" {
			continue
		}
		delete(ids, dev)
		all.Go(func() {
			volume, err := n.shown(id)
			if err == nil {
				err = n.locks.with(volume, id, true, func() error { return nil })
				volume.Close()
			}
			if err != nil {
				klog.ErrorS(err, "A volume that pods have is not this machine's alone", "volume", id)
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(retakeTime):
	}
	return nil
}
