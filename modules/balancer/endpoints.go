package balancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubewatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const (
	// listTimeout bounds a list of a workspace's EndpointSlices: 1,000 of them
	// are 2 MB.
	listTimeout = 15 * time.Second
	// watchFor is when a watch is begun anew, with a new list: what a watch may
	// have missed is mended then.
	watchFor = 5 * time.Minute
	// The planes are on this host or the next, and a pod that leaves must be
	// seen: so ask again soon, unlike client-go's informers, which wait for up
	// to a minute.
	retryFirst = 100 * time.Millisecond
	retryMost  = 2 * time.Second
	// maxSelected is how many services are named in a selector; above, all
	// slices of services are watched. 100 names of 63 characters fit well into
	// a URL.
	maxSelected = 100
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
	routed    map[service]int
	slices    map[service]map[string]*discovery.EndpointSlice // by name
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
	wait := retryFirst
	for ctx.Err() == nil {
		listed, err := f.listAndWatch(ctx)
		if listed {
			wait = retryFirst
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		f.cfg.Log.Debug("endpoints are not told now", "workspace", f.workspace, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, retryMost)
	}
}

// listAndWatch lists once and watches until the watch ends. listed: it got so far.
func (f *follower) listAndWatch(ctx context.Context) (listed bool, err error) {
	client, err := f.cfg.Client(ctx, f.workspace)
	if err != nil {
		return false, err
	}
	api := client.DiscoveryV1().EndpointSlices(metav1.NamespaceAll)
	listCtx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	selector := f.selector()
	list, err := api.List(listCtx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return false, fmt.Errorf("list endpoint slices: %w", err)
	}
	f.slices = map[service]map[string]*discovery.EndpointSlice{}
	for i := range list.Items {
		f.keep(&list.Items[i])
	}
	for s := range f.routed {
		f.tell(s)
	}
	w, err := api.Watch(ctx, metav1.ListOptions{
		LabelSelector: selector, ResourceVersion: list.ResourceVersion, AllowWatchBookmarks: true,
		TimeoutSeconds: new(int64(watchFor.Seconds())),
	})
	if err != nil {
		return true, fmt.Errorf("watch endpoint slices: %w", err)
	}
	defer w.Stop()
	begin := time.Now()
	for e := range w.ResultChan() { // closed when ctx is done
		if err := f.event(e); err != nil {
			return true, err
		}
	}
	if time.Since(begin) < time.Second { // don't hurry if that is how it goes on
		return true, errors.New("watch endpoint slices: it ended at once")
	}
	return true, nil
}

func (f *follower) event(e kubewatch.Event) error {
	if e.Type == kubewatch.Error {
		return fmt.Errorf("watch endpoint slices: %v", e.Object)
	}
	slice, ok := e.Object.(*discovery.EndpointSlice)
	if !ok || e.Type == kubewatch.Bookmark {
		return nil
	}
	s := f.keep(slice)
	if e.Type == kubewatch.Deleted {
		delete(f.slices[s], slice.Name)
	}
	f.tell(s)
	return nil
}

// keep keeps a slice and returns of which service it is.
func (f *follower) keep(slice *discovery.EndpointSlice) service {
	s := service{f.workspace, slice.Namespace, slice.Labels[discovery.LabelServiceName]}
	if f.slices[s] == nil {
		f.slices[s] = map[string]*discovery.EndpointSlice{}
	}
	f.slices[s][slice.Name] = slice
	return s
}

func (f *follower) tell(s service) {
	if f.routed[s] > 0 {
		f.table.setEndpoints(s, addresses(f.slices[s], f.cfg.Pods))
	}
}

// addresses are those of the pods that are ready and stay, sorted, each once.
// Tenants can write EndpointSlices: what is not in the network of the pods is
// left out, or they could have us open connections to whatever can be reached
// from where we stand.
func addresses(of map[string]*discovery.EndpointSlice, pods netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, slice := range of {
		if slice.AddressType != discovery.AddressTypeIPv4 {
			continue
		}
		for _, e := range slice.Endpoints {
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
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}
