package volumes

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A volume of raw blocks appears as a folder in which nothing is but the node of its device (appliance/diskimage). A pod
// gets that node, bound as a file.

// deviceName is what the node is called there.
const deviceName = "device"

// blocksBelow is where the kubelet has raw blocks be bound for pods, beside its folder of pods: VOLUME/POD in it.
const blocksBelow = "plugins/kubernetes.io/csi/volumeDevices/publish"

// blockIn opens the node of a volume's device.
func blockIn(volume *handle, id string) (*handle, error) {
	node, err := volume.open(deviceName, unix.O_NOFOLLOW)
	if err == nil && node.stat.Mode&unix.S_IFMT == unix.S_IFBLK && volume.onlyBlocks() == nil {
		return node, nil
	}
	if err == nil {
		node.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, status.Errorf(codes.FailedPrecondition, "volume %s is a file system, not raw blocks: "+
		"leave volumeMode out of its PersistentVolume and claim", id)
}

// onlyBlocks says why a volume has no raw blocks: what a tenant may have put into a file system of his counts for nothing.
func (p *handle) onlyBlocks() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(p.fd, &st); err != nil {
		return err
	}
	if st.Type != unix.TMPFS_MAGIC {
		return errors.New("it is a file system")
	}
	return nil
}

// statsOf says how large the blocks are that are bound at a place.
func (p *handle) blockStats() (*csi.NodeGetVolumeStatsResponse, error) {
	resp := &csi.NodeGetVolumeStatsResponse{VolumeCondition: &csi.VolumeCondition{Message: "its blocks can be read"}}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", p.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		resp.VolumeCondition = &csi.VolumeCondition{Abnormal: true, Message: fmt.Sprintf(
			"its device can't be opened any more (%v): its host shows it anew; delete the pod", err)}
		return resp, nil
	}
	defer unix.Close(fd)
	size, err := unix.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		return nil, os.NewSyscallError("seek", err)
	}
	resp.Usage = []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: size}}
	return resp, nil
}

// kernelBlocks is where upstream's kubelet looks for the loop device that it takes of each raw block which a pod has, so
// that the device's number is given to nobody else meanwhile (k8s.io/kubernetes/pkg/volume/util/volumepathhandler). No
// machine of a tenant has loop devices to take, and none is needed: the host holds the volume's own, and closes its node
// before it gives that back. So the kubelet finds here that it has one.
//
// Other ways were tried. Go builds nothing with another file in the place of one of a module ("must not be replaced"), and the
// kubelet makes what looks there itself. It only reads loop*/loop/backing_file, and when it lets go it asks a losetup
// for a device that isn't there, which it takes for done.
const kernelBlocks = "/sys/block"

// taken has the kubelet find that it has a loop device of what is bound for a pod at target; and no more, if not.
func (n *Node) taken(target string, is bool) error {
	rel, err := filepath.Rel(n.cfg.blocks(), target)
	if err != nil || !filepath.IsLocal(rel) || filepath.Dir(filepath.Dir(rel)) != "." {
		return nil // not the kubelet's
	}
	// It takes one of where it has bound the node itself.
	global := filepath.Join(filepath.Dir(n.cfg.blocks()), filepath.Dir(rel), "dev", filepath.Base(rel))
	name := fmt.Sprintf("loop-%.12x", sha256.Sum256([]byte(global)))
	const own = kernelBlocks
	var st unix.Statfs_t
	if err := unix.Statfs(own, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: own, Err: err}
	}
	if !is {
		if st.Type != unix.TMPFS_MAGIC {
			return nil
		}
		return os.RemoveAll(filepath.Join(own, name))
	}
	if st.Type != unix.TMPFS_MAGIC {
		// What disks the host has is nothing of the machine's anyway.
		if err := unix.Mount("tmpfs", own, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4m,mode=755"); err != nil {
			return fmt.Errorf("cover %s: %w", own, err)
		}
	}
	dir := filepath.Join(own, name, "loop")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "backing_file"), []byte(global+"\n"), 0o644)
}
