package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	cadvisorapi "github.com/google/cadvisor/info/v1"
	cadvisorapiv2 "github.com/google/cadvisor/info/v2"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
)

func TestMachineSize(t *testing.T) {
	for _, c := range []struct {
		cpu, memory string
		want        machine
		cores       int
		reserved    string
	}{
		{"", "", machine{}, 0, ""},
		{"2000", "2147483648", machine{2000, 2 << 30}, 2, ""},
		{"500", "", machine{milliCPU: 500}, 1, "500m"},
		{"2500", "", machine{milliCPU: 2500}, 3, "500m"},
		{"1001", "", machine{milliCPU: 1001}, 2, "999m"},
	} {
		env := map[string]string{"MULTIPAAS_MACHINE_MILLICPU": c.cpu, "MULTIPAAS_MACHINE_MEMORY": c.memory}
		got, err := machineSize(func(k string) string { return env[k] })
		if err != nil || got != c.want || got.cores() != c.cores {
			t.Errorf("%q, %q: %+v with %d cores, %v; want %+v with %d", c.cpu, c.memory, got, got.cores(), err, c.want, c.cores)
		}
		var config kubeletconfig.KubeletConfiguration
		if err := got.reserveRest(&config); err != nil || config.SystemReserved["cpu"] != c.reserved {
			t.Errorf("%q: reserved %q, %v; want %q", c.cpu, config.SystemReserved["cpu"], err, c.reserved)
		}
	}
	for _, bad := range []string{"0", "-1", "two", "1.5", "1000001"} {
		if got, err := machineSize(func(string) string { return bad }); err == nil {
			t.Errorf("%q: %+v, want an error", bad, got)
		}
	}
}

func TestReserveAddsToWhatIsReserved(t *testing.T) {
	config := kubeletconfig.KubeletConfiguration{SystemReserved: map[string]string{"cpu": "100m", "memory": "64Mi"}}
	if err := (machine{milliCPU: 1500}).reserveRest(&config); err != nil {
		t.Fatal(err)
	}
	if got := config.SystemReserved; got["cpu"] != "600m" || got["memory"] != "64Mi" {
		t.Errorf("reserved %v, want 600m and 64Mi", got)
	}
}

// host is a cAdvisor that sees a big host.
type host struct{ cadvisor.Interface }

func (host) MachineInfo() (*cadvisorapi.MachineInfo, error) {
	return &cadvisorapi.MachineInfo{NumCores: 64, MemoryCapacity: 512 << 30, MachineID: "id"}, nil
}

func (host) ContainerInfoV2(string, cadvisorapiv2.RequestOptions) (map[string]cadvisorapiv2.ContainerInfo, error) {
	spec := func(limit uint64) cadvisorapiv2.ContainerInfo {
		return cadvisorapiv2.ContainerInfo{Spec: cadvisorapiv2.ContainerSpec{Memory: cadvisorapiv2.MemorySpec{Limit: limit}}}
	}
	return map[string]cadvisorapiv2.ContainerInfo{"/": spec(512 << 30), "/kubepods": spec(1 << 62)}, nil
}

func TestNodeIsAsBigAsItsMachine(t *testing.T) {
	c := &sizedCAdvisor{Interface: host{}, size: machine{milliCPU: 1500, memoryBytes: 2 << 30}}
	info, err := c.MachineInfo()
	if err != nil || info.NumCores != 2 || info.MemoryCapacity != 2<<30 || info.MachineID != "id" {
		t.Errorf("machine %+v, %v; want 2 cores, 2 GiB, same id", info, err)
	}
	infos, err := c.ContainerInfoV2("/", cadvisorapiv2.RequestOptions{})
	if err != nil || infos["/"].Spec.Memory.Limit != 2<<30 || infos["/kubepods"].Spec.Memory.Limit != 1<<62 {
		t.Errorf("infos %+v, %v; want the root's limit to be the machine's, others as they were", infos, err)
	}
	plain := &sizedCAdvisor{Interface: host{}, size: machine{milliCPU: 1000}}
	if info, err := plain.MachineInfo(); err != nil || info.MemoryCapacity != 512<<30 {
		t.Errorf("memory %+v, %v; want the host's where none is given", info, err)
	}
}

func TestParse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubelet.yaml")
	err := os.WriteFile(file, []byte(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
maxPods: 50
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s, err := parse(context.Background(), []string{"--config=" + file, "--max-pods=60", "--hostname-override=m1"})
	if err != nil {
		t.Fatal(err)
	}
	if s.MaxPods != 60 || s.FailCgroupV1 || s.CgroupDriver != "cgroupfs" || s.HostnameOverride != "m1" {
		t.Errorf("maxPods %d, failCgroupV1 %t, cgroupDriver %s, hostname %s; want the flag over the file, the rest as in it",
			s.MaxPods, s.FailCgroupV1, s.CgroupDriver, s.HostnameOverride)
	}
	if len(s.EvictionHard) == 0 {
		t.Error("no default eviction thresholds")
	}
	if _, err := parse(context.Background(), []string{"--no-such-flag"}); err == nil {
		t.Error("unknown flag accepted")
	}
}
