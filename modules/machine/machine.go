// Package machine runs machines on a node: each is one Kubernetes node of one
// workspace, with its own root file system, disk, network namespace and limits.
//
// It promises that a machine that was asked for runs, and keeps running while
// the agent that asked is away; that it gets what its size says and no more of
// memory, CPU, processes and disk; and that nothing of it is left once it is
// removed. DESIGN.md in this folder says how and why.
//
// Parties: the node's agent calls the driver, with a network namespace that
// another made and certificates that the server signed; the payload has the
// binaries and images; embed/init is process 1 inside. Only package appliance
// may import it.
package machine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// order is a machine that shall run.
type order struct {
	wire.Machine
	netns string // file of the machine's network namespace, below /run/netns
	keys  wire.MachineKeyPairs
}

func (s order) check() error {
	if err := checkUID(s.UID); err != nil {
		return err
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := resource.CheckName("machine", s.Name); err != nil {
		errs = append(errs, err)
	}
	if strings.Trim(s.KubernetesVersion, "0123456789.") != "" || s.KubernetesVersion == "" {
		fail("Kubernetes version %q", s.KubernetesVersion)
	}
	size := s.Machine.Spec.Size
	if size.MilliCPU < minMilliCPU {
		fail("%d thousandths of a CPU: a machine needs %d", size.MilliCPU, minMilliCPU)
	}
	if size.MemoryBytes < minMemory {
		fail("%d bytes of memory: a machine needs %d", size.MemoryBytes, minMemory)
	}
	if size.DiskBytes < minDisk {
		fail("%d bytes of disk: a machine needs %d", size.DiskBytes, minDisk)
	}
	if !s.Machine.Spec.Address.IsValid() || !s.Machine.Spec.PodCIDR.IsValid() {
		fail("no address, or no range for pods")
	}
	if !s.Plan.Plane.IsValid() || !s.Plan.Pods.IsValid() || !s.Plan.DNS.IsValid() {
		fail("no address plan")
	}
	if s.netns == "" {
		fail("no network namespace")
	}
	return errors.Join(errs...)
}

const (
	minMilliCPU = 100       // containerd, kubelet and kube-proxy need 20 when idle, 1000 for a second when starting
	minMemory   = 256 << 20 // containerd 52 MiB, kubelet 31, kube-proxy 21, all anonymous; a shim 5 for each pod
	minDisk     = 128 << 20 // enough for an ext4 with a journal and the pause image
)

// checkUID keeps what becomes a folder's name from leading elsewhere.
func checkUID(uid string) error {
	if uid == "" || len(uid) > 128 || strings.Trim(uid, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" || uid[0] == '-' {
		return fmt.Errorf("machine UID %q: want letters, digits and dashes", uid)
	}
	return nil
}
