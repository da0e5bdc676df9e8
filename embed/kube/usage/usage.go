// Package usage serves metrics.k8s.io: what nodes and pods use of CPU and memory,
// for `kubectl top` and for autoscalers. Collecting, keeping and answering is
// metrics-server's own code; it runs in the API server's process and is one of its
// API groups, so it takes no pod, no port and no list of pods of its own.
//
// The kubelets that it asks may lie: their machines' root is the tenant. So it
// promises that none of them has more than a bounded time and room, that no answer
// ends the process, that nobody is asked but a kubelet at its machine's address,
// with a certificate of the workspace, and that a node tells only of the pods that
// are bound to it.
//
// Parties: package plane makes a Usage for the API server that it starts, and runs
// it beside. Only package plane imports it.
package usage

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/metrics-server/pkg/api"
	"sigs.k8s.io/metrics-server/pkg/scraper"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

const (
	// every is how often kubelets are asked. cAdvisor measures each 10 s, and an
	// autoscaler looks each 15 s; a cluster nobody looks at costs little so.
	every = 30 * time.Second
	// soon is when they are asked again while a node has told once only: what it
	// uses is the difference of two times. So often in a row and no more.
	soon       = 5 * time.Second
	soonInARow = 4
	// patience is what one kubelet has for its answer.
	patience = 10 * time.Second
	// maxNodes is how many nodes are asked. Workspaces have less machines; objects
	// that call themselves nodes can be made by the tenant.
	maxNodes = 500
)

// Config says how kubelets are reached.
type Config struct {
	// Files: the authority of kubelets' certificates, and what they are shown. The
	// last two are read again when they are needed.
	CAFile   string `json:"caFile"`
	CertFile string `json:"certFile"`
	KeyFile  string `json:"keyFile"`
	// Machines is where they are.
	Machines netip.Prefix `json:"machines"`
}

// Usage knows what nodes and pods used last.
type Usage struct {
	storage storage.Storage
	scraper scraper.Scraper
	nodes   corelisters.NodeLister // those that are asked
	all     corelisters.NodeLister
	pods    corelisters.PodLister
	synced  []cache.InformerSynced
}

// New makes a Usage of what the API server itself watches; the factory is not
// started yet.
func New(cfg Config, watched informers.SharedInformerFactory) (*Usage, error) {
	if cfg.CAFile == "" || cfg.CertFile == "" || cfg.KeyFile == "" || !cfg.Machines.IsValid() {
		return nil, errors.New("usage: caFile, certFile, keyFile and machines must be set")
	}
	nodes, pods := watched.Core().V1().Nodes(), watched.Core().V1().Pods()
	u := &Usage{
		storage: storage.NewStorage(every),
		nodes:   machines{nodes.Lister(), cfg.Machines},
		all:     nodes.Lister(),
		pods:    pods.Lister(),
		synced:  []cache.InformerSynced{nodes.Informer().HasSynced, pods.Informer().HasSynced},
	}
	kubelets, err := newKubelets(cfg, kubeletPort, u.pods)
	if err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	u.scraper = scraper.NewScraper(u.nodes, kubelets, patience, nil)
	return u, nil
}

// Install makes metrics.k8s.io one of server's groups.
func (u *Usage) Install(server *genericapiserver.GenericAPIServer) error {
	return api.Install(u.storage, metadata{u.pods, metav1.NamespaceAll}, u.all, server, nil)
}

// Named adds to a namer of OpenAPI's definitions, which has the names of this
// group already, which kinds they are.
func Named(namer func(string) (string, spec.Extensions)) func(string) (string, spec.Extensions) {
	kinds := openapinamer.NewDefinitionNamer(api.Scheme)
	return func(name string) (string, spec.Extensions) {
		if strings.HasPrefix(name, "io.k8s.metrics.pkg.apis.metrics.") {
			return kinds.GetDefinitionName(name)
		}
		return namer(name)
	}
}

// Run asks kubelets from time to time, until ctx is done.
func (u *Usage) Run(ctx context.Context) {
	if !cache.WaitForCacheSync(ctx.Done(), u.synced...) {
		return
	}
	for row := 0; ; {
		wait := every
		switch nodes, _ := u.nodes.List(labels.Everything()); {
		case len(nodes) == 0:
			wait = soon // to look costs nothing, and the first machine may come any time
		case u.look(ctx):
			row = 0
		case row < soonInARow:
			row++
			wait = soon
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// look asks all kubelets once and says whether there is an answer for each node
// that told something.
func (u *Usage) look(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, every)
	defer cancel()
	batch := u.scraper.Scrape(ctx)
	u.storage.Store(batch)
	var nodes []*corev1.Node
	for name := range batch.Nodes {
		nodes = append(nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	known, err := u.storage.GetNodeMetrics(nodes...)
	return err == nil && len(known) == len(nodes)
}

// machines lists the nodes that are machines, by their address.
type machines struct {
	corelisters.NodeLister
	at netip.Prefix
}

func (m machines) List(selector labels.Selector) ([]*corev1.Node, error) {
	nodes, err := m.NodeLister.List(selector)
	nodes = slices.DeleteFunc(nodes, func(n *corev1.Node) bool { _, err := address(n, m.at); return err != nil })
	return nodes[:min(len(nodes), maxNodes)], err
}

// address is where a node says that its kubelet is, if that is among machines.
func address(node *corev1.Node, machines netip.Prefix) (string, error) {
	for _, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil && machines.Contains(ip) {
			return ip.String(), nil
		}
		return "", fmt.Errorf("node %s: its address %q is not one of a machine's, in %s", node.Name, a.Address, machines)
	}
	return "", fmt.Errorf("node %s has no internal address", node.Name)
}

// metadata lists pods in the way that metrics-server reads them: it would watch
// the metadata of all pods, but the API server has them already.
type metadata struct {
	pods      corelisters.PodLister
	namespace string
}

var _ cache.GenericLister = metadata{}

func (m metadata) List(selector labels.Selector) ([]runtime.Object, error) {
	pods, err := m.pods.Pods(m.namespace).List(selector)
	objects := make([]runtime.Object, len(pods))
	for i, pod := range pods {
		objects[i] = &metav1.PartialObjectMetadata{ObjectMeta: pod.ObjectMeta}
	}
	return objects, err
}

func (m metadata) Get(name string) (runtime.Object, error) {
	if m.namespace == metav1.NamespaceAll {
		return nil, apierrors.NewNotFound(corev1.Resource("pods"), name)
	}
	pod, err := m.pods.Pods(m.namespace).Get(name)
	if err != nil {
		return nil, err
	}
	return &metav1.PartialObjectMetadata{ObjectMeta: pod.ObjectMeta}, nil
}

func (m metadata) ByNamespace(namespace string) cache.GenericNamespaceLister {
	return metadata{m.pods, namespace}
}
