// Package node is the server's side of the hosts that joined the platform; it
// runs on servers only. The Hub redeems join tokens, signs certificates, streams
// to every agent what shall be on its host and takes down what agents see; the
// Monitor notices hosts that fell silent and takes removed nodes to their end.
//
// It promises that an agent is told of nothing but what is placed on its host,
// gets certificates for nothing else, and is never taken at its word about what
// belongs to others. A removed node's certificate is worthless at once.
//
// Parties: the agents of hosts (modules/agent) speak modules/wire with the Hub;
// controllers place machines by writing resources; the registry asks the Hub
// whose images a node may pull. Only package appliance imports it.
package node

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/appliance/seal"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// certificateLife is how long a node's certificate is valid. It is renewed at
// two thirds, so a node may be away for a month and still come back by itself.
const certificateLife = 90 * 24 * time.Hour

// maxBody bounds what an agent may send: a report of 250 machines is 60 KB.
const maxBody = 1 << 20

// HubConfig is what a Hub needs.
type HubConfig struct {
	Log     *slog.Logger
	Store   *store.Store
	CA      *pki.CA   // signs nodes' certificates
	Storage *pki.CA   // signs those by which hosts with shared volumes know each other, and nothing else
	Seal    *seal.Key // opens the keys of encrypted volumes
	Tokens  Tokens
	Server  string     // this server's name
	Address netip.Addr // this server's underlay address
	Plan    wire.Plan

	Nodes       *store.Cache[*resource.Node]
	Workspaces  *store.Cache[*resource.Workspace]
	Machines    *store.Cache[*resource.Machine]
	Keys        *store.Cache[*resource.WorkspaceKeys]
	Claims      *store.Cache[*resource.VNI]
	Volumes     *store.Cache[*resource.Volume]
	Snapshots   *store.Cache[*resource.Snapshot]
	Trash       *store.Cache[*resource.Trash]
	Registry    string // host:port
	UpstreamDNS []netip.AddrPort
	// Front says at which addresses this server's front door is now, and how it is found
	// by name. Nil: it has none.
	Front func() ([]netip.Addr, wire.Door)
	Pace  time.Duration // how often a node may report; 0: wire.ReportPace and PagePace

	Own Addresses // what this server has besides Address; nil: nothing
	// Named are addresses that the operator has given to somebody: no host has them
	// because it says so.
	Named []netip.Addr
	// Reached says whether tenants reach an address, if it is no host's. Nil: any.
	Reached func(netip.Addr) bool
}

// Addresses are those that a host has besides its own on the platform's network.
type Addresses interface {
	List() []netip.Addr
	// OnChange has fn called after each change; it doesn't block.
	OnChange(fn func())
}

// Tokens redeems join tokens.
type Tokens interface {
	// Redeem uses up the token for the node called name, which asks from the
	// address source. Called once per join; a join that died may be repeated for
	// a while by the same name. The error says why a token is refused, in words
	// for the operator.
	Redeem(ctx context.Context, token, name, source string) error
}

// Hub is an http.Handler for what is below wire.AgentPath. It is safe for
// concurrent use.
type Hub struct {
	cfg HubConfig
	mux *http.ServeMux
	now func() time.Time // time.Now, or a test's
	// began is since when this server hears nodes.
	began time.Time

	mu      sync.Mutex
	changed chan struct{}     // closed and replaced when anything an agent is told may have changed
	paces   map[string]*paces // of each node, by name

	sharing sync.Mutex // while cluster is made
	cluster *cluster

	items map[string]itemTaker // by kind
	sends sends
}

// paces are how often a node may say something.
type paces struct {
	reports flowcontrol.RateLimiter
	pages   flowcontrol.RateLimiter // of items
	// addresses bounds how often one of its addresses comes or goes: each time all
	// hosts look after all their networks.
	addresses flowcontrol.RateLimiter
}

func (p *paces) ofReports() flowcontrol.RateLimiter { return p.reports }
func (p *paces) ofPages() flowcontrol.RateLimiter   { return p.pages }

// addressPace is how often, in the long run, an address of a node may come or go.
const addressPace = 10 * time.Second

// NewHub makes a Hub.
func NewHub(cfg HubConfig) *Hub {
	h := &Hub{cfg: cfg, now: time.Now, began: time.Now(),
		changed: make(chan struct{}), paces: map[string]*paces{}}
	// Heartbeats change nodes every ten seconds, and no agent is told of them.
	cfg.Nodes.OnChangeOf(func(n *resource.Node) any {
		// Three count for who leads the hosts with shared volumes, and of what.
		return []any{n.Status.Address, n.Status.Addresses, n.Gone(), wantedPools(n), n.Status.StorageMember,
			n.Silent(), n.Status.StorageRenew.IsZero(), n.CopiesShared()}
	}, h.nodeChanged)
	cfg.Workspaces.OnChange(func(string) { h.wake() })
	cfg.Machines.OnChange(func(string) { h.wake() })
	cfg.Keys.OnChange(func(string) { h.wake() })
	// Nor are they told what they say themselves.
	cfg.Volumes.OnChangeOf(func(v *resource.Volume) any {
		goes := len(v.Status.Leaving) > 0 && v.Whole() // what is leaving
		v.Status.UsedBytes, v.Status.Attachments = 0, nil
		if s := v.Status.Scrub; s != nil {
			v.Status.Scrub = &resource.VolumeScrub{Wanted: s.Wanted, Done: s.Done, Brick: s.Brick}
		}
		for i := range v.Status.Bricks {
			b := &v.Status.Bricks[i]
			b.UsedBytes, b.Online, b.Heal, b.HealingSince, b.GivenSince, b.Message = 0, false, 0, time.Time{}, time.Time{}, ""
			b.Looked, b.Process, b.Falls, b.Server = 0, 0, 0, ""
			b.Mended, b.MendedAt = 0, time.Time{}
		}
		return []any{v, goes}
	}, func(string) { h.wake() })
	cfg.Snapshots.OnChangeOf(func(s *resource.Snapshot) any { s.Status.UsedBytes = 0; return s }, func(string) { h.wake() })
	cfg.Trash.OnChange(func(string) { h.wake() })
	if cfg.Own != nil {
		cfg.Own.OnChange(h.wake)
	}
	h.items = map[string]itemTaker{
		wire.VolumeItem:  reads(h.takeVolume),
		wire.BrickItem:   reads(h.takeBrick),
		wire.ClusterItem: reads(h.takeCluster),
		wire.ScrubItem:   reads(h.takeScrub),
	}
	h.mux = http.NewServeMux()
	h.mux.HandleFunc("POST "+wire.JoinPath, func(w http.ResponseWriter, r *http.Request) {
		reply(h, w, r, func(req wire.JoinRequest) (*wire.JoinResponse, error) { return h.join(r.Context(), req, r.RemoteAddr) })
	})
	h.mux.HandleFunc("GET "+wire.StatePath, h.asNode(h.state))
	h.mux.HandleFunc("POST "+wire.ReportPath, h.asNode(h.paced((*paces).ofReports, h.takeReport)))
	h.mux.HandleFunc("POST "+wire.ItemsPath, h.asNode(h.paced((*paces).ofPages, h.takeItems)))
	h.mux.HandleFunc("GET "+wire.FetchPath, h.asNode(h.fetch))
	h.mux.HandleFunc("POST "+wire.SendPath, h.asNode(h.send))
	h.mux.HandleFunc("POST "+wire.AddressPath, h.asNode(h.takeAddress))
	h.mux.HandleFunc("POST "+wire.CertificatePath, asked(h, h.renew))
	h.mux.HandleFunc("POST "+wire.StorageCertificatePath, asked(h, h.storageCertificate))
	h.mux.HandleFunc("POST "+wire.MachineCertificatesPath, asked(h, h.machineCertificates))
	h.mux.HandleFunc("POST "+wire.VolumeKeyPath, asked(h, h.volumeKey))
	h.mux.HandleFunc("POST "+wire.LeavePath, asked(h, h.leave))
	h.mux.HandleFunc("POST "+wire.WipedPath, func(w http.ResponseWriter, r *http.Request) {
		err := h.wiped(r)
		h.answer(w, nothing{}, err)
	})
	return h
}

// ServeHTTP answers agents.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != wire.SendPath { // a volume is as large as it is
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	}
	h.mux.ServeHTTP(w, r)
}

// nodeChanged wakes the streams: a node came, went, moved, fell silent or came back.
func (h *Hub) nodeChanged(name string) {
	if _, ok := h.cfg.Nodes.Get(name); !ok {
		h.mu.Lock()
		delete(h.paces, name)
		h.mu.Unlock()
	}
	h.wake()
}

func (h *Hub) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Hub) waitChange() chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// refusal is an error an agent is told, with its HTTP status.
type refusal struct {
	status int
	text   string
}

// pace says how often a node may speak.
func (h *Hub) pace(node string) *paces {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.paces[node]
	if p == nil {
		every := func(pace time.Duration, burst int) flowcontrol.RateLimiter {
			return flowcontrol.NewTokenBucketRateLimiter(float32(time.Second)/float32(pace), burst)
		}
		p = &paces{
			reports:   every(cmp.Or(h.cfg.Pace, wire.ReportPace), wire.ReportBurst),
			pages:     every(cmp.Or(h.cfg.Pace, wire.PagePace), wire.PageBurst),
			addresses: every(addressPace, wire.MaxAddresses),
		}
		h.paces[node] = p
	}
	return p
}

func (r refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return refusal{status, fmt.Sprintf(format, args...)}
}

func (h *Hub) answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		_ = json.NewEncoder(w).Encode(v)
		return
	}
	var no refusal
	if !errors.As(err, &no) {
		h.cfg.Log.Error("agent request", "err", err)
		no = refusal{http.StatusInternalServerError, "internal error: see the server's log"}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(no.status)
	_ = json.NewEncoder(w).Encode(map[string]any{"status": no.status, "title": http.StatusText(no.status), "detail": no.text})
}

// reply does what a request asks for. Fields that this server does not know are a
// newer agent's: while a platform is upgraded they may come first.
func reply[Req, Res any](h *Hub, w http.ResponseWriter, r *http.Request, do func(Req) (Res, error)) {
	var req Req
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		h.answer(w, nil, refusal{http.StatusBadRequest, "the request is not understood: " + err.Error()})
		return
	}
	res, err := do(req)
	h.answer(w, res, err)
}

// asked is a handler of what nodes ask: do is told which one does.
func asked[Req, Res any](h *Hub, do func(context.Context, *resource.Node, Req) (Res, error)) http.HandlerFunc {
	return h.asNode(func(w http.ResponseWriter, r *http.Request, node *resource.Node) {
		reply(h, w, r, func(req Req) (Res, error) { return do(r.Context(), node, req) })
	})
}

// join lets a machine with a good token become a node. Everything is checked
// before the token is used up; a join that died half-way may be repeated by the
// same name with the same token.
func (h *Hub) join(ctx context.Context, req wire.JoinRequest, source string) (*wire.JoinResponse, error) {
	if err := resource.CheckName("node", req.Name); err != nil {
		return nil, refusal{http.StatusUnprocessableEntity, err.Error()}
	}
	if req.Name == h.cfg.Server {
		return nil, refuse(http.StatusConflict, "node %q: the server has this name: choose another with --name", req.Name)
	}
	existing, err := store.Of[resource.Node](h.cfg.Store).Get(ctx, req.Name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		existing = nil
	case err != nil:
		return nil, err
	case existing.Status.Phase == resource.Ready:
		return nil, refuse(http.StatusConflict, "node %q has joined already and is alive: "+
			"choose another name with --name, or remove it first with: mp nodes remove %s", req.Name, req.Name)
	case existing.Deleting():
		return nil, refuse(http.StatusConflict, "node %q is being removed: wait until it is gone from: mp nodes list", req.Name)
	case !existing.Status.HeartbeatAt.IsZero():
		// It is only silent now. Another machine must not become it, with all the
		// machines of tenants it has.
		return nil, refuse(http.StatusConflict, "node %q has joined already and does not report now: "+
			"choose another name with --name, or give it up first with: mp nodes remove %s --lost", req.Name, req.Name)
	}
	if err := pki.CheckCSR(req.CSR); err != nil {
		return nil, unusable(err)
	}
	if err := h.cfg.Tokens.Redeem(ctx, req.Token, req.Name, source); err != nil {
		return nil, refusal{http.StatusUnauthorized, err.Error()}
	}
	failpoint.Reach("node/join/token-spent")
	if existing != nil {
		// A join that is repeated. It becomes another node: of two machines that
		// came with one token only the last is one, and the other is told so.
		if err := store.Of[resource.Node](h.cfg.Store).Delete(ctx, existing); err != nil {
			return nil, fmt.Errorf("join %s: %w", req.Name, err)
		}
	}
	node := &resource.Node{}
	node.Name = req.Name
	node.Status.Phase = resource.Pending
	if err := store.Of[resource.Node](h.cfg.Store).Create(ctx, node); err != nil {
		return nil, fmt.Errorf("join %s: %w", req.Name, err)
	}
	failpoint.Reach("node/join/recorded")
	cert, err := h.sign(req.CSR, node)
	if err != nil {
		return nil, err
	}
	h.cfg.Log.Info("node joined", "node", req.Name)
	failpoint.Reach("node/join/signed")
	return &wire.JoinResponse{Certificate: cert, CA: h.cfg.CA.CertPEM()}, nil
}

func (h *Hub) sign(csr []byte, node *resource.Node) ([]byte, error) {
	cert, err := h.cfg.CA.Sign(csr, pki.Request{CommonName: node.Name,
		Organizations: []string{wire.NodesOrganization, wire.NodeUIDPrefix + node.UID}, Client: true, Life: certificateLife})
	if err != nil {
		return nil, unusable(err)
	}
	return cert, nil
}

func unusable(err error) refusal {
	return refusal{http.StatusBadRequest, "the certificate request is not usable: " + err.Error()}
}

// belongs says whether a verified client certificate is the node's, and counts.
// Another node of its name has another UID.
func belongs(cert *x509.Certificate, node *resource.Node) bool {
	of := cert.Subject.Organization
	return !node.Gone() && slices.Contains(of, wire.NodesOrganization) && slices.Contains(of, wire.NodeUIDPrefix+node.UID)
}

func (h *Hub) asNode(serve nodeHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		node, err := h.identify(r)
		if err != nil {
			h.answer(w, nil, err)
			return
		}
		serve(w, r, node)
	}
}

// nodeCertificate is the one that a node has shown. It may have been removed.
func nodeCertificate(r *http.Request) (*x509.Certificate, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 ||
		!slices.Contains(r.TLS.VerifiedChains[0][0].Subject.Organization, wire.NodesOrganization) {
		return nil, refusal{http.StatusUnauthorized, "a node's certificate is needed: join first with: multipaas node join"}
	}
	return r.TLS.VerifiedChains[0][0], nil
}

// identify returns the node that asks, which must be there still.
func (h *Hub) identify(r *http.Request) (*resource.Node, error) {
	cert, err := nodeCertificate(r)
	if err != nil {
		return nil, err
	}
	name := cert.Subject.CommonName
	if node, ok := h.cfg.Nodes.Get(name); ok && belongs(cert, node) {
		return node, nil
	}
	// The cache may be behind a join of a moment ago: ask the store itself.
	node, err := store.Of[resource.Node](h.cfg.Store).Get(r.Context(), name)
	switch {
	case err == nil && belongs(cert, node):
		return node, nil
	case err == nil || errors.Is(err, store.ErrNotFound):
		return nil, refuse(http.StatusGone, "node %q was removed from the platform", name)
	}
	return nil, refusal{http.StatusServiceUnavailable, "the store can't be read now: try again"}
}

// state streams what the node shall do: one JSON document per line, the whole
// state each time, an empty line as a sign of life.
func (h *Hub) state(w http.ResponseWriter, r *http.Request, node *resource.Node) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	alive := time.NewTicker(wire.AliveEvery)
	defer alive.Stop()
	var last string
	for {
		changed, sends := h.waitChange(), h.sends.waitChange(node.UID) // before reading, so that nothing is missed
		line, err := json.Marshal(h.stateOf(node))
		if err != nil {
			h.cfg.Log.Error("state of node", "node", node.Name, "err", err)
			return
		}
		if string(line) != last {
			last = string(line)
			if send(w, out, append(line, '\n')) != nil {
				return
			}
		}
	wait:
		for {
			select {
			case <-r.Context().Done():
				return
			case <-changed:
				break wait
			case <-sends:
				break wait
			case <-alive.C:
				if send(w, out, []byte("\n")) != nil {
					return
				}
			}
		}
		if now, ok := h.cfg.Nodes.Get(node.Name); ok && (now.UID != node.UID || now.Gone()) {
			return // removed, and maybe another one has joined under its name
		} else if !ok && last != "" {
			if _, err := store.Of[resource.Node](h.cfg.Store).Get(r.Context(), node.Name); errors.Is(err, store.ErrNotFound) {
				return // removed: the agent's next request is told so
			}
		}
	}
}

// send writes to a stream, bounded in time. The deadline is taken back: HTTP/2
// resets an idle stream whose write deadline passes.
func send(w io.Writer, out *http.ResponseController, data []byte) error {
	if err := out.SetWriteDeadline(time.Now().Add(wire.AliveEvery)); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return out.SetWriteDeadline(time.Time{})
}

func (h *Hub) stateOf(node *resource.Node) *wire.State {
	var service []netip.Addr
	var door wire.Door
	if h.cfg.Front != nil {
		service, door = h.cfg.Front()
	}
	state := &wire.State{Node: node.Name, Registry: h.cfg.Registry, UpstreamDNS: h.cfg.UpstreamDNS, Door: door,
		Networks: []wire.Network{}, Machines: []wire.Machine{}}
	nodes := h.cfg.Nodes.List("")
	hosts := wire.Hosts(nodes, h.cfg.Server, h.cfg.Address)
	var own []netip.Addr
	if h.cfg.Own != nil {
		own = h.cfg.Own.List()
	}
	closed := wire.Closed(nodes, hosts, service, own)
	perWorkspace := map[string][]*resource.Machine{}
	mine := map[string]bool{}
	for _, m := range h.cfg.Machines.List("") {
		perWorkspace[m.WorkspaceKey()] = append(perWorkspace[m.WorkspaceKey()], m)
		if m.Spec.Node == node.Name {
			mine[m.WorkspaceKey()] = true
		}
	}
	for _, ws := range h.cfg.Workspaces.List("") {
		if !mine[ws.Key()] || ws.Status.ID == "" {
			continue
		}
		keys, ok := h.cfg.Keys.Get(ws.Key())
		if !ok {
			continue // committed with the ID; its own cache follows
		}
		if ws.Status.NodeSlots[node.Name] == 0 {
			continue // the machine came first in the cache; the workspace follows
		}
		machines := perWorkspace[ws.Key()]
		state.Networks = append(state.Networks,
			wire.NetworkFor(ws, h.cfg.Plan, machines, node.Name, h.cfg.Server, hosts, service, closed))
		for _, m := range machines {
			if m.Spec.Node != node.Name {
				continue
			}
			state.Machines = append(state.Machines, wire.Machine{
				Key: m.Key(), UID: m.UID, Name: m.Name, NetworkID: ws.Status.ID, Spec: m.Spec, Plan: h.cfg.Plan,
				KubernetesVersion: ws.Spec.KubernetesVersion, ClusterCA: keys.CACert, Place: wire.Place(ws.UID, node.UID),
				Remove: m.Deleting() && m.Status.Conditions.Is(resource.MachineDrained)})
		}
	}
	state.Sends, state.Files = h.sends.of(node.UID)
	c := h.shared()
	state.Volumes, state.Storage = h.volumesOf(node, c.volumes), h.storageOf(node, c)
	state.Pools = h.poolsOf(node)
	return state
}

// renew signs a new certificate for a node that still has a good one.
func (h *Hub) renew(_ context.Context, node *resource.Node, req wire.JoinRequest) (res wire.JoinResponse, err error) {
	res.CA = h.cfg.CA.CertPEM()
	res.Certificate, err = h.sign(req.CSR, node)
	return res, err
}

// machineCertificates signs for a machine that is placed on the asking node.
// Names and use come from the platform's own records, never from the request.
func (h *Hub) machineCertificates(
	ctx context.Context,
	node *resource.Node,
	req wire.MachineCertificatesRequest,
) (*wire.MachineCertificates, error) {
	m, err := store.Of[resource.Machine](h.cfg.Store).Get(ctx, req.Machine)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) ||
		(err == nil && (m.Spec.Node != node.Name || m.UID != req.UID || !m.Lives())) {
		return nil, refuse(http.StatusNotFound, "machine %q is not on node %s", req.Machine, node.Name)
	} else if err != nil {
		return nil, err
	}
	keys, err := store.Of[resource.WorkspaceKeys](h.cfg.Store).Get(ctx, m.WorkspaceKey())
	if err != nil {
		return nil, err
	}
	ca, err := pki.ParseCA(keys.CACert, keys.CAKey)
	if err != nil {
		return nil, fmt.Errorf("authority of workspace %s: %w", m.WorkspaceKey(), err)
	}
	address, _ := h.cfg.Plan.Machine(m.Spec.Index)
	user, self, hosts := "system:node:"+m.Name, wire.MachineUIDPrefix+m.UID, []string{m.Name, address.String()}
	nodes := []string{"system:nodes", self}
	var out wire.MachineCertificates
	for _, c := range []struct {
		csr []byte
		req pki.Request
		to  *[]byte
	}{
		// Names as kubeadm gives them (Kubernetes docs, PKI certificates and requirements).
		{req.KubeletClient, pki.Request{CommonName: user, Organizations: nodes, Client: true}, &out.KubeletClient},
		{req.KubeletServing, pki.Request{CommonName: user, Organizations: nodes, Server: true, Hosts: hosts}, &out.KubeletServing},
		{req.KubeProxy, pki.Request{CommonName: "system:kube-proxy", Organizations: []string{self}, Client: true}, &out.KubeProxy},
	} {
		c.req.Life = wire.MachineCertificateLife
		if *c.to, err = ca.Sign(c.csr, c.req); err != nil {
			return nil, unusable(err)
		}
	}
	return &out, nil
}

// leave marks the node as going, unless tenants' volumes are on it. Its machines are drained and taken away; when
// nothing is left the node is removed and the agent is told so.
func (h *Hub) leave(ctx context.Context, node *resource.Node, _ nothing) (nothing, error) {
	nodes := store.Of[resource.Node](h.cfg.Store)
	for {
		// Read before its volumes are: one that is placed after that changes it.
		now, err := nodes.Get(ctx, node.Name)
		if err == nil && now.UID != node.UID {
			err = store.ErrNotFound
		}
		if err != nil || now.Deleting() {
			return nothing{}, err
		}
		if err := h.keepsVolumes(ctx, now); err != nil {
			return nothing{}, err
		}
		now.DeletedAt = new(time.Now().UTC())
		if err := nodes.Update(ctx, now); !errors.Is(err, store.ErrConflict) {
			failpoint.Reach("node/leave/marked")
			return nothing{}, err
		}
	}
}

// Runs says whether a machine of the workspace is placed on the node that a
// verified client certificate belongs to.
func (h *Hub) Runs(cert *x509.Certificate, workspace string) bool {
	node, ok := h.cfg.Nodes.Get(cert.Subject.CommonName)
	return ok && belongs(cert, node) && slices.ContainsFunc(h.cfg.Machines.List(workspace), func(m *resource.Machine) bool {
		return m.Spec.Node == node.Name && m.WorkspaceKey() == workspace
	})
}
