package machine

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/modules/wire"
)

// object is a YAML or JSON object to be written.
type object = map[string]any

// writeConfig writes the files that a machine reads, each if it changed, each
// at once. They are in one folder, so that a file that is replaced is seen
// inside: kubelet and client-go read certificates again by themselves.
func writeConfig(spec order, dir string, mtu int) error {
	registry := netip.AddrPortFrom(wire.LinkLocal, wire.RegistryPort).String()
	id := sha256.Sum256([]byte(spec.UID))
	files := map[string][]byte{
		"machine-id": fmt.Appendf(nil, "%x\n", id[:16]),
		// nft prints "tcp" only if this file says what 6 is. kube-proxy takes
		// "6" for another key than "tcp" and, when it starts again, deletes the
		// Services that it has just added.
		"protocols":   []byte("ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n"),
		"resolv.conf": []byte("nameserver " + wire.LinkLocal.String() + "\n"),
		"hostname":    []byte(spec.Name + "\n"),
		"hosts": fmt.Appendf(nil, "127.0.0.1 localhost\n%s %s\n",
			spec.Machine.Spec.Address, spec.Name),
		// Everything is asked of the one endpoint, which knows all names: with no
		// other server named there is none to wait for.
		"certs.d/_default/hosts.toml": fmt.Appendf(nil, "server = \"http://%s\"\ncapabilities = [\"pull\", \"resolve\"]\n", registry),
		"containerd.toml":             containerdConfig(),
		"pki/ca.crt":                  spec.ClusterCA,
		"pki/kubelet-client.crt":      spec.keys.KubeletClient,
		"pki/kubelet-client.key":      spec.keys.KubeletClientKey,
		"pki/kubelet-serving.crt":     spec.keys.KubeletServing,
		"pki/kubelet-serving.key":     spec.keys.KubeletServingKey,
		"pki/kube-proxy.crt":          spec.keys.KubeProxy,
		"pki/kube-proxy.key":          spec.keys.KubeProxyKey,
	}
	for name, o := range map[string]object{
		"kubelet.yaml":                           kubeletConfig(spec), // JSON is YAML
		"kube-proxy.yaml":                        kubeProxyConfig(spec),
		"kubelet.kubeconfig":                     kubeconfig(spec, "kubelet-client"),
		"kube-proxy.kubeconfig":                  kubeconfig(spec, "kube-proxy"),
		"init.json":                              initConfig(spec),
		insideCNIName + "/10-multipaas.conflist": cniConfig(spec, mtu),
	} {
		b, err := json.MarshalIndent(o, "", "  ")
		if err != nil {
			return err
		}
		files[name] = append(b, '\n')
	}
	// Root in the machine reads them as a group of the host: he could make the mount
	// writable, and then write what is his.
	gid := int(spec.Machine.Spec.FirstUID)
	// Keys before certificates would pair a new key with an old certificate for
	// a moment, and the other way round too: readers that meet it try again.
	for name, data := range files {
		file := filepath.Join(dir, name)
		if have, err := readBounded(file, 1<<20); err == nil && string(have) == string(data) {
			continue
		}
		if err := makeFolders(dir, filepath.Dir(name), gid); err != nil {
			return err
		}
		if err := atomicfile.WriteGroup(file, gid, data); err != nil {
			return fmt.Errorf("write machine's configuration: %w", err)
		}
	}
	return nil
}

// makeFolders makes dir and what is below it on the way to name, for a group to read.
func makeFolders(dir, name string, gid int) error {
	for {
		if err := cmp.Or(os.MkdirAll(filepath.Join(dir, name), 0o750), os.Chown(filepath.Join(dir, name), 0, gid)); err != nil {
			return err
		}
		if name == "." {
			return nil
		}
		name = filepath.Dir(name)
	}
}

func containerdConfig() []byte {
	return fmt.Appendf(nil, `version = 4
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.nri.v1.nri",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.native",
  "io.containerd.snapshotter.v1.zfs",
]

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  image_pull_progress_timeout = "2m0s"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "`+wire.PayloadRegistry+`/pause:1"

[plugins."io.containerd.cri.v1.images".registry]
  config_path = "%s/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
  # Machines have no CAP_SYS_RESOURCE, without which scores only go up.
  restrict_oom_score_adj = true
  enable_selinux = false
  disable_apparmor = true

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["%s"]
  conf_dir = "%s"

[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "%s/runc"
  SystemdCgroup = false
`, insideConfig, insideCNI, insideCNIConf, insideRuntime)
}

func initConfig(spec order) object {
	return object{
		"state_file": initState,
		"log_dir":    "/var/log",
		"services": []object{
			{
				"name":  "containerd",
				"argv":  []string{insideRuntime + "/containerd", "--config", insideConfig + "/containerd.toml"},
				"ready": "unix:" + containerdSock,
			},
			{
				"name": "kubelet",
				"argv": []string{insideKube, "kubelet",
					"--config=" + insideConfig + "/kubelet.yaml",
					"--kubeconfig=" + insideConfig + "/kubelet.kubeconfig",
					"--hostname-override=" + spec.Name,
					"--node-ip=" + spec.Machine.Spec.Address.String(),
				},
				"env":   kubeletEnvironment(spec),
				"after": []string{"containerd"},
				"ready": "http://127.0.0.1:10248/healthz",
			},
			{
				"name": "kube-proxy",
				"argv": []string{insideKube, "kube-proxy", "--config=" + insideConfig + "/kube-proxy.yaml"},
				"env": []string{
					// It sees to NetworkPolicies too.
					"MULTIPAAS_POLICY_DIR=" + policyDir,
					"MULTIPAAS_POLICY_KUBECONFIG=" + insideConfig + "/kube-proxy.kubeconfig",
				},
				// It is ready when it has seen Services, which needs the plane: don't wait.
				"after": []string{"containerd"},
			},
		},
	}
}

// kubeletEnvironment tells what the kubelet of embed/kube can't see.
func kubeletEnvironment(spec order) []string {
	env := []string{
		// What /proc shows is the host's.
		"MULTIPAAS_MACHINE_MILLICPU=" + strconv.FormatInt(spec.Machine.Spec.Size.MilliCPU, 10),
		"MULTIPAAS_MACHINE_MEMORY=" + strconv.FormatInt(spec.Machine.Spec.Size.MemoryBytes, 10),
		// Where volumes appear, and as whom the machine asks for them.
		"MULTIPAAS_VOLUMES=" + wire.VolumesInMachine,
		"MULTIPAAS_MACHINE_UID=" + spec.UID,
	}
	if spec.Place != "" {
		env = append(env, "MULTIPAAS_PLACE="+spec.Place)
	}
	return env
}

func kubeletConfig(spec order) object {
	size := spec.Machine.Spec.Size
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": object{
			"anonymous": object{"enabled": false},
			"webhook":   object{"enabled": true},
			"x509":      object{"clientCAFile": insideConfig + "/pki/ca.crt"},
		},
		"authorization":               object{"mode": "Webhook"},
		"tlsCertFile":                 insideConfig + "/pki/kubelet-serving.crt",
		"tlsPrivateKeyFile":           insideConfig + "/pki/kubelet-serving.key",
		"rotateCertificates":          false, // the host's agent does
		"serverTLSBootstrap":          false,
		"containerRuntimeEndpoint":    "unix://" + containerdSock,
		"cgroupDriver":                "cgroupfs",
		"failCgroupV1":                false,
		"clusterDNS":                  []string{spec.Plan.DNS.String()},
		"clusterDomain":               "cluster.local",
		"resolvConf":                  insideConfig + "/resolv.conf",
		"seccompDefault":              true,
		"podPidsLimit":                pidsFor(size.MemoryBytes) / 2,
		"oomScoreAdj":                 0, // it may not lower its own
		"maxOpenFiles":                maxOpenFiles(),
		"makeIPTablesUtilChains":      false,
		"imageGCHighThresholdPercent": 75,
		"imageGCLowThresholdPercent":  65,
		"evictionHard": object{
			"memory.available":   "64Mi",
			"nodefs.available":   "10%",
			"nodefs.inodesFree":  "5%",
			"imagefs.available":  "10%",
			"imagefs.inodesFree": "5%",
		},
		// containerd, kubelet and kube-proxy: 104 MiB idle, more with many pods.
		"systemReserved":       object{"memory": strconv.FormatInt(min(max(size.MemoryBytes/8, 112<<20), 512<<20), 10)},
		"containerLogMaxSize":  "10Mi",
		"containerLogMaxFiles": 3,
		// Between two looks a log has no bound. Of the default 10 s, a pod that writes
		// as fast as it can makes 1.7 GiB and more; this is the shortest there is.
		"containerLogMonitorInterval": "3s",
		"nodeStatusReportFrequency":   "1m",
		"nodeStatusUpdateFrequency":   "10s",
		"serializeImagePulls":         false,
		"featureGates":                object{"KubeletInUserNamespace": spec.Machine.Spec.FirstUID != 0},
		"maxParallelImagePulls":       4,
	}
}

func kubeProxyConfig(spec order) object {
	return object{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "nftables",
		"bindAddress":        spec.Machine.Spec.Address,
		"clientConnection":   object{"kubeconfig": insideConfig + "/kube-proxy.kubeconfig"},
		"clusterCIDR":        spec.Plan.Pods.String(),
		"hostnameOverride":   spec.Name,
		"healthzBindAddress": "0.0.0.0:10256",
		"metricsBindAddress": "127.0.0.1:10249",
		"oomScoreAdj":        0,
		// The host's to set.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

func kubeconfig(spec order, certificate string) object {
	return object{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []object{{"name": "workspace", "cluster": object{
			"server":                "https://" + netip.AddrPortFrom(spec.Plan.Plane, 6443).String(),
			"certificate-authority": insideConfig + "/pki/ca.crt",
		}}},
		"users": []object{{"name": "machine", "user": object{
			"client-certificate": insideConfig + "/pki/" + certificate + ".crt",
			"client-key":         insideConfig + "/pki/" + certificate + ".key",
		}}},
		"contexts":        []object{{"name": "machine", "context": object{"cluster": "workspace", "user": "machine"}}},
		"current-context": "machine",
	}
}

// cniConfig gives each pod a link of its own, on which nobody else is: what a
// pod sends is routed, or dropped if it is from another's address. A bridge was tried: pods
// on it answer ARP for each other, and speak past the rules by whatever isn't IPv4.
func cniConfig(spec order, mtu int) object {
	return object{
		"cniVersion": "1.0.0",
		"name":       "multipaas",
		"plugins": []object{
			{
				"type":   "ptp",
				"ipMasq": false, // pods' addresses are good in the whole workspace; the host masks them at the uplink
				"mtu":    mtu,
				"ipam": object{
					"type":   "host-local",
					"ranges": [][]object{{{"subnet": spec.Machine.Spec.PodCIDR}}},
					"routes": []object{{"dst": "0.0.0.0/0"}},
					// Gone when the machine stops, like the pods that had the addresses.
					"dataDir": "/run/cni/networks",
				},
			},
			{
				"type":         "portmap",
				"backend":      "nftables",
				"snat":         true,
				"capabilities": object{"portMappings": true},
			},
			// The last: a pod starts once the rules for it hold.
			{"type": "policy", "dir": policyDir},
		},
	}
}

// readBounded reads a file of this host's that ought to be small. It waits for nobody:
// whatever stands there instead is an error.
func readBounded(file string, max int64) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > max {
		return nil, fmt.Errorf("%s: %d bytes, want a file of at most %d", file, info.Size(), max)
	}
	return io.ReadAll(io.LimitReader(f, max))
}
