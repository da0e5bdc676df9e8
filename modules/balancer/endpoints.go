package balancer

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/modules/internal/mirror"
	"github.com/multipaas/multipaas/modules/resource"
)

const (
	// maxEndpoints is how many pods of one service get requests: as many instances as
	// an app can have. maxWorkspaceEndpoints is how many endpoints of a workspace are
	// kept; its machines run 27,500 pods at most, of which few are routed. Each is some
	// 300 bytes here and with each port that is routed.
	maxEndpoints          = resource.MaxInstances
	maxWorkspaceEndpoints = 10_000
	// maxSelected is how many services are named in a selector; above, all
	// slices of services are watched. 100 names of 63 characters fit well into
	// a URL.
	maxSelected = 100
	// tellShare bounds the telling of endpoints to a twentieth of the time.
	tellShare = 20
)

// Workspaces reaches into workspaces.
type Workspaces interface {
	// Client is a client of the workspace's Kubernetes API that may read
	// EndpointSlices. It is called for every list and watch and must not block.
	// An error says that there is none now; it is asked again.
	Client(ctx context.Context, workspace string) (kubernetes.Interface, error)
	// Dialer returns how to open connections inside the workspace's network, for
	// addresses with an IP. It is called for every connection, from many
	// goroutines, and must not block.
	Dialer(workspace string) (func(ctx context.Context, network, address string) (net.Conn, error), error)
}

// follower follows the EndpointSlices of one workspace.
type follower struct {
	*Balancer
	workspace string
	routed    map[service]bool
	mirror    *mirror.Mirror[slice]

	mu    sync.Mutex
	stale map[service]bool // what was told of them
	wake  chan struct{}    // has one when there are some
}

// slice is what is kept of an EndpointSlice: the pods that are ready and stay, sorted,
// each once.
type slice struct {
	service
	pods []netip.Addr
}

func (b *Balancer) newFollower(workspace string, routed map[service]bool) *follower {
	f := &follower{Balancer: b, workspace: workspace, routed: routed, stale: map[service]bool{}, wake: make(chan struct{}, 1)}
	f.mirror = mirror.New(mirror.Config[slice]{
		What: "endpoints of " + workspace,
		Log:  b.cfg.Log,
		Open: func(ctx context.Context) (mirror.Source, error) {
			client, err := b.cfg.Client(ctx, workspace)
			if err != nil {
				return nil, err
			}
			return mirror.Of(client.DiscoveryV1().EndpointSlices(metav1.NamespaceAll)), nil
		},
		Options: metav1.ListOptions{LabelSelector: f.selector()},
		Slim:    f.slim,
		Size:    func(s *slice) int { return len(s.pods) },
		Max:     maxWorkspaceEndpoints,
		Changed: func(old, now *slice) {
			for _, s := range []*slice{old, now} {
				if s != nil {
					f.markStale(s.service)
				}
			}
		},
		Listed: func() { // of services too that have no endpoints
			f.markStale(slices.Collect(maps.Keys(routed))...)
		},
	})
	return f
}

// selector chooses EndpointSlices by the label with the name of their service.
func (f *follower) selector() string {
	names := map[string]bool{}
	for s := range f.routed {
		names[s.Name] = true
	}
	if len(names) > maxSelected {
		return discovery.LabelServiceName
	}
	return discovery.LabelServiceName + " in (" + strings.Join(slices.Sorted(maps.Keys(names)), ",") + ")"
}

// run tells the endpoints of the services until ctx is done. While the API can't be
// reached, what was told stays.
func (f *follower) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { f.mirror.Run(ctx) })
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return
		}
		f.mu.Lock()
		stale := f.stale
		f.stale = map[service]bool{}
		f.mu.Unlock()
		began := time.Now()
		f.tell(stale)
		// It takes some microseconds, and of the most that there can be milliseconds:
		// those who change them all the time shall have a part of the processor.
		select {
		case <-time.After(tellShare * time.Since(began)):
		case <-ctx.Done():
			return
		}
	}
}

func (f *follower) markStale(services ...service) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range services {
		f.stale[s] = true
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// slim keeps nothing of slices without a pod, and of services that no route leads to.
func (f *follower) slim(o runtime.Object) *slice {
	from, ok := o.(*discovery.EndpointSlice)
	if !ok {
		return nil
	}
	s := service{f.workspace, from.Namespace, from.Labels[discovery.LabelServiceName]}
	if !f.routed[s] {
		return nil
	}
	pods := addresses(from, f.cfg.Pods)
	if len(pods) == 0 {
		return nil
	}
	return &slice{s, pods}
}

// tell tells the endpoints of some services.
func (f *follower) tell(stale map[service]bool) {
	pods := map[service][]netip.Addr{}
	whole := f.mirror.Whole()
	for _, of := range f.mirror.All() {
		if stale[of.service] {
			pods[of.service] = append(pods[of.service], of.pods...)
		}
	}
	for s := range stale {
		all := pods[s]
		slices.SortFunc(all, netip.Addr.Compare)
		all = slices.Compact(all)
		crowded := ""
		switch {
		case !whole:
			crowded = fmt.Sprintf("The workspace's routed services have more than %d endpoints, or very large EndpointSlices, and some "+
				"are left out. Delete EndpointSlices that nobody needs.", maxWorkspaceEndpoints)
		case len(all) > maxEndpoints:
			crowded = fmt.Sprintf("The service has more than %d endpoints; requests reach %[1]d of them.", maxEndpoints)
		}
		f.table.setEndpoints(s, slices.Clone(all[:min(len(all), maxEndpoints)]), crowded)
	}
}

// addresses are those of the pods that are ready and stay, sorted, each once.
// Tenants can write EndpointSlices: what is not in the network of the pods is
// left out, or they could have us open connections to whatever can be reached
// from where we stand.
func addresses(slice *discovery.EndpointSlice, pods netip.Prefix) []netip.Addr {
	if slice.AddressType != discovery.AddressTypeIPv4 {
		return nil
	}
	var out []netip.Addr
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		leaving := e.Conditions.Terminating != nil && *e.Conditions.Terminating
		if !ready || leaving || len(e.Addresses) == 0 {
			continue
		}
		// The addresses of one endpoint mean the same pod; only the first
		// may be used.
		if a, err := netip.ParseAddr(e.Addresses[0]); err == nil && pods.Contains(a) {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
