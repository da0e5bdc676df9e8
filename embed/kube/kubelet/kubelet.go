// Package kubelet runs upstream's kubelet with two differences: the node is as
// big as its machine, not as the host the machine runs on; and it has the driver of the
// platform's volumes with it.
//
// A machine may be a container, where /proc shows the CPUs and the memory of
// the host. The size comes from the environment: MULTIPAAS_MACHINE_MILLICPU
// (thousandths of a CPU) and MULTIPAAS_MACHINE_MEMORY (bytes). Without them
// this is the plain kubelet. Flags and config file are upstream's. What the
// environment says of volumes is in package volumes.
//
// Parties: whoever starts a machine sets the environment and writes the config
// file; command kube calls Run. Only command kube imports it.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/pflag"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/version/verflag"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/apis/config/validation"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	"k8s.io/kubernetes/pkg/kubelet/kubeletconfig/configfiles"
	utilfs "k8s.io/kubernetes/pkg/util/filesystem"

	"github.com/multipaas/multipaas/embed/kube/volumes"
)

// Run runs the kubelet with upstream's flags until ctx is done.
//
// Upstream's command makes the kubelet's dependencies itself and takes none, so
// the way from flags to app.Run is walked here. What is left out: --config-dir.
func Run(ctx context.Context, args []string) error {
	size, err := machineSize(os.Getenv)
	if err != nil {
		return err
	}
	server, err := parse(ctx, args)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := logsapi.ValidateAndApply(&server.Logging, utilfeature.DefaultFeatureGate); err != nil {
		return fmt.Errorf("set up logging: %w", err)
	}
	if err := size.reserveRest(&server.KubeletConfiguration); err != nil {
		return err
	}
	if err := validation.ValidateKubeletConfiguration(&server.KubeletConfiguration, utilfeature.DefaultFeatureGate); err != nil {
		return fmt.Errorf("kubelet configuration %s: %w", server.KubeletConfigFile, err)
	}
	deps, err := app.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return err
	}
	if size != (machine{}) {
		if deps.CAdvisorInterface, err = newCAdvisor(ctx, server, size); err != nil {
			return err
		}
	}
	if cfg, there := volumes.Environment(os.Getenv, filepath.Join(server.RootDirectory, "pods")); there {
		blockMounts() // before there are connections
		go serveVolumes(ctx, cfg, server.RootDirectory)
	}
	utilfeature.DefaultMutableFeatureGate.AddMetrics()
	return app.Run(ctx, server, deps, utilfeature.DefaultFeatureGate)
}

// serveVolumes serves until ctx is done. Without volumes, pods that have none go on.
func serveVolumes(ctx context.Context, cfg volumes.Config, root string) {
	node, err := volumes.New(cfg)
	if err != nil {
		klog.ErrorS(err, "Pods get no volumes")
		return
	}
	for ctx.Err() == nil {
		err := node.Serve(ctx, filepath.Join(root, "plugins", volumes.Driver, "csi.sock"),
			filepath.Join(root, "plugins_registry", volumes.Driver+"-reg.sock"))
		if err != nil {
			klog.ErrorS(err, "Pods get no volumes; trying again")
		}
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
		}
	}
}

// parse turns flags and config file into the kubelet's options. A flag wins
// over the file.
func parse(ctx context.Context, args []string) (*options.KubeletServer, error) {
	flags := options.NewKubeletFlags()
	config, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, err
	}
	if err := newFlagSet(flags, config).Parse(args); err != nil {
		return nil, err
	}
	verflag.PrintAndExitIfRequested()
	if flags.KubeletDropinConfigDirectory != "" {
		return nil, errors.New("--config-dir is not supported: put everything into the file that --config names")
	}
	if flags.KubeletConfigFile != "" {
		if config, err = readConfig(ctx, flags.KubeletConfigFile); err != nil {
			return nil, err
		}
		// Once more, now over what the file said. The other flags go to a copy
		// nobody reads, since some of them add up.
		again := newFlagSet(options.NewKubeletFlags(), config)
		again.SetOutput(io.Discard)
		fileGates := config.FeatureGates
		if err := again.Parse(args); err != nil {
			return nil, err
		}
		config.FeatureGates = merged(fileGates, config.FeatureGates)
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(config.FeatureGates); err != nil {
		return nil, err
	}
	if err := options.ValidateKubeletFlags(flags); err != nil {
		return nil, err
	}
	return &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *config}, nil
}

func newFlagSet(flags *options.KubeletFlags, config *kubeletconfig.KubeletConfiguration) *pflag.FlagSet {
	fs := pflag.NewFlagSet("kubelet", pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	flags.AddFlags(fs)
	options.AddKubeletConfigFlags(fs, config)
	options.AddGlobalFlags(fs)
	return fs
}

func readConfig(ctx context.Context, name string) (*kubeletconfig.KubeletConfiguration, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	loader, err := configfiles.NewFsLoader(&utilfs.DefaultFs{}, path)
	if err != nil {
		return nil, err
	}
	config, err := loader.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("kubelet configuration %s: %w", name, err)
	}
	if config.EvictionHard == nil {
		config.EvictionHard = eviction.DefaultEvictionHard
	} else if config.MergeDefaultEvictionSettings {
		config.EvictionHard = merged(eviction.DefaultEvictionHard, config.EvictionHard)
	}
	return config, nil
}

// merged has what over says, and of under what over doesn't.
func merged[M ~map[string]V, V any](under, over M) M {
	both := M{}
	maps.Copy(both, under)
	maps.Copy(both, over)
	return both
}

// newCAdvisor makes what app.Run would make itself, and wraps it.
func newCAdvisor(ctx context.Context, s *options.KubeletServer, size machine) (cadvisor.Interface, error) {
	log := klog.FromContext(ctx)
	own, _ := cm.GetKubeletContainer(log, s.KubeletCgroups)
	roots := []string{cm.NodeAllocatableRoot(s.CgroupRoot, s.CgroupsPerQOS, s.CgroupDriver), own, s.RuntimeCgroups, s.SystemCgroups}
	roots = slices.DeleteFunc(roots, func(cgroup string) bool { return cgroup == "" })
	inner, err := cadvisor.New(log, cadvisor.NewImageFsInfoProvider(s.ContainerRuntimeEndpoint), s.RootDirectory, roots,
		cadvisor.UsingLegacyCadvisorStats(s.ContainerRuntimeEndpoint), s.LocalStorageCapacityIsolation)
	if err != nil {
		return nil, fmt.Errorf("start cAdvisor: %w", err)
	}
	return &sizedCAdvisor{Interface: inner, size: size}, nil
}
