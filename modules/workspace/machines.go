package workspace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/internal/mirror"
	"github.com/multipaas/multipaas/modules/internal/reconcile"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// drainTime is how long pods may take to leave a machine that goes. Disruption
// budgets are honoured until then.
const drainTime = 2 * time.Minute

// overdue is how long the tenant's cluster may hinder the end of a machine: his
// webhooks can refuse or delay whatever we ask of it, and a plane may be broken
// for good. The host must become free nevertheless.
const overdue = 2 * drainTime

// maxDrained is how many pods of a machine are looked at, and evicted, at a time. A
// kubelet runs 110; a tenant may write that any number is there.
const maxDrained = 250

// place creates the machines that are missing and marks those that are too
// many. It returns what could not be placed, in words; "" when all is placed.
func (c *Controller) place(ctx context.Context, p *pass) (string, error) {
	w, going := p.Workspace, (*resource.Machine).Deleting
	if len(slices.DeleteFunc(slices.Clone(p.machines), going)) == w.Spec.Machines {
		c.starved.Delete(w.Key())
		return "", nil
	}
	c.placing.Lock()
	defer c.placing.Unlock()
	// The cache may be behind what this very loop wrote: ask the store.
	all, _, err := store.Of[resource.Machine](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return "", err
	}
	own := slices.DeleteFunc(slices.Clone(all), func(m *resource.Machine) bool { return m.WorkspaceKey() != w.Key() })
	stay := slices.DeleteFunc(slices.Clone(own), going)
	if extra := len(stay) - w.Spec.Machines; extra > 0 {
		// The youngest go first: the highest index.
		slices.SortFunc(stay, func(a, b *resource.Machine) int { return cmp.Compare(b.Spec.Index, a.Spec.Index) })
		for _, m := range stay[:extra] {
			if err := c.cfg.Store.Commit(ctx, c.markMachine(m, "")); err != nil && !errors.Is(err, store.ErrNotFound) {
				return "", err
			}
			failpoint.Reach("workspace/scale/machine-marked")
		}
		return "", nil
	}
	if usersOf(w) == 0 { // the controller's log says why
		p.again = reconcile.Soonest(p.again, time.Minute)
		return "no users of the hosts are free for new machines of it: it is tried again, and the operator's log says more", nil
	}
	c.starved.LoadOrStore(w.Key(), "") // before it is looked who has room: what comes meanwhile is told
	volumes, err := c.cfg.Store.OnHosts(ctx)
	if err != nil {
		return "", err
	}
	snapshots, _, err := store.Of[resource.Snapshot](c.cfg.Store).List(ctx, "", "", 0)
	if err != nil {
		return "", err
	}
	nodes := c.free(all, volumes, snapshots)
	for missing := w.Spec.Machines - len(stay); missing > 0; missing-- {
		node := choose(nodes, w.Spec.MachineSize, own)
		if node == nil {
			told, detail := shortage(nodes, missing, w.Spec.MachineSize)
			// It is looked at each second while it is new: what is known needs no saying.
			if last, known := c.starved.Swap(w.Key(), detail); !known || last != detail {
				c.cfg.Log.Warn("machines can't be placed", "workspace", w.Key(), "missing", missing, "nodes", detail)
			}
			return told, nil
		}
		m, err := c.create(ctx, w, own, node.name)
		if err != nil {
			return "", err
		}
		node.free = node.free.Sub(m.Spec.Size)
		own = append(own, m)
	}
	c.starved.Delete(w.Key())
	return "", nil
}

// freed queues the workspaces that wait for room.
func (c *Controller) freed() {
	c.starved.Range(func(key, _ any) bool {
		c.loop.Add(key.(string))
		return true
	})
}

// candidate is a node with what is free on it.
type candidate struct {
	name   string
	free   resource.Size
	usable string // why not, "" if it is
}

// free computes what is free on each node from what is promised to machines, volumes and snapshots.
func (c *Controller) free(
	machines []*resource.Machine, volumes []*resource.Volume, snapshots []*resource.Snapshot,
) []*candidate {
	promised, kept := resource.Promised(machines), resource.PromisedToVolumes(volumes)
	copies := resource.PromisedToSnapshots(snapshots)
	var out []*candidate
	for _, n := range c.cfg.Nodes.List("") {
		k := &candidate{name: n.Name, free: n.Status.Capacity.Sub(promised[n.Name]).
			Sub(resource.Size{DiskBytes: kept[resource.PoolAt{Node: n.UID}] + copies[resource.PoolAt{Node: n.UID}]})}
		switch {
		case n.Deleting():
			k.usable = "is being removed"
		case n.Spec.Unschedulable:
			k.usable = "is cordoned"
		case n.Status.Phase == resource.Pending:
			k.usable = "is nowhere that was confirmed"
		case n.Status.Phase != resource.Ready:
			k.usable = "does not report"
		case !slices.Contains(n.Status.Drivers, "sandbox"):
			k.usable = "can't run the sandbox driver"
		}
		out = append(out, k)
	}
	return out
}

// choose picks the node with the fewest machines of the workspace, and of those
// the one with the most free memory: a workspace spreads over hosts first. nil:
// none has room.
func choose(nodes []*candidate, size resource.Size, own []*resource.Machine) *candidate {
	count := map[string]int{}
	for _, m := range own {
		count[m.Spec.Node]++
	}
	fit := slices.DeleteFunc(slices.Clone(nodes), func(n *candidate) bool { return n.usable != "" || !size.Fits(n.free) })
	if len(fit) == 0 {
		return nil
	}
	return slices.MinFunc(fit, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(count[a.name], count[b.name]), cmp.Compare(b.free.MemoryBytes, a.free.MemoryBytes))
	})
}

// shortage says why machines can't be placed: to the tenant, who is told nothing
// of the hosts and of what others use, and to the operator, node by node.
func shortage(nodes []*candidate, missing int, size resource.Size) (told, detail string) {
	if len(nodes) == 0 {
		return "no node has joined yet; the operator makes a token with: multipaas token create --role node", "none has joined"
	}
	var why []string
	for _, n := range nodes {
		if n.usable != "" {
			why = append(why, n.name+" "+n.usable)
		} else {
			why = append(why, n.name+" has "+n.free.String()+" free")
		}
	}
	machines := "a machine"
	if missing > 1 {
		machines = fmt.Sprintf("%d machines", missing)
	}
	// What matters comes first: a terminal cuts long lines.
	told = fmt.Sprintf("no node has room for %s of %v; ask for smaller ones, or the operator for more nodes", machines, size)
	return told, strings.Join(why, ", ")
}

// create writes a new machine on a node, with the node's slot in the
// workspace's network in the same commit.
func (c *Controller) create(
	ctx context.Context, w *resource.Workspace, own []*resource.Machine, node string,
) (*resource.Machine, error) {
	if usersOf(w) == 0 { // the machine's root would be the host's
		return nil, fmt.Errorf("workspace %s has no range of the host's users yet; the next pass tries to give it one", w.Key())
	}
	used, hosts := map[int]bool{}, map[string]bool{node: true}
	for _, m := range own {
		used[m.Spec.Index] = true
		hosts[m.Spec.Node] = true
	}
	name := func(index int) string { return fmt.Sprintf("%s-%d", w.Name, index) }
	for index := 1; index <= resource.MaxMachines; index++ {
		used[index] = used[index] || slices.Contains(w.Status.StaleNodes, name(index))
	}
	index := lowest(used)
	if index > resource.MaxMachines {
		return nil, fmt.Errorf("workspace %s has %d machines and %d nodes of former ones that its cluster keeps: "+
			"no more fit into its address plan", w.Key(), len(own), len(w.Status.StaleNodes))
	}
	host, err := store.Of[resource.Node](c.cfg.Store).Get(ctx, node)
	if err != nil {
		return nil, err
	}
	claims, err := c.onClaims(ctx, w, func(v *resource.VNI) bool { return holdOn(v, host.UID, host.Name) })
	if err != nil {
		return nil, err
	}
	address, pods := c.cfg.Plan.Machine(index)
	m := &resource.Machine{InWorkspace: resource.NewInWorkspace(w.Key(), name(index))}
	m.Spec = resource.MachineSpec{Node: node, Driver: "sandbox", Size: w.Spec.MachineSize, Index: index,
		Address: address, MAC: wire.MAC(address), PodCIDR: pods, FirstUID: usersOf(w)}
	m.Status.Phase = resource.Creating

	db := c.cfg.Store
	err = db.Commit(ctx, append(claims,
		store.Of[resource.Machine](db).CreateOp(m),
		store.Of[resource.Workspace](db).ModifyOp(w.Key(), func(now *resource.Workspace) error {
			if now.UID != w.UID || now.Deleting() || slices.Contains(now.Status.StaleNodes, m.Name) {
				return store.ErrConflict
			}
			// Hosts without machines give their slot back.
			slots, taken := map[string]int{}, map[int]bool{}
			for host, slot := range now.Status.NodeSlots {
				if hosts[host] {
					slots[host], taken[slot] = slot, true
				}
			}
			slots[node] = cmp.Or(slots[node], lowest(taken))
			now.Status.NodeSlots = slots
			return nil
		}),
		c.stays(host))...)
	if err == nil {
		failpoint.Reach("workspace/machine/placed")
		c.cfg.Log.Info("machine placed", "machine", m.Key(), "node", node)
	}
	return m, err
}

// lowest is the first number from 1 on that is not taken.
func lowest(taken map[int]bool) int {
	n := 1
	for taken[n] {
		n++
	}
	return n
}

// stays is a write that changes nothing and fails if the node is gone or going
// when the commit happens, or another one has its name: the cache may not know yet,
// and a machine on a node that is no more would never be taken down.
func (c *Controller) stays(node *resource.Node) store.Op {
	return store.Of[resource.Node](c.cfg.Store).ModifyOp(node.Name, func(n *resource.Node) error {
		if n.Deleting() || n.UID != node.UID {
			return fmt.Errorf("node %s is being removed", node.Name)
		}
		return store.ErrSkip
	})
}

// followMachines compares machines with the cluster's nodes: readiness, pod
// ranges, draining, removal.
func (c *Controller) followMachines(ctx context.Context, p *pass) error {
	if err := c.forgetStale(ctx, p); err != nil {
		return err
	}
	var waiting []string
	for _, m := range p.machines {
		if m.Deleting() {
			again, err := c.retire(ctx, p.run, m)
			if err != nil {
				return fmt.Errorf("remove machine %s: %w", m.Key(), err)
			}
			p.again = reconcile.Soonest(p.again, again)
			waiting = append(waiting, m.Name+" is being taken away")
			continue
		}
		ok, why := p.run.node(ctx, m, c.zoneOf(p.Workspace, m))
		if err := c.observeNode(ctx, m, ok, why); err != nil {
			return err
		}
		if ok && m.Status.Conditions.Is(resource.MachineRunning) {
			p.ready++
		} else {
			if run := m.Status.Conditions.Get(resource.MachineRunning); run != nil && run.Message != "" {
				why = run.Message
			}
			waiting = append(waiting, m.Name+": "+why)
		}
	}
	message := strings.Join(waiting, "; ")
	if p.ready < p.Spec.Machines && message == "" {
		message = fmt.Sprintf("%d of %d machines are ready", p.ready, p.Spec.Machines)
	}
	p.set(resource.WorkspaceMachinesReady, "Ready", "Waiting", message)
	return nil
}

// zoneOf is the zone of the host that a machine runs on, "" if that is not known.
// Where the operator names none, each host is one: machines that go together with it
// don't look apart.
func (c *Controller) zoneOf(w *resource.Workspace, m *resource.Machine) string {
	n, ok := c.cfg.Nodes.Get(m.Spec.Node)
	if !ok {
		return ""
	}
	return cmp.Or(n.Spec.Zone, wire.Place(w.UID, n.UID))
}

// node says whether the machine's Kubernetes node is ready, and gives it its
// pod range and its zone, which the platform decides and not the cluster.
func (r *run) node(ctx context.Context, m *resource.Machine, where string) (bool, string) {
	now := r.now()
	if !now.serving || now.nodes == nil {
		return false, "waiting for the plane"
	}
	n := now.nodes.Get("", m.Name)
	if n == nil {
		return false, cmp.Or(now.tooMany(), "its kubelet has not registered yet")
	}
	if where == "" {
		where = n.zone
	}
	if n.podCIDR == "" || n.zone != where {
		// The range is the same ever after: Kubernetes lets it be written once.
		patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}},"spec":{"podCIDR":%q,"podCIDRs":[%[3]q]}}`,
			corev1.LabelTopologyZone, where, cmp.Or(n.podCIDR, m.Spec.PodCIDR.String()))
		_, err := now.client.CoreV1().Nodes().Patch(ctx, m.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		if err != nil {
			return false, err.Error()
		}
	}
	if n.ready {
		return true, ""
	}
	return false, cmp.Or(n.why, "its node is not ready")
}

// observeNode writes what was seen of a machine's Kubernetes node.
func (c *Controller) observeNode(ctx context.Context, seen *resource.Machine, ready bool, why string) error {
	cond := resource.Condition{Type: resource.MachineNodeReady, Status: resource.False, Reason: "NotReady", Message: why}
	if ready {
		cond = resource.Condition{Type: resource.MachineNodeReady, Status: resource.True, Reason: "Ready"}
	}
	look := func(m *resource.Machine) (changed bool) {
		changed = m.Status.Conditions.Set(cond)
		was := m.Status.Phase
		switch {
		case ready && m.Status.Conditions.Is(resource.MachineRunning):
			m.Status.Phase = resource.Ready
		case was == resource.Ready || was == resource.Degraded:
			m.Status.Phase = resource.Degraded
		default:
			m.Status.Phase = resource.Creating
		}
		return changed || m.Status.Phase != was
	}
	if !look(seen) {
		return nil // most passes see nothing new, and ask the store nothing
	}
	return store.Of[resource.Machine](c.cfg.Store).Observe(ctx, seen, func(m *resource.Machine) { look(m) })
}

// retire takes a machine through its end: no new pods, pods away, agent takes
// it down, node and resource deleted.
func (c *Controller) retire(ctx context.Context, r *run, m *resource.Machine) (time.Duration, error) {
	switch {
	case m.Status.Conditions.Is(resource.MachineRemoved):
		late := time.Since(*m.DeletedAt) >= overdue
		ops := []store.Op{store.Of[resource.Machine](c.cfg.Store).DeleteOp(m)}
		if err := r.deleteNode(ctx, m.Name, late); err != nil {
			if !late {
				return time.Second, nil // the plane comes back; the node should not outlive its machine
			}
			c.cfg.Log.Warn("a machine goes, but its Kubernetes node stays", "machine", m.Key(), "err", err)
			ops = append(ops, store.Of[resource.Workspace](c.cfg.Store).ModifyOp(m.WorkspaceKey(), func(now *resource.Workspace) error {
				now.Status.StaleNodes = append(now.Status.StaleNodes, m.Name)
				return nil
			}))
		}
		failpoint.Reach("workspace/scale/node-deleted")
		if err := c.cfg.Store.Commit(ctx, ops...); err != nil && !errors.Is(err, store.ErrNotFound) {
			return 0, err
		}
		failpoint.Reach("workspace/scale/machine-deleted")
		c.cfg.Log.Info("machine removed", "machine", m.Key(), "node", m.Spec.Node)
		c.freed()
		return 0, nil
	case m.Status.Conditions.Is(resource.MachineDrained):
		return 0, nil // the agent reports
	}
	late := time.Since(*m.DeletedAt) >= drainTime
	left, err := c.drain(ctx, r, m, late)
	if err != nil {
		left = "the cluster refuses: " + err.Error()
	}
	again := time.Duration(0)
	drained := resource.Condition{Type: resource.MachineDrained, Status: resource.True, Reason: "Drained", Message: left}
	if left != "" && !late {
		drained.Status, drained.Reason, again = resource.False, "Draining", time.Second
	}
	err = store.Of[resource.Machine](c.cfg.Store).Observe(ctx, m, func(now *resource.Machine) {
		now.Status.Conditions.Set(drained)
	})
	if err == nil && again == 0 {
		failpoint.Reach("workspace/scale/machine-drained")
	}
	return again, err
}

// clusterTime is how long to ask a cluster about one machine. One that goes and
// is late is asked once more, and hardly waited for: a hundred machines of a cluster
// that hangs would hold their hosts for hours.
func clusterTime(late bool) time.Duration {
	if late {
		return clusterTimeout / 10
	}
	return clusterTimeout
}

// deleteNode deletes a Kubernetes node and the pods that are on it, at once: for a
// minute yet the next node of its name would take them for its own, and the tokens that the
// old one had for them would go on being good. None there is no error.
func (r *run) deleteNode(ctx context.Context, name string, late bool) error {
	now := r.now()
	if !now.serving {
		return resource.ErrNotReady
	}
	ctx, cancel := context.WithTimeout(ctx, clusterTime(late))
	defer cancel()
	nodes, core := now.client.CoreV1().Nodes(), now.client.CoreV1()
	if err := nodes.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if _, err := nodes.Get(ctx, name, metav1.GetOptions{}); err == nil {
		return errors.New("the cluster keeps it: it has finalizers")
	} else if !apierrors.IsNotFound(err) {
		return err
	}
	on := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", name).String()}
	for {
		var left []types.NamespacedName
		var uids []types.UID
		all, err := mirror.Each(ctx, mirror.Of(core.Pods("")), on, func(o runtime.Object) bool {
			// One that a finalizer keeps has gone for everybody but its tenant.
			if p, ok := o.(*corev1.Pod); ok && (p.DeletionTimestamp == nil || len(p.Finalizers) == 0) {
				left, uids = append(left, types.NamespacedName{Namespace: p.Namespace, Name: p.Name}), append(uids, p.UID)
			}
			return len(left) < maxDrained
		})
		if err != nil {
			return err
		}
		for i, p := range left {
			err := core.Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64),
				Preconditions: &metav1.Preconditions{UID: &uids[i]}})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return err
			}
		}
		if all {
			return nil
		}
	}
}

// forgetStale takes away what a cluster would not let go when a machine went. One
// that still refuses is asked again in a while.
func (c *Controller) forgetStale(ctx context.Context, p *pass) error {
	for _, name := range p.Status.StaleNodes {
		if !p.run.now().serving {
			return nil // its readiness has it looked at again
		}
		if err := p.run.deleteNode(ctx, name, true); err != nil {
			p.again = reconcile.Soonest(p.again, time.Minute)
			return nil
		}
		_, err := store.Of[resource.Workspace](c.cfg.Store).Modify(ctx, p.Key(), func(now *resource.Workspace) error {
			now.Status.StaleNodes = slices.DeleteFunc(now.Status.StaleNodes, func(n string) bool { return n == name })
			return nil
		})
		if err != nil {
			return err
		}
		c.cfg.Log.Info("the Kubernetes node of a former machine is gone", "workspace", p.Key(), "node", name)
	}
	return nil
}

// drain cordons the machine's node and evicts its pods, as kubectl drain does
// without waiting. It returns what is left, in words, "" for nothing.
func (c *Controller) drain(ctx context.Context, r *run, m *resource.Machine, late bool) (string, error) {
	now := r.now()
	if !now.serving {
		return "waiting for the plane", nil
	}
	client := now.client
	ctx, cancel := context.WithTimeout(ctx, clusterTime(late))
	defer cancel()
	_, err := client.CoreV1().Nodes().Patch(ctx, m.Name, types.StrategicMergePatchType,
		[]byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	// Those that have ended are none of these: a tenant may keep any number.
	selector := fields.AndSelectors(fields.OneTermEqualSelector("spec.nodeName", m.Name),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)))
	var leaving []types.NamespacedName
	left := 0
	look := func(o runtime.Object) bool {
		p, ok := o.(*corev1.Pod)
		if !ok {
			return true
		}
		if owner := metav1.GetControllerOf(p); owner != nil && owner.Kind == "DaemonSet" {
			return true
		}
		left++
		if p.DeletionTimestamp == nil {
			leaving = append(leaving, types.NamespacedName{Namespace: p.Namespace, Name: p.Name})
		}
		return left < maxDrained
	}
	all, err := mirror.Each(ctx, mirror.Of(client.CoreV1().Pods("")), metav1.ListOptions{FieldSelector: selector.String()}, look)
	if err != nil {
		return "", err
	}
	for _, p := range leaving {
		err := client.PolicyV1().Evictions(p.Namespace).Evict(ctx, &policyv1.Eviction{
			ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace},
		})
		// A disruption budget says "not now" with TooManyRequests.
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsTooManyRequests(err) {
			return "", err
		}
	}
	switch {
	case !all:
		return fmt.Sprintf("%d pods and more are leaving", left), nil
	case left > 0:
		return fmt.Sprintf("%d pods are leaving", left), nil
	}
	return "", nil
}
