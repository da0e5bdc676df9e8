package balancer

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/multipaas/multipaas/modules/resource"
)

// table is what is routed where. A lookup is one read of a map; nothing in it
// runs.
type table struct {
	dial func(workspace string) DialFunc

	mu        sync.RWMutex
	routes    map[string]*entry
	pools     map[service]map[uint16]*pool // by port
	endpoints map[service][]netip.Addr     // of all services that are routed, and only those
	services  map[string]map[service]int   // by workspace: routes to each service
	dirty     chan struct{}                // has one when there is something to save
	// rewatch is told a workspace whose set of services has changed. Not blocking.
	rewatch func(workspace string)
}

// entry is one route.
type entry struct {
	Host      string `json:"host"`
	Workspace string `json:"workspace"`
	Namespace string `json:"namespace"`
	Service   string `json:"service"`
	Port      uint16 `json:"port"`

	pool *pool
}

func (e *entry) service() service { return service{e.Workspace, e.Namespace, e.Service} }

func newTable(dial func(workspace string) DialFunc, rewatch func(workspace string)) *table {
	return &table{
		dial: dial, rewatch: rewatch, dirty: make(chan struct{}, 1),
		routes: map[string]*entry{}, pools: map[service]map[uint16]*pool{},
		endpoints: map[service][]netip.Addr{}, services: map[string]map[service]int{},
	}
}

// lookup returns where host leads, or nil.
func (t *table) lookup(host string) *pool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e := t.routes[host]; e != nil {
		return e.pool
	}
	return nil
}

// has says whether host is routed.
func (t *table) has(host string) bool { return t.lookup(host) != nil }

// put routes a host, which must have been checked.
func (t *table) put(r *resource.Route) {
	t.add(&entry{Host: r.Name, Workspace: r.Workspace, Namespace: r.Namespace, Service: r.Service, Port: uint16(r.Port)})
}

func (t *table) add(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.routes[e.Host]
	if old != nil && old.service() == e.service() && old.Port == e.Port {
		return
	}
	s := e.service()
	p := t.pools[s][e.Port]
	if p == nil {
		p = newPool(e.Workspace, e.Port, t.dial(e.Workspace))
		p.set(t.endpoints[s])
		if t.pools[s] == nil {
			t.pools[s] = map[uint16]*pool{}
		}
		t.pools[s][e.Port] = p
	}
	p.refs++
	e.pool = p
	t.routes[e.Host] = e
	of := t.services[s.workspace]
	if of == nil {
		of = map[service]int{}
		t.services[s.workspace] = of
	}
	of[s]++
	if of[s] == 1 {
		t.rewatch(s.workspace)
	}
	if old != nil {
		t.drop(old)
	}
	t.touch()
}

// remove stops routing a host.
func (t *table) remove(host string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.routes[host]; old != nil {
		delete(t.routes, host)
		t.drop(old)
		t.touch()
	}
}

// drop gives up what a route held.
func (t *table) drop(e *entry) {
	s := e.service()
	if e.pool.refs--; e.pool.refs == 0 {
		if delete(t.pools[s], e.Port); len(t.pools[s]) == 0 {
			delete(t.pools, s)
		}
		e.pool.set(nil)
	}
	of := t.services[s.workspace]
	if of[s]--; of[s] == 0 {
		delete(of, s)
		delete(t.endpoints, s)
		if len(of) == 0 {
			delete(t.services, s.workspace)
		}
		t.rewatch(s.workspace)
	}
}

// setEndpoints says which pods of a service may get requests. It ignores
// services that are not routed.
func (t *table) setEndpoints(s service, addrs []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.services[s.workspace][s] == 0 || slices.Equal(t.endpoints[s], addrs) {
		return
	}
	t.endpoints[s] = addrs
	for _, p := range t.pools[s] {
		p.set(addrs)
	}
	t.touch()
}

// routed are the services of a workspace that routes lead to.
func (t *table) routed(workspace string) []service {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []service
	for s := range t.services[workspace] {
		out = append(out, s)
	}
	return out
}

// hosts are all hosts that are routed.
func (t *table) hosts() []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]string, 0, len(t.routes))
	for h := range t.routes {
		out = append(out, h)
	}
	return out
}

func (t *table) touch() {
	select {
	case t.dirty <- struct{}{}:
	default:
	}
}
