package kubelet

import (
	"cmp"
	"fmt"
	"strconv"

	cadvisorapi "github.com/google/cadvisor/info/v1"
	cadvisorapiv2 "github.com/google/cadvisor/info/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
)

// machine is the size of the machine; zero is what the kernel says.
type machine struct {
	milliCPU    int64
	memoryBytes uint64
}

func machineSize(getenv func(string) string) (machine, error) {
	var m machine
	if v := getenv("MULTIPAAS_MACHINE_MILLICPU"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n <= 0 || n > 1_000_000 {
			return m, fmt.Errorf("MULTIPAAS_MACHINE_MILLICPU=%q: want thousandths of a CPU, 1 to 1000000", v)
		}
		m.milliCPU = n
	}
	if v := getenv("MULTIPAAS_MACHINE_MEMORY"); v != "" {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil || n == 0 {
			return m, fmt.Errorf("MULTIPAAS_MACHINE_MEMORY=%q: want bytes, more than 0", v)
		}
		m.memoryBytes = n
	}
	return m, nil
}

// cores is the number of CPUs a node can show: it knows only whole ones.
func (m machine) cores() int { return int((m.milliCPU + 999) / 1000) }

// reserveRest reserves what cores rounds up, so that pods get no more than
// the machine has.
func (m machine) reserveRest(config *kubeletconfig.KubeletConfiguration) error {
	rest := int64(m.cores())*1000 - m.milliCPU
	if rest == 0 {
		return nil
	}
	was := cmp.Or(config.SystemReserved["cpu"], "0")
	reserved, err := resource.ParseQuantity(was)
	if err != nil {
		return fmt.Errorf("systemReserved cpu %q: %w", was, err)
	}
	reserved.Add(*resource.NewMilliQuantity(rest, resource.DecimalSI))
	config.SystemReserved = merged(config.SystemReserved, map[string]string{"cpu": reserved.String()})
	return nil
}

// sizedCAdvisor answers with the machine's size where cAdvisor, asking /proc,
// would answer with the host's.
type sizedCAdvisor struct {
	cadvisor.Interface
	size machine
}

// MachineInfo is where a node's capacity comes from.
func (c *sizedCAdvisor) MachineInfo() (*cadvisorapi.MachineInfo, error) {
	info, err := c.Interface.MachineInfo()
	if err != nil {
		return nil, err
	}
	info = info.Clone()
	if c.size.milliCPU > 0 {
		info.NumCores = c.size.cores()
	}
	if c.size.memoryBytes > 0 {
		info.MemoryCapacity = c.size.memoryBytes
	}
	return info, nil
}

// ContainerInfoV2 is where the eviction manager learns how much memory the node
// has left: cAdvisor gives the root cgroup the host's memory as its limit.
func (c *sizedCAdvisor) ContainerInfoV2(name string, o cadvisorapiv2.RequestOptions) (map[string]cadvisorapiv2.ContainerInfo, error) {
	infos, err := c.Interface.ContainerInfoV2(name, o)
	if root, ok := infos["/"]; ok && c.over(root.Spec.Memory.Limit) {
		root.Spec.Memory.Limit = c.size.memoryBytes
		infos["/"] = root
	}
	return infos, err
}

// GetRequestedContainersInfo is the same for cAdvisor's older type.
func (c *sizedCAdvisor) GetRequestedContainersInfo(name string, o cadvisorapiv2.RequestOptions) (map[string]*cadvisorapi.ContainerInfo, error) {
	infos, err := c.Interface.GetRequestedContainersInfo(name, o)
	if root, ok := infos["/"]; ok && root != nil && c.over(root.Spec.Memory.Limit) {
		sized := *root
		sized.Spec.Memory.Limit = c.size.memoryBytes
		infos["/"] = &sized
	}
	return infos, err
}

func (c *sizedCAdvisor) over(limit uint64) bool {
	return c.size.memoryBytes > 0 && limit > c.size.memoryBytes
}
