package kubelet

import (
	"testing"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestBlockMounts: what goes over the wire has pods' raw blocks as mounts, and other devices as they were.
func TestBlockMounts(t *testing.T) {
	blockMounts()
	own := &runtimeapi.Device{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rw"}
	block := &runtimeapi.Device{HostPath: "/var/lib/kubelet/pods/u/volumeDevices/kubernetes.io~csi/pvc-1", ContainerPath: "/dev/xvda"}
	codec := encoding.GetCodecV2(proto.Name)
	data, err := codec.Marshal(&runtimeapi.CreateContainerRequest{Config: &runtimeapi.ContainerConfig{
		Devices: []*runtimeapi.Device{block, own}}})
	if err != nil {
		t.Fatal(err)
	}
	var got runtimeapi.CreateContainerRequest
	if err := codec.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	devices, mounts := got.Config.Devices, got.Config.Mounts
	if len(devices) != 1 || devices[0].HostPath != own.HostPath || len(mounts) != 1 ||
		mounts[0].HostPath != block.HostPath || mounts[0].ContainerPath != block.ContainerPath {
		t.Errorf("sent: devices %v, mounts %v", devices, mounts)
	}
}
