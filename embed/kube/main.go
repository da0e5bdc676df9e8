// Command kube is Kubernetes in one static file: the control plane of one
// workspace as one process, and the parts of a node.
//
//	kube plane --config FILE   kine (optional), API server, controller manager, scheduler
//	kube kubelet FLAGS         upstream's kubelet, with the machine's size as the node's;
//	                           with MULTIPAAS_VOLUMES, the driver of volumes in it
//	kube kube-proxy FLAGS      upstream's kube-proxy; with MULTIPAAS_POLICY_DIR and
//	                           MULTIPAAS_POLICY_KUBECONFIG, NetworkPolicies beside it
//	kube kubectl ARGS          upstream's kubectl
//	kube version
//
// A link named kubelet, kube-proxy or kubectl does the same as the command.
// It is built by build.sh, which also says which Kubernetes this is. Package
// embed/plane of the main module renders what `kube plane` reads; nothing
// imports this module.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
	_ "time/tzdata" // CronJobs name time zones, and a host may have no files of them

	_ "k8s.io/client-go/plugin/pkg/client/auth"           // how kubectl logs in
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics on /metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info on /metrics

	"k8s.io/client-go/transport"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"
	"k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	proxyapp "k8s.io/kubernetes/cmd/kube-proxy/app"

	"github.com/multipaas/multipaas/embed/kube/kubelet"
	"github.com/multipaas/multipaas/embed/kube/plane"
	"github.com/multipaas/multipaas/embed/kube/policy"
	"github.com/multipaas/multipaas/embed/kube/seal"
	"github.com/multipaas/multipaas/embed/kube/volumes"
)

const usage = `Usage:
  kube plane --config FILE   run the control plane of one workspace
  kube kubelet FLAGS         run a node's kubelet
  kube kube-proxy FLAGS      run a node's service proxy
  kube kubectl ARGS          talk to a cluster
  kube version               say which Kubernetes this is
`

// lookAtCertificates is how often a machine's parts look whether the host's agent
// has renewed their certificates. Those live for a day: a machine whose server was
// away for longer has one that is no good until then, and the default is 5 min.
const lookAtCertificates = 15 * time.Second

func main() { os.Exit(run(os.Args)) }

func run(args []string) int {
	name, rest := filepath.Base(args[0]), args[1:]
	switch name {
	case "kubelet", "kube-proxy", "kubectl":
	default:
		if len(rest) == 0 {
			fmt.Fprint(os.Stderr, usage)
			return 2
		}
		name, rest = rest[0], rest[1:]
	}
	// Upstream's commands read os.Args themselves, in more than one place.
	os.Args = append([]string{name}, rest...)

	switch name {
	case "plane":
		code, err := runPlane(rest)
		if err != nil {
			fmt.Fprintf(os.Stderr, "kube plane: %v\n", err)
		}
		return code
	case "kubelet":
		transport.CertCallbackRefreshDuration = lookAtCertificates
		return runKubelet(rest)
	case "kube-proxy":
		transport.CertCallbackRefreshDuration = lookAtCertificates
		return runKubeProxy()
	case "kubectl":
		return runKubectl()
	case "volumes":
		return runVolumes(rest)
	case "version":
		fmt.Println(version.Get().GitVersion)
		return 0
	case "help", "-h", "--help":
		fmt.Print(usage)
		return 0
	}
	fmt.Fprintf(os.Stderr, "kube: %q: no such command\n%s", name, usage)
	return 2
}

func runPlane(args []string) (exit int, err error) {
	if len(args) != 2 || args[0] != "--config" {
		return 2, errors.New("want --config FILE")
	}
	if err := seal.Process(); err != nil {
		return 1, err
	}
	f, err := os.Open(args[1])
	if err != nil {
		return 2, err
	}
	defer f.Close()
	cfg, err := plane.ReadConfig(io.LimitReader(f, 1<<20))
	if err != nil {
		return 2, fmt.Errorf("%s: %w", args[1], err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err = plane.Run(ctx, cfg)
	switch {
	case err == nil:
		return 0, nil
	case errors.Is(err, plane.ErrDamaged):
		return 65, err // EX_DATAERR of sysexits.h; embed/plane knows it
	}
	return 1, err
}

func runKubelet(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	logs.InitLogs()
	defer logs.FlushLogs()
	if err := kubelet.Run(ctx, args); err != nil {
		fmt.Fprintf(os.Stderr, "kubelet: %v\n", err)
		return 1
	}
	return 0
}

// runVolumes serves the node's side of volumes without a kubelet, for CSI's sanity suite. It is
// no command for people.
func runVolumes(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var cfg volumes.Config
	flags := flag.NewFlagSet("volumes", flag.ContinueOnError)
	socket := flags.String("socket", "", "where to serve")
	flags.StringVar(&cfg.Folder, "folder", "", "in which volumes are mounted")
	flags.StringVar(&cfg.Machine, "machine", "", "UID of the machine")
	flags.StringVar(&cfg.Place, "place", "", "name of its host")
	flags.StringVar(&cfg.Pods, "pods", "/var/lib/kubelet/pods", "folder of pods")
	if flags.Parse(args) != nil {
		return 2
	}
	node, err := volumes.New(cfg)
	if err == nil {
		err = node.Serve(ctx, *socket)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "kube volumes: %v\n", err)
		return 1
	}
	return 0
}

func runKubeProxy() int {
	cfg := policy.Config{Dir: os.Getenv("MULTIPAAS_POLICY_DIR"), Kubeconfig: os.Getenv("MULTIPAAS_POLICY_KUBECONFIG")}
	if cfg.Dir != "" {
		go func() {
			// Until it runs no pod gets a network; Services of those that have one go on.
			for {
				err := policy.Run(context.Background(), cfg)
				klog.ErrorS(err, "NetworkPolicies can't be enforced; trying again")
				time.Sleep(time.Second)
			}
		}()
	}
	return cli.Run(proxyapp.NewProxyCommand())
}

func runKubectl() int {
	// Verbosity counts while the command is being made already.
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err) // prints and exits with kubectl's own codes
	}
	return 0
}
