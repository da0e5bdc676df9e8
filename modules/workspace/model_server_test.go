package workspace_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/apps"
	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/task"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/modules/workspace"
)

// server is one life of the server's parts.
type server struct {
	kv    *mortal
	hub   *node.Hub
	asked *task.Tasks // the API's: begins tasks and does nothing else
	stop  func()
}

// authority signs for hosts in all sequences: making one takes longer than a step.
var authority = sync.OnceValues(func() (*pki.CA, error) {
	certPEM, keyPEM, err := pki.NewCA("model")
	if err != nil {
		return nil, err
	}
	return pki.ParseCA(certPEM, keyPEM)
})

type anyToken struct{}

func (anyToken) Redeem(context.Context, string, string, string) error { return nil }

// noCluster and noImages: apps wait, and go with their workspace.
type noCluster struct{}

func (noCluster) Client(context.Context, string) (kubernetes.Interface, error) {
	return nil, errors.New("not now")
}

type noImages struct{}

func (noImages) Resolve(context.Context, string, string) (resource.ImageVersion, error) {
	return resource.ImageVersion{}, errors.New("not now")
}

func startServer(m *model) *server {
	m.Helper()
	ca, err := authority()
	m.must(err)
	ctx, cancel := context.WithCancel(m.ctx)
	client := clientv3.NewCtxClient(ctx)
	kv := &mortal{KV: m.etcd.Client.KV, left: -1, died: make(chan struct{})}
	client.KV, client.Watcher, client.Lease = kv, m.etcd.Client.Watcher, m.etcd.Client.Lease
	db := store.New(client)
	claims, trash := store.Of[resource.VNI](db).Cache(quiet), store.Of[resource.Trash](db).Cache(quiet)
	workspaces, machines, nodes, keys, all := store.Of[resource.Workspace](db).Cache(quiet), store.Of[resource.Machine](db).Cache(quiet), store.Of[resource.Node](db).Cache(quiet), store.Of[resource.WorkspaceKeys](db).Cache(quiet), store.Of[resource.App](db).Cache(quiet)
	plan := wire.DefaultPlan()
	here := netip.MustParseAddr("192.0.2.1")
	controller := workspace.New(workspace.Config{Log: quiet, Store: db, Networks: networks{m.world}, Planes: m.world,
		Manifests: func(*resource.Workspace, wire.Plan) ([]byte, error) { return nil, nil },
		Server:    "s1", Address: here, Domain: "mp.example", Plan: plan, KubeAPI: "mp.example:6443",
		Workspaces: workspaces, Machines: machines, Nodes: nodes})
	hub := node.NewHub(node.HubConfig{Log: quiet, Store: db, CA: ca, Tokens: anyToken{}, Server: "s1", Address: here, Plan: plan, Pace: time.Microsecond,
		Nodes: nodes, Workspaces: workspaces, Machines: machines, Keys: keys, Claims: claims, Volumes: store.Of[resource.Volume](db).Cache(quiet), Snapshots: store.Of[resource.Snapshot](db).Cache(quiet), Trash: trash})
	deployer := apps.New(apps.Config{Log: quiet, Store: db, Clusters: noCluster{}, Images: noImages{}, Apps: all, Workspaces: workspaces, Domain: "mp.example", Registry: "mp.example:5000"})
	tasks := task.New(task.Config{Store: db, Log: quiet})
	monitor := &node.Monitor{Log: quiet, Store: db, Nodes: nodes, Machines: machines, Claims: claims, Trash: trash}

	var wg sync.WaitGroup
	run := func(part func(context.Context, func()) error) {
		ready := make(chan struct{})
		once := sync.OnceFunc(func() { close(ready) })
		wg.Go(func() {
			if err := part(ctx, once); err != nil && ctx.Err() == nil && !kv.dead() {
				m.Errorf("a part ended: %v", err)
			}
			once()
		})
		<-ready
	}
	for _, part := range []func(context.Context, func()) error{workspaces.Run, machines.Run, nodes.Run, keys.Run, all.Run, claims.Run, controller.Run, deployer.Run, tasks.Run, monitor.Run} {
		run(part)
	}
	return &server{kv: kv, hub: hub, asked: task.New(task.Config{Store: m.db}), stop: sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})}
}

// host is a machine of the datacenter with its agent.
type host struct {
	m       *model
	name    string
	address netip.Addr

	mu      sync.Mutex
	cert    *x509.Certificate
	running map[string]string // what runs, by UID; stays when the agent is away
	sent    []wire.Report
	cancel  context.CancelFunc // nil: the agent is down
	done    chan struct{}
}

func (h *host) isUp() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.cancel != nil }

func (h *host) runs() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.running))
}

func (h *host) up() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(h.m.ctx)
	h.cancel, h.done = cancel, make(chan struct{})
	done := h.done
	// The server of now is asked each time: it changes while this runs.
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			h.look(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond): // an agent's period, shortened
			}
		}
	}()
}

func (h *host) down() {
	h.mu.Lock()
	cancel, done := h.cancel, h.done
	h.cancel = nil
	h.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// look is one turn of an agent: join if need be, do what is wanted, report.
func (h *host) look(ctx context.Context) {
	h.mu.Lock()
	cert := h.cert
	h.mu.Unlock()
	if cert == nil {
		_, csr, err := pki.NewKeyCSR()
		if err != nil {
			panic(err)
		}
		var res wire.JoinResponse
		if h.post(ctx, nil, "join", wire.JoinRequest{Name: h.name, Token: "x", CSR: csr}, &res) != http.StatusOK {
			return
		}
		if cert, err = pki.ParseCertificate(res.Certificate); err != nil {
			panic(err)
		}
		h.mu.Lock()
		h.cert = cert
		h.mu.Unlock()
	}
	machines, err := listed(ctx, store.Of[resource.Machine](h.m.db))
	if err != nil {
		return
	}
	rep := wire.Report{Address: h.address, Drivers: []string{"sandbox"}, Capacity: resource.Size{MilliCPU: 32000, MemoryBytes: 32 << 30, DiskBytes: 64 << 30}, Holds: []string{}}
	wanted := map[string]bool{}
	for _, x := range machines {
		if x.Spec.Node != h.name {
			continue
		}
		r := wire.MachineReport{Key: x.Key(), UID: x.UID}
		w, err := store.Of[resource.Workspace](h.m.db).Get(ctx, x.WorkspaceKey())
		if err != nil {
			return
		}
		if x.Deleting() && x.Status.Conditions.Is(resource.MachineDrained) {
			r.Removed = true
		} else {
			r.Running, wanted[x.UID] = true, true
			rep.Holds = append(rep.Holds, w.Status.ID)
			h.m.world.mu.Lock()
			k := h.m.world.clusters[w.Status.ID]
			h.m.world.mu.Unlock()
			if k != nil && !x.Deleting() {
				k.register(x.Name)
			}
		}
		rep.Machines = append(rep.Machines, r)
	}
	h.mu.Lock()
	h.running = map[string]string{}
	for uid := range wanted {
		h.running[uid] = h.name
	}
	if h.sent = append(h.sent, rep); len(h.sent) > 8 {
		h.sent = h.sent[1:]
	}
	h.mu.Unlock()
	h.report(ctx, cert, rep)
}

func (h *host) report(ctx context.Context, cert *x509.Certificate, rep wire.Report) {
	if h.post(ctx, cert, "report", rep, nil) == http.StatusGone {
		h.mu.Lock()
		h.cert, h.running = nil, map[string]string{} // removed: it takes all away and may join again
		h.mu.Unlock()
	}
}

// replay sends an old report once more.
func (h *host) replay(n int) {
	h.mu.Lock()
	cert, old := h.cert, slices.Clone(h.sent)
	h.mu.Unlock()
	if cert != nil && len(old) > 0 {
		h.post(h.m.ctx, cert, "report", old[n%len(old)], nil)
	}
}

func (h *host) post(ctx context.Context, cert *x509.Certificate, path string, body, into any) int {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/agent/"+path, bytes.NewReader(text))
	r.RemoteAddr = netip.AddrPortFrom(h.address, 9).String()
	if cert != nil {
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}}
	}
	w := httptest.NewRecorder()
	h.m.hub().ServeHTTP(w, r)
	if w.Code == http.StatusOK && into != nil {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			panic(err)
		}
	}
	return w.Code
}
