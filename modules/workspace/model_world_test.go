package workspace_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/modules/workspace"
)

// world is what outlives a kill of the server: planes' data, networks in the
// kernel, what hosts run.
type world struct {
	mu       sync.Mutex
	clusters map[string]*cluster     // planes' data, by id
	running  map[string]bool         // planes
	networks map[string]wire.Network // on the server
	wrong    []string                // what must never happen
}

func newWorld() *world {
	return &world{clusters: map[string]*cluster{}, running: map[string]bool{}, networks: map[string]wire.Network{}}
}

func (w *world) complain(text string) { w.wrong = append(w.wrong, text) }

func (w *world) New(_ context.Context, ws *resource.Workspace, _ *resource.WorkspaceKeys, _ wire.Plan) (workspace.Plane, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := ws.Status.ID
	if w.clusters[id] == nil {
		w.clusters[id] = newCluster()
	}
	return &plane{world: w, id: id, cluster: w.clusters[id], url: "http://127.0.0.1:1"}, nil
}

func (w *world) Remove(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running[id] {
		w.complain("plane " + id + " is removed while it runs")
	}
	delete(w.clusters, id)
	return nil
}

func (w *world) List() ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.clusters)), nil
}

// networks is the other interface of the same world: both have methods of the
// same name.
type networks struct{ *world }

func (w networks) Attach(_ context.Context, n wire.Network) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.networks[n.ID] = n
	for id, other := range w.networks {
		if id != n.ID && (other.VNI == n.VNI || other.Workspace == n.Workspace) {
			w.complain("networks " + id + " and " + n.ID + " have the same VNI or workspace")
		}
	}
	owner := map[string]string{n.Gateway.Addr().String(): "the host"}
	for _, m := range n.Members {
		if other := owner[m.Address.String()]; other != "" {
			w.complain("network " + n.ID + ": " + m.Name + " and " + other + " have the address " + m.Address.String())
		}
		owner[m.Address.String()] = m.Name
	}
	return nil
}

func (w networks) Detach(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.running[id] {
		w.complain("network " + id + " is taken from a plane that runs")
	}
	delete(w.networks, id)
	return nil
}

func (w networks) Attached() ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.networks)), nil
}

func (w networks) Dial(context.Context, string, string, string) (net.Conn, error) {
	return nil, errors.New("nobody dials here")
}

type plane struct {
	world   *world
	id      string
	cluster *cluster
	url     string
}

func (p *plane) Run(ctx context.Context, ready func(), _ func(error)) error {
	p.world.mu.Lock()
	if p.world.running[p.id] {
		p.world.complain("plane " + p.id + " runs twice")
	}
	p.world.running[p.id] = true
	p.world.mu.Unlock()
	server := p.cluster.serve()
	p.url = server.URL
	defer func() {
		server.CloseClientConnections()
		server.Close()
		p.world.mu.Lock()
		delete(p.world.running, p.id)
		p.world.mu.Unlock()
	}()
	ready()
	<-ctx.Done()
	return nil
}

func (p *plane) RESTConfig() *rest.Config { return &rest.Config{Host: p.url} }

func (p *plane) SetPodSecurity(string) error { return nil }

func (p *plane) SetMachines(uids []string) error {
	p.cluster.mu.Lock()
	defer p.cluster.mu.Unlock()
	p.cluster.living = uids
	return nil
}

func (p *plane) Room() (used, limit int64, err error) { return 8 << 20, p.Limit(), nil }

func (p *plane) Limit() int64 { return 64 << 20 }

func (p *plane) SetShare(int64, string) error { return nil }

// mortal is the server's way to etcd. Once killed, nothing of it reaches etcd
// any more: the commit it dies at is applied or not, and nobody hears of it.
type mortal struct {
	clientv3.KV

	mu      sync.Mutex
	left    int // commits until it dies; negative: none
	applied bool
	died    chan struct{} // closed when it has
}

var errKilled = errors.New("killed")

// dieAt kills the server at the n-th commit from now.
func (m *mortal) dieAt(n int, applied bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left, m.applied = n, applied
}

// kill kills it now.
func (m *mortal) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.die()
}

func (m *mortal) die() {
	select {
	case <-m.died:
	default:
		close(m.died)
	}
}

func (m *mortal) dead() bool {
	select {
	case <-m.died:
		return true
	default:
		return false
	}
}

func (m *mortal) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if m.dead() {
		return nil, errKilled
	}
	return m.KV.Get(ctx, key, opts...)
}

func (m *mortal) Txn(ctx context.Context) clientv3.Txn { return &mortalTxn{Txn: m.KV.Txn(ctx), m: m} }

type mortalTxn struct {
	clientv3.Txn
	m      *mortal
	writes bool
}

func (t *mortalTxn) If(cs ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(cs...); return t }

func (t *mortalTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.writes = slices.ContainsFunc(ops, func(op clientv3.Op) bool { return op.IsPut() || op.IsDelete() })
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *mortalTxn) Commit() (*clientv3.TxnResponse, error) {
	t.m.mu.Lock()
	if t.m.dead() {
		t.m.mu.Unlock()
		return nil, errKilled
	}
	dies := false
	if t.writes && t.m.left >= 0 {
		dies = t.m.left == 0
		t.m.left--
	}
	applied := t.m.applied
	if dies {
		t.m.die()
	}
	t.m.mu.Unlock()
	if dies && !applied {
		return nil, errKilled
	}
	resp, err := t.Txn.Commit()
	if dies {
		return nil, errKilled
	}
	return resp, err
}
