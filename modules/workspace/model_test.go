package workspace_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"github.com/multipaas/multipaas/modules/node"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// TestModel lets tenants, operators and hosts do anything in any order while the
// server is killed at any of its commits, hosts fall silent, reports come late and
// twice, and others write what it writes. Then it is left alone, and everything
// must come to be as it was wanted last, and nothing be left of what was not.
//
// The store, the controllers of workspaces, machines, nodes, apps and tasks are
// real; planes and hosts are their data alone. A failure is made smaller and
// printed with the seed that brings it again.
func TestModel(t *testing.T) {
	runs := "12"
	if os.Getenv("MULTIPAAS_LONG") != "" {
		runs = "400"
	}
	set := givenFlags()
	for name, value := range map[string]string{"rapid.checks": runs, "rapid.shrinktime": "1m", "rapid.nofailfile": "true"} {
		if old := flag.Lookup(name).Value.String(); !set[name] {
			if err := flag.Set(name, value); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = flag.Set(name, old) }()
		}
	}
	etcd := storetest.Start(t)
	began, steps, kills, sequences := time.Now(), 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(rt, etcd)
		defer m.close()
		for _, s := range rapid.SliceOfN(stepGen(), 4, 16).Draw(rt, "steps") {
			m.do(s)
			steps++
		}
		m.settle()
		kills += m.kills
		sequences++
	})
	t.Logf("model: %d sequences, %d steps, %d kills in %v", sequences, steps, kills, time.Since(began).Round(time.Second))
}

// givenFlags are of who runs the tests: at a second run (-count) those are set that the
// first one has put back.
var givenFlags = sync.OnceValue(func() map[string]bool {
	set := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { set[f.Name] = true })
	return set
})

// settled is how long everything may take once there are no more faults: some
// seconds, on a machine that does nothing else.
const settled = 90 * time.Second

// step is one thing that happens.
type step struct {
	Verb string
	A, B int
}

func stepGen() *rapid.Generator[step] {
	return rapid.Custom(func(t *rapid.T) step {
		verbs := []string{"create", "create", "scale", "delete", "app", "join", "join", "silence", "return", "remove", "kill", "kill", "restart", "replay", "noise", "wait"}
		return step{rapid.SampledFrom(verbs).Draw(t, "verb"), rapid.IntRange(0, 2).Draw(t, "a"), rapid.IntRange(0, 7).Draw(t, "b")}
	})
}

// model is what was asked for and acknowledged, beside the parts that work on it.
type model struct {
	*rapid.T
	ctx    context.Context
	etcd   *storetest.Etcd
	db     *store.Store // never fails: what people and hosts see
	world  *world
	server *server
	now    atomic.Pointer[server] // the same, for hosts
	hosts  map[string]*host
	want   map[string]int // machines of each workspace that shall be there
	apps   map[string]bool
	kills  int
}

func newModel(t *rapid.T, etcd *storetest.Etcd) *model {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	if _, err := etcd.Client.Delete(ctx, "/multipaas/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	m := &model{T: t, ctx: ctx, etcd: etcd, db: store.New(etcd.Client), world: newWorld(), hosts: map[string]*host{}, want: map[string]int{}, apps: map[string]bool{}}
	m.start()
	return m
}

func (m *model) start() {
	m.server = startServer(m)
	m.now.Store(m.server)
}

func (m *model) hub() *node.Hub { return m.now.Load().hub }

func (m *model) close() {
	for _, h := range m.hosts {
		h.down()
	}
	m.server.stop()
}

func workspaceKey(n int) string { return fmt.Sprintf("acme/web/w%d", n) }
func nodeName(n int) string     { return fmt.Sprintf("n%d", n) }

func (m *model) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// do makes one step, as the API would: one commit with its task.
func (m *model) do(s step) {
	key, name := workspaceKey(s.A), nodeName(s.A)
	ctx, db, tasks := m.ctx, m.db, m.server.asked
	w, err := store.Of[resource.Workspace](db).Get(ctx, key)
	there := err == nil && !w.Deleting()
	switch s.Verb {
	case "create":
		if err == nil {
			return
		}
		w = &resource.Workspace{InOrganization: resource.InOrganization{Account: "acme", Organization: "web"}}
		w.Name = fmt.Sprintf("w%d", s.A)
		w.Spec = resource.WorkspaceSpec{Machines: s.B % 4, MachineSize: resource.Size{MilliCPU: 1000, MemoryBytes: 1 << 30, DiskBytes: 1 << 30}, PodSecurity: "baseline"}
		_, begin := tasks.Begin("workspaces.create", "me", w)
		m.must(db.Commit(ctx, store.Of[resource.Workspace](db).CreateOp(w), begin))
		m.want[key] = s.B % 4
	case "scale":
		if !there {
			return
		}
		_, err := store.Of[resource.Workspace](db).Modify(ctx, key, func(w *resource.Workspace) error { w.Spec.Machines = s.B % 4; return nil })
		m.must(err)
		m.want[key] = s.B % 4
	case "delete":
		if !there {
			return
		}
		w.DeletedAt = new(time.Now())
		_, begin := tasks.Begin("workspaces.delete", "me", w)
		m.must(db.Commit(ctx, store.Of[resource.Workspace](db).MarkDeletedOp(key), begin))
		delete(m.want, key)
		maps.DeleteFunc(m.apps, func(app string, _ bool) bool { return strings.HasPrefix(app, key+"/") })
	case "app":
		a := &resource.App{InWorkspace: resource.NewInWorkspace(fmt.Sprintf("acme/web/w%d", s.A), "")}
		a.Name = fmt.Sprintf("a%d", s.B%2)
		a.Spec = resource.AppSpec{Namespace: "default", Image: "hello:1", Instances: 1, Port: 8080}
		if !there || m.apps[a.Key()] {
			return
		}
		_, begin := tasks.Begin("apps.deploy", "me", a)
		m.must(db.Commit(ctx, store.Of[resource.App](db).CreateOp(a), begin, store.Of[resource.Workspace](db).ModifyOp(key, func(*resource.Workspace) error { return store.ErrSkip })))
		m.apps[a.Key()] = true
	case "join":
		if m.hosts[name] == nil {
			m.hosts[name] = &host{m: m, name: name, running: map[string]string{}, address: netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + s.A)})}
		}
		m.hosts[name].up()
	case "silence":
		if h := m.hosts[name]; h != nil {
			h.down()
			m.silent(name)
		}
	case "return":
		if h := m.hosts[name]; h != nil {
			h.up()
		}
	case "remove":
		n, err := store.Of[resource.Node](db).Get(ctx, name)
		h := m.hosts[name]
		if err != nil || n.Deleting() || h == nil {
			return
		}
		lost := !h.isUp()
		n.Spec.Lost, n.DeletedAt = lost, new(time.Now())
		_, begin := tasks.Begin("nodes.remove", "root", n)
		m.must(db.Commit(ctx, store.Of[resource.Node](db).ModifyOp(name, func(x *resource.Node) error {
			now := time.Now().UTC()
			x.DeletedAt, x.Spec.Lost = &now, lost
			return nil
		}), begin))
		if lost {
			delete(m.hosts, name) // its disk burned: what joins under its name is another
		}
	case "kill":
		m.server.kv.dieAt(s.B, s.A%2 == 0)
		select {
		case <-m.server.kv.died:
		case <-time.After(time.Duration(20*s.B) * time.Millisecond): // it had less to write than that
			m.server.kv.kill()
		}
		m.kills++
		m.server.stop()
		m.start()
	case "restart":
		m.server.stop()
		m.start()
	case "replay":
		if h := m.hosts[name]; h != nil {
			h.replay(s.B)
		}
	case "noise": // somebody else writes the same records, so that commits conflict
		for range 1 + s.B {
			all, _, err := store.Of[resource.Machine](db).List(ctx, "", "", 0)
			m.must(err)
			for _, x := range all {
				_, _ = store.Of[resource.Machine](db).Modify(ctx, x.Key(), func(x *resource.Machine) error { x.Status.Restarts++; return nil })
			}
			_, _ = store.Of[resource.Workspace](db).Modify(ctx, key, func(w *resource.Workspace) error {
				w.Status.Conditions.Set(resource.Condition{Type: "Noise", Status: resource.True, Message: fmt.Sprint(time.Now().UnixNano())})
				return nil
			})
		}
	case "wait":
		time.Sleep(time.Duration(15*s.B) * time.Millisecond) // lets things happen between steps; nothing depends on how many
	}
}

// silent writes what the monitor does when a host was silent for 40 s, which its
// own test is about.
func (m *model) silent(name string) {
	_, _ = store.Of[resource.Node](m.db).Modify(m.ctx, name, func(n *resource.Node) error {
		if n.Status.Phase == resource.Ready {
			n.Status.Phase = resource.Degraded
		}
		return nil
	})
}

// settle leaves everything alone, with all hosts back and one at least, until
// what is there is what is wanted.
func (m *model) settle() {
	if len(m.hosts) == 0 {
		m.hosts["n9"] = &host{m: m, name: "n9", running: map[string]string{}, address: netip.MustParseAddr("192.0.2.19")}
	}
	deadline := time.Now().Add(settled)
	why := "not looked at"
	for time.Now().Before(deadline) {
		for _, h := range m.hosts {
			h.up() // one that was removed joins again once it is gone
		}
		if why = m.wrong(); why == "" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	m.Fatalf("%v without faults, and still: %s", settled, why)
}

// wrong says what is not as wanted, "" if all is.
func (m *model) wrong() string {
	ctx, db := m.ctx, m.db
	workspaces, err1 := listed(ctx, store.Of[resource.Workspace](db))
	machines, err2 := listed(ctx, store.Of[resource.Machine](db))
	keys, err3 := listed(ctx, store.Of[resource.WorkspaceKeys](db))
	vnis, err4 := listed(ctx, store.Of[resource.VNI](db))
	nodes, err5 := listed(ctx, store.Of[resource.Node](db))
	apps, err6 := listed(ctx, store.Of[resource.App](db))
	routes, err7 := listed(ctx, store.Of[resource.Route](db))
	tasks, err8 := listed(ctx, store.Of[resource.Task](db))
	for _, err := range []error{err1, err2, err3, err4, err5, err6, err7, err8} {
		m.must(err)
	}
	if got, want := keysOf(workspaces), slices.Sorted(maps.Keys(m.want)); !slices.Equal(got, want) {
		return fmt.Sprintf("workspaces %v, want %v", got, want)
	}
	if got := keysOf(keys); !slices.Equal(got, keysOf(workspaces)) {
		return fmt.Sprintf("keys of workspaces %v, want those of %v", got, keysOf(workspaces))
	}
	if got, want := keysOf(apps), slices.Sorted(maps.Keys(m.apps)); !slices.Equal(got, want) {
		return fmt.Sprintf("apps %v, want %v", got, want)
	}
	for _, r := range routes {
		if !m.apps[r.Workspace+"/"+r.App] {
			return "a route of no app: " + r.Name
		}
	}
	var ids, claims []string
	per := map[string][]*resource.Machine{}
	for _, x := range machines {
		if x.Deleting() {
			return x.Key() + " is still being removed"
		}
		per[x.WorkspaceKey()] = append(per[x.WorkspaceKey()], x)
	}
	for _, v := range vnis {
		if v.Retired && len(v.Lost) > 0 {
			continue // a host burned with a disk
		}
		claims = append(claims, v.Name+" "+v.Workspace)
	}
	users := map[uint32]string{} // of the host: the first -> workspace
	for _, w := range workspaces {
		if why := m.wrongWorkspace(w, per[w.Key()]); why != "" {
			return w.Key() + ": " + why
		}
		for _, x := range per[w.Key()] {
			if other, ok := users[x.Spec.FirstUID]; x.Spec.FirstUID == 0 || ok && other != w.Key() {
				return fmt.Sprintf("%s has users from %d on, those of %q", x.Key(), x.Spec.FirstUID, other)
			}
			users[x.Spec.FirstUID] = w.Key()
		}
		delete(per, w.Key())
		ids = append(ids, w.Status.ID)
		if claim := fmt.Sprint(w.Status.VNI, " ", w.Key()); !slices.Contains(claims, claim) {
			return fmt.Sprintf("VNIs %v, want %s", claims, claim)
		}
	}
	slices.Sort(ids)
	if len(slices.Compact(ids)) != len(claims) || len(per) > 0 {
		return fmt.Sprintf("VNIs %v for workspaces %v; machines of no workspace: %v", claims, ids, slices.Collect(maps.Keys(per)))
	}
	planes, _ := m.world.List()
	attached, _ := networks{m.world}.Attached()
	if !slices.Equal(planes, ids) || !slices.Equal(attached, ids) {
		return fmt.Sprintf("planes %v and networks %v of workspaces %v", planes, attached, ids)
	}
	for _, n := range nodes {
		if n.Deleting() || m.hosts[n.Name] == nil || n.Status.Phase != resource.Ready {
			return fmt.Sprintf("node %s is %s", n.Name, n.Status.Phase)
		}
	}
	for _, h := range m.hosts {
		var want []string
		for _, x := range machines {
			if x.Spec.Node == h.name {
				want = append(want, x.UID)
			}
		}
		if got := h.runs(); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			return fmt.Sprintf("host %s runs %v, want %v", h.name, got, want)
		}
	}
	for _, t := range tasks {
		if !t.Ended() && !m.apps[t.Spec.Target] {
			return fmt.Sprintf("task %s of %s is %s", t.Spec.Operation, t.Spec.Target, t.Status.State)
		}
	}
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	if len(m.world.wrong) > 0 {
		m.Fatalf("what must never happen: %v", m.world.wrong)
	}
	return ""
}

func (m *model) wrongWorkspace(w *resource.Workspace, machines []*resource.Machine) string {
	if w.Status.Phase != resource.Ready || w.Status.ObservedGeneration != w.Generation || w.Status.MachinesReady != m.want[w.Key()] || len(machines) != m.want[w.Key()] {
		return fmt.Sprintf("%s with %d of %d machines, %d ready: %+v", w.Status.Phase, len(machines), m.want[w.Key()], w.Status.MachinesReady, w.Status.Conditions)
	}
	seen := map[string]string{}
	slots := map[int]string{}
	var names []string
	for _, x := range machines {
		names = append(names, x.Name)
		for _, own := range []string{x.Name, x.Spec.Address.String(), x.Spec.MAC, x.Spec.PodCIDR.String(), fmt.Sprint(x.Spec.Index)} {
			if seen[own] != "" {
				return fmt.Sprintf("%s and %s both have %s", seen[own], x.Name, own)
			}
			seen[own] = x.Name
		}
		slot := w.Status.NodeSlots[x.Spec.Node]
		if slot == 0 || slots[slot] != "" && slots[slot] != x.Spec.Node {
			return fmt.Sprintf("slots %v", w.Status.NodeSlots)
		}
		slots[slot] = x.Spec.Node
		if x.Status.Phase != resource.Ready {
			return x.Name + " is " + string(x.Status.Phase)
		}
	}
	m.world.mu.Lock()
	k := m.world.clusters[w.Status.ID]
	m.world.mu.Unlock()
	slices.Sort(names)
	zones, hosts := map[string]string{}, map[string]string{}
	for _, x := range machines {
		if k == nil {
			break
		}
		zone := k.zone(x.Name)
		if was, known := zones[x.Spec.Node]; known && was != zone || zone == "" || strings.Contains(zone, x.Spec.Node) {
			return fmt.Sprintf("the node %s on host %s is in zone %q, another one there in %q", x.Name, x.Spec.Node, zone, was)
		}
		if other, known := hosts[zone]; known && other != x.Spec.Node {
			return fmt.Sprintf("hosts %s and %s are one zone, %s", other, x.Spec.Node, zone)
		}
		zones[x.Spec.Node], hosts[zone] = zone, x.Spec.Node
	}
	if k != nil && !k.hears(machines) {
		return "its plane does not hear its machines, or others than them"
	}
	if k == nil || k.names() != strings.Join(names, " ") {
		return fmt.Sprintf("Kubernetes nodes are not the machines %v", names)
	}
	return ""
}

func listed[T resource.Object](ctx context.Context, k store.Kind[T]) ([]T, error) {
	all, _, err := k.List(ctx, "", "", 0)
	return all, err
}

func keysOf[T resource.Object](all []T) []string {
	var keys []string
	for _, x := range all {
		keys = append(keys, x.Key())
	}
	return slices.Sorted(slices.Values(keys))
}

var quiet = slog.New(slog.DiscardHandler)
