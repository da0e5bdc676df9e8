package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
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
	Host string `json:"host"`
	service
	Port uint16 `json:"port"`

	pool *pool
}

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
	t.add(&entry{Host: r.Name, service: service{r.Workspace, r.Namespace, r.Service}, Port: uint16(r.Port)})
}

func (t *table) add(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.routes[e.Host]
	if old != nil && old.service == e.service && old.Port == e.Port {
		return
	}
	s := e.service
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
	of := t.services[s.Workspace]
	if of == nil {
		of = map[service]int{}
		t.services[s.Workspace] = of
	}
	of[s]++
	if of[s] == 1 {
		t.rewatch(s.Workspace)
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
	s := e.service
	if e.pool.refs--; e.pool.refs == 0 {
		if delete(t.pools[s], e.Port); len(t.pools[s]) == 0 {
			delete(t.pools, s)
		}
		e.pool.set(nil)
	}
	of := t.services[s.Workspace]
	if of[s]--; of[s] == 0 {
		delete(of, s)
		delete(t.endpoints, s)
		if len(of) == 0 {
			delete(t.services, s.Workspace)
		}
		t.rewatch(s.Workspace)
	}
}

// setEndpoints says which pods of a service may get requests, if it is routed.
func (t *table) setEndpoints(s service, addrs []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.services[s.Workspace][s] == 0 || slices.Equal(t.endpoints[s], addrs) {
		return
	}
	t.endpoints[s] = addrs
	for _, p := range t.pools[s] {
		p.set(addrs)
	}
	t.touch()
}

// routed are the services of a workspace that routes lead to, and how many do.
func (t *table) routed(workspace string) map[service]int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return maps.Clone(t.services[workspace])
}

// hosts are all hosts that are routed.
func (t *table) hosts() []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Keys(t.routes))
}

func (t *table) touch() {
	select {
	case t.dirty <- struct{}{}:
	default:
	}
}

const (
	// saveEvery is how often the table is saved at most while it changes.
	saveEvery = time.Second
	// saveShare bounds the work to a twentieth of the time: 50,000 routes take
	// about a quarter of a second.
	saveShare = 20
	// maxSaved is far above 50,000 routes with 1,000 pods each.
	maxSaved = 1 << 30
)

// savedTable is the file from which the balancer serves after a restart, until
// the store and the planes are there.
type savedTable struct {
	Routes    []*entry         `json:"routes"`
	Endpoints []savedEndpoints `json:"endpoints"`
}

type savedEndpoints struct {
	service
	Addresses []netip.Addr `json:"addresses"`
}

// load fills the table from a file. None there is no error.
func (t *table) load(file string) error {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Size() > maxSaved {
		err = fmt.Errorf("it has %d bytes", info.Size())
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(file)
	}
	var saved savedTable
	if err == nil {
		err = json.Unmarshal(data, &saved)
	}
	if err != nil {
		return fmt.Errorf("load routes from %s: %w", file, err)
	}
	for _, e := range saved.Routes {
		if e == nil || e.Port == 0 {
			continue
		}
		if host, ok := canonicalHost(e.Host); ok && host == e.Host {
			t.add(e)
		}
	}
	for _, s := range saved.Endpoints {
		t.setEndpoints(s.service, s.Addresses)
	}
	return nil
}

func (t *table) save(file string) error {
	var saved savedTable
	t.mu.RLock()
	for _, e := range t.routes {
		saved.Routes = append(saved.Routes, e)
	}
	for s, addrs := range t.endpoints {
		saved.Endpoints = append(saved.Endpoints, savedEndpoints{s, addrs})
	}
	t.mu.RUnlock() // entries and address lists never change
	data, err := json.Marshal(saved)
	if err == nil {
		err = atomicfile.Write(file, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("save routes: %w", err)
	}
	return nil
}

// keepSaved saves the table after changes until ctx is done, and then once more.
func (b *Balancer) keepSaved(ctx context.Context, file string) {
	for ctx.Err() == nil || len(b.table.dirty) > 0 {
		select {
		case <-b.table.dirty:
		case <-ctx.Done():
			continue
		}
		begin := time.Now()
		if err := b.table.save(file); err != nil {
			b.cfg.Log.Error("keep the routing table", "err", err)
			if ctx.Err() == nil { // else it was the last time
				b.table.touch()
			}
		}
		select {
		case <-time.After(max(saveEvery, saveShare*time.Since(begin))):
		case <-ctx.Done():
		}
	}
}

// canonicalHost is the host of a Host header or SNI in the form of the routes'
// keys: lower case, no port, no final dot. False: it can't be the name of a host.
func canonicalHost(s string) (string, bool) {
	if len(s) > 300 {
		return "", false
	}
	if strings.Contains(s, ":") {
		h, _, err := net.SplitHostPort(s)
		if err != nil {
			return "", false
		}
		s = h
	}
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return "", false
			}
		}
	}
	return s, true
}

// checkRoute says why a route is not served; "" if it is. Each workspace has the
// hosts below WORKSPACE.ORGANIZATION.ACCOUNT.DOMAIN and no others. The API checks
// that, too; here it is checked again since here it counts.
func checkRoute(r *resource.Route, domain string) string {
	host, ok := canonicalHost(r.Name)
	if !ok || host != r.Name {
		return "the host name is not valid: use lower-case letters, digits, '-' and dots"
	}
	parts := strings.Split(r.Workspace, "/")
	if len(parts) != 3 {
		return "the route names no workspace"
	}
	suffix := "." + parts[2] + "." + parts[1] + "." + parts[0] + "." + domain
	if !strings.HasSuffix(host, suffix) {
		return "the host is not this workspace's: choose a name that ends with " + suffix
	}
	if r.Service == "" || r.Namespace == "" || r.Port < 1 || r.Port > 65535 {
		return "the route names no service and port"
	}
	return ""
}

// workspaceOf is the key of the workspace that a host name is of by its end, see
// checkRoute. Other names are their own.
func workspaceOf(host, domain string) string {
	of, ok := strings.CutSuffix(host, "."+domain)
	parts := strings.Split(of, ".")
	if n := len(parts); ok && n > 3 {
		return parts[n-1] + "/" + parts[n-2] + "/" + parts[n-3]
	}
	return host
}
