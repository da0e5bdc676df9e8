package kubelet

import (
	"strings"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// blockMounts has what the kubelet asks the container runtime for say raw blocks of pods as mounts, not as devices.
//
// In a user namespace no device node can be made, so runc binds them; but it binds what is in the machine at the path that
// the pod wants the device at, /dev/xvda say, not what the kubelet names (libcontainer/rootfs_linux.go,
// bindMountDeviceNode, runc 1.5.2): another pod's, or nothing. A mount has both paths. Which devices may be opened is the same:
// in a user namespace runc sets no rules of its own, and the machine's are the host's.
//
// The kubelet makes its connection itself, and the last look at a container before that is a
// method of its container manager, which upstream makes of forty options.
func blockMounts() { encoding.RegisterCodecV2(codec{encoding.GetCodecV2(proto.Name)}) }

// codec is gRPC's own but for one message.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if req, ok := v.(*runtimeapi.CreateContainerRequest); ok {
		mountBlocks(req.GetConfig())
	}
	return c.CodecV2.Marshal(v)
}

// podBlocks is in the paths by which the kubelet names pods' raw blocks (pkg/volume/csi), and no other device.
const podBlocks = "/volumeDevices/kubernetes.io~csi/"

func mountBlocks(c *runtimeapi.ContainerConfig) {
	if c == nil {
		return
	}
	var rest []*runtimeapi.Device
	for _, d := range c.Devices {
		if !strings.Contains(d.HostPath, podBlocks) {
			rest = append(rest, d)
			continue
		}
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{ContainerPath: d.ContainerPath, HostPath: d.HostPath})
	}
	c.Devices = rest
}
