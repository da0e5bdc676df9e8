package plane

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	mutatingadmissionpolicy "k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/multipaas/multipaas/embed/kube/guard"
	"github.com/multipaas/multipaas/embed/kube/usage"
)

// runAPIServer does what upstream's command does, with the guard added in two
// places: among the admission plugins, and before everything that looks at who
// is asking; and with metrics.k8s.io among its API groups.
func runAPIServer(ctx context.Context, flags []string, g *guard.Guard, metrics usage.Config) error {
	s := options.NewServerRunOptions()
	plugins := s.Admission.GenericAdmission
	plugins.Plugins.Register(guard.PluginName, g.Factory)
	// Plugins that are not off by default are on. Among the validating ones the
	// order does not matter; upstream wants new ones before the policies.
	at := slices.Index(plugins.RecommendedPluginOrder, mutatingadmissionpolicy.PluginName)
	plugins.RecommendedPluginOrder = slices.Insert(slices.Clone(plugins.RecommendedPluginOrder), max(at, 0), guard.PluginName)

	if err := parseFlags("kube-apiserver", s.Flags(), flags); err != nil {
		return err
	}
	// "tcp" and 0.0.0.0 listen on [::] where the kernel has IPv6. The API server then
	// talks to itself by the loopback's IPv6 address, and as a workspace's network has none, by
	// the name localhost: on a machine that has it in no /etc/hosts it never gets ready.
	s.SecureServing.BindNetwork = "tcp4"
	if err := s.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // the server's talk to itself
	gates := s.GenericServerRunOptions.ComponentGlobalsRegistry.FeatureGateFor(basecompatibility.DefaultKubeComponent)
	if err := logsapi.ValidateAndApply(s.Logs, gates); err != nil {
		return err
	}
	completed, err := s.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return utilerrors.NewAggregate(errs)
	}
	gates.(featuregate.MutableFeatureGate).AddMetrics()
	s.GenericServerRunOptions.ComponentGlobalsRegistry.AddMetrics()

	config, err := app.NewConfig(completed)
	if err != nil {
		return err
	}
	// The aggregator is the outermost server: each request from outside goes
	// through its chain, and once.
	outer := config.Aggregator.GenericConfig
	build := outer.BuildHandlerChainFunc
	outer.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return g.Filter(build(api, c))
	}
	kube := config.KubeAPIs.ControlPlane.Generic
	kube.SkipOpenAPIInstallation = true // lazyOpenAPI does it
	kube.OpenAPIConfig.GetDefinitionName = usage.Named(kube.OpenAPIConfig.GetDefinitionName)
	kube.OpenAPIV3Config.GetDefinitionName = usage.Named(kube.OpenAPIV3Config.GetDefinitionName)
	complete, err := config.Complete()
	if err != nil {
		return err
	}
	server, err := app.CreateServerChain(complete)
	if err != nil {
		return err
	}
	own, ok := server.GenericAPIServer.NextDelegate().(*genericapiserver.GenericAPIServer)
	if !ok {
		return fmt.Errorf("behind the aggregator stands a %T", server.GenericAPIServer.NextDelegate())
	}
	used, err := usage.New(metrics, config.KubeAPIs.ControlPlane.VersionedInformers)
	if err != nil {
		return err
	}
	if err := used.Install(own); err != nil {
		return err
	}
	openAPI := &lazyOpenAPI{server: own, salt: strings.Join(flags, " "), built: map[string]http.Handler{},
		config: routes.OpenAPI{Config: kube.OpenAPIConfig, V3Config: kube.OpenAPIV3Config}}
	openAPI.install()
	prepared, err := server.PrepareRun()
	if err != nil {
		return err
	}
	// All groups are installed, with their types for server-side apply, and the
	// small documents of the other two servers are built.
	kube.OpenAPIV3Config.Definitions = nil

	var asking sync.WaitGroup
	defer asking.Wait()
	serving, stop := context.WithCancel(ctx)
	defer stop()
	asking.Go(func() { used.Run(serving) })
	return prepared.Run(ctx)
}

// parseFlags fills a component's options. Upstream's commands do it by cobra,
// which would bring their signal handlers and exits with it.
func parseFlags(name string, sets cliflag.NamedFlagSets, flags []string) error {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, set := range sets.FlagSets {
		fs.AddFlagSet(set)
	}
	return fs.Parse(flags)
}
