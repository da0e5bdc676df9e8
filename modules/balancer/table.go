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
	"net/url"
	"os"
	"path/filepath"
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
	domain string // all hosts are below it
	dial   func(workspace string) DialFunc

	mu        sync.RWMutex
	routes    map[string]*entry
	pools     map[service]map[uint16]*pool // by port
	endpoints map[service][]netip.Addr     // of all services that are routed, and only those
	crowded   map[service]string           // of those of which endpoints are left out: why
	services  map[string]map[service]int   // by workspace: routes to each service
	dirty     map[string]bool              // workspaces of which there is something to save
	wake      chan struct{}                // has one when there are some
	// rewatch is told a workspace whose set of services has changed, retell a host of
	// which there is something new to say (nil: nobody asks). Neither blocks.
	rewatch func(workspace string)
	retell  func(host string)
}

// entry is one route.
type entry struct {
	Host string `json:"host"`
	service
	Port uint16 `json:"port"`

	pool *pool
}

func newTable(domain string, dial func(workspace string) DialFunc, rewatch func(workspace string)) *table {
	return &table{
		domain: domain, dial: dial, rewatch: rewatch,
		dirty: map[string]bool{}, wake: make(chan struct{}, 1), crowded: map[service]string{},
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
		p = newPool(e.Workspace, siteOf(e.Workspace, t.domain), e.Port, t.dial(e.Workspace))
		p.set(t.endpoints[s])
		if t.pools[s] == nil {
			t.pools[s] = map[uint16]*pool{}
		}
		t.pools[s][e.Port] = p
	}
	p.routes = append(p.routes, e)
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
	t.touch(s.Workspace)
}

// remove stops routing a host.
func (t *table) remove(host string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.routes[host]; old != nil {
		delete(t.routes, host)
		t.drop(old)
	}
}

// drop gives up what a route held.
func (t *table) drop(e *entry) {
	s := e.service
	t.touch(s.Workspace)
	e.pool.routes = slices.DeleteFunc(e.pool.routes, func(other *entry) bool { return other == e })
	if len(e.pool.routes) == 0 {
		if delete(t.pools[s], e.Port); len(t.pools[s]) == 0 {
			delete(t.pools, s)
		}
		e.pool.set(nil)
	}
	of := t.services[s.Workspace]
	if of[s]--; of[s] == 0 {
		delete(of, s)
		delete(t.endpoints, s)
		delete(t.crowded, s)
		if len(of) == 0 {
			delete(t.services, s.Workspace)
		}
		t.rewatch(s.Workspace)
	}
}

// setEndpoints says which pods of a service may get requests, if it is routed, and
// why not all of them; "" is all.
func (t *table) setEndpoints(s service, addrs []netip.Addr, crowded string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.services[s.Workspace][s] == 0 {
		return
	}
	if t.crowded[s] != crowded {
		if t.crowded[s] = crowded; crowded == "" {
			delete(t.crowded, s)
		}
		for _, p := range t.pools[s] {
			for _, e := range p.routes {
				if t.retell != nil {
					t.retell(e.Host)
				}
			}
		}
	}
	if slices.Equal(t.endpoints[s], addrs) {
		return
	}
	t.endpoints[s] = addrs
	for _, p := range t.pools[s] {
		p.set(addrs)
	}
	t.touch(s.Workspace)
}

// crowdedAt is why not all pods behind a host get requests; "" if they do.
func (t *table) crowdedAt(host string) string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e := t.routes[host]; e != nil {
		return t.crowded[e.service]
	}
	return ""
}

// routed are the services of a workspace that routes lead to.
func (t *table) routed(workspace string) map[service]bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	routed := map[service]bool{}
	for s := range t.services[workspace] {
		routed[s] = true
	}
	return routed
}

// hosts are all hosts that are routed.
func (t *table) hosts() []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Keys(t.routes))
}

// touch has what is routed in a workspace saved. t.mu is held.
func (t *table) touch(workspace string) {
	t.dirty[workspace] = true
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

const (
	// saveEvery is how often the table is saved at most while it changes: of each
	// workspace what it has, since one of them may change all the time.
	saveEvery = time.Second
	// saveShare bounds the work to a twentieth of the time, but nothing waits for more
	// than saveMost.
	saveShare = 20
	saveMost  = 30 * time.Second
	// maxSaved is far above 1,000 routes and maxWorkspaceEndpoints of one workspace.
	maxSaved = 8 << 20
	savedEnd = ".json"
)

// savedTable is a file from which the balancer serves one workspace after a
// restart, until the store and the planes are there.
type savedTable struct {
	Routes    []*entry         `json:"routes"`
	Endpoints []savedEndpoints `json:"endpoints"`
}

type savedEndpoints struct {
	service
	Addresses []netip.Addr `json:"addresses"`
}

func savedFile(dir, workspace string) string {
	return filepath.Join(dir, url.PathEscape(workspace)+savedEnd)
}

// load fills the table from the files in dir. None there is no error. What can't be
// read is left out, and told.
func (t *table) load(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, f := range files {
		escaped, ok := strings.CutSuffix(f.Name(), savedEnd)
		workspace, err := url.PathUnescape(escaped)
		if !ok || err != nil || strings.HasPrefix(escaped, ".") {
			continue // a file that was being written
		}
		if err := t.loadWorkspace(filepath.Join(dir, f.Name()), workspace); err != nil {
			errs = append(errs, err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.dirty)
	return errors.Join(errs...)
}

func (t *table) loadWorkspace(file, workspace string) error {
	info, err := os.Stat(file)
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
		if e == nil || e.Port == 0 || e.Workspace != workspace {
			continue
		}
		if host, ok := canonicalHost(e.Host); ok && host == e.Host {
			t.add(e)
		}
	}
	for _, s := range saved.Endpoints {
		if s.Workspace == workspace {
			t.setEndpoints(s.service, s.Addresses[:min(len(s.Addresses), maxEndpoints)], "")
		}
	}
	return nil
}

// save writes what is routed in a workspace to its file in dir; none if that is
// nothing.
func (t *table) save(dir, workspace string) error {
	var saved savedTable
	t.mu.RLock()
	for s := range t.services[workspace] {
		for _, p := range t.pools[s] {
			saved.Routes = append(saved.Routes, p.routes...)
		}
		if addrs := t.endpoints[s]; len(addrs) > 0 {
			saved.Endpoints = append(saved.Endpoints, savedEndpoints{s, addrs})
		}
	}
	t.mu.RUnlock() // entries and address lists never change
	file := savedFile(dir, workspace)
	if len(saved.Routes) == 0 {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget saved routes: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(saved)
	if err == nil {
		err = atomicfile.Write(file, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("save routes: %w", err)
	}
	return nil
}

// unsaved returns the workspaces that have changed since they were asked for last.
func (t *table) unsaved() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Collect(maps.Keys(t.dirty))
	clear(t.dirty)
	return all
}

// keepSaved saves the table in dir after changes until ctx is done, and then once more.
func (b *Balancer) keepSaved(ctx context.Context, dir string) {
	for ended := false; !ended; {
		select {
		case <-b.table.wake:
		case <-ctx.Done():
			ended = true
		}
		begin := time.Now()
		for _, workspace := range b.table.unsaved() {
			err := b.table.save(dir, workspace)
			if err == nil {
				continue
			}
			b.cfg.Log.Error("keep the routing table", "workspace", workspace, "err", err)
			b.table.mu.Lock()
			b.table.touch(workspace)
			b.table.mu.Unlock()
		}
		select {
		case <-time.After(min(max(saveEvery, saveShare*time.Since(begin)), saveMost)):
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
