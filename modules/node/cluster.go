package node

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// cluster is what all hosts with shared volumes are to be together. It is made once for each change that an agent
// may be told of, not for each node and change. Nobody changes it.
type cluster struct {
	of      chan struct{}      // Hub.changed as it was then
	volumes []*resource.Volume // all that there are
	lead    *resource.Node     // see leadOf
	told    *wire.Cluster      // what the lead is told
	bricks  map[string][]wire.Brick
	scrubs  map[string][]wire.Scrub // by UID of a node, as bricks are
	kept    map[string][]served     // by UID of a node, the volumes of its bricks that aren't taken away
}

// shared is what it is now.
func (h *Hub) shared() *cluster {
	h.sharing.Lock()
	defer h.sharing.Unlock()
	now := h.waitChange() // before reading, so that nothing is missed
	if h.cluster == nil || h.cluster.of != now {
		h.cluster = h.newCluster(now)
	}
	return h.cluster
}

func (h *Hub) newCluster(of chan struct{}) *cluster {
	c := &cluster{of: of, volumes: h.cfg.Volumes.List(""), bricks: map[string][]wire.Brick{}, scrubs: map[string][]wire.Scrub{},
		kept: map[string][]served{}}
	shared := h.served(c.volumes)
	for _, v := range shared {
		unserved, whole := v.Deleting() && v.Status.Conditions.Is(resource.VolumeUnserved), v.Whole()
		gone := unserved || v.Status.Copy.Failed(v.Status.Conditions)
		for _, b := range v.Status.Bricks { // of a host that was given up nobody has said yet that it isn't there
			whole = whole && h.brickHost(b) != nil
		}
		c.scrub(v)
		for i, b := range v.AllBricks() {
			if b.Removed {
				continue
			}
			c.kept[b.NodeUID] = append(c.kept[b.NodeUID], v)
			leaving := i >= len(v.Status.Bricks)
			source := ""
			// One that took the place of the first is made as any: its host hasn't got what that was made from.
			first := i == 0 && !leaving && (!v.Status.Conditions.Is(resource.VolumeServed) || b.SizeBytes > 0)
			if v.Spec.Source != nil && first && !b.Filling {
				if source = v.Spec.Source.UID; v.Status.Copy != nil {
					source = v.Status.Copy.Brick
				}
			}
			if v.networkID != "" && (source == "" || v.Status.Copy.Due() || gone) {
				c.bricks[b.NodeUID] = append(c.bricks[b.NodeUID], wire.Brick{
					Key: v.key, Volume: v.UID, UID: b.UID, Pool: b.Pool, NetworkID: v.networkID,
					SizeBytes: resource.BrickBytes(v.Spec.SizeBytes, b.Arbiter), Made: b.SizeBytes > 0, Source: source,
					Encrypted: v.Spec.Encrypted, Remove: gone || leaving && whole})
			}
		}
	}
	if c.lead = h.leadOf(shared); c.lead != nil {
		c.told = h.told(c.lead, shared)
	}
	return c
}

// served is a shared volume as hosts are told of it.
type served struct {
	*resource.Volume
	key       string
	networkID string // of its workspace; empty: that isn't known yet, whose cache follows
	trash     bool
}

// served are all shared volumes that have bricks, those in the trash too. Of two caches one may be behind: what was
// written last is so.
func (h *Hub) served(volumes []*resource.Volume) (all []served) {
	trash := map[string]*resource.Trash{}
	for _, t := range h.cfg.Trash.List("") {
		if len(t.Status.Bricks) > 0 {
			trash[t.UID] = t
		}
	}
	for _, v := range volumes {
		if t := trash[v.UID]; len(v.Status.Bricks) == 0 || t != nil && t.Revision > v.Revision {
			continue
		}
		delete(trash, v.UID)
		one := served{Volume: v, key: v.Key()}
		if ws, ok := h.cfg.Workspaces.Get(v.WorkspaceKey()); ok {
			one.networkID = ws.Status.ID
		}
		all = append(all, one)
	}
	for _, uid := range slices.Sorted(maps.Keys(trash)) {
		t := trash[uid]
		all = append(all, served{t.Was(), t.Key(), t.Spec.NetworkID, true})
	}
	return all
}

// lost says that nothing is left of what it holds: GlusterFS, which deletes no volume while a host of any is away, need
// not know it any more, nor its hosts.
func (v served) lost() bool {
	kept := v.Status.Conditions.Get(resource.VolumeKept)
	return v.Lost() || kept != nil && kept.Final
}

// leads says whether a node does.
func (c *cluster) leads(n *resource.Node) bool { return c.lead != nil && c.lead.UID == n.UID }

// keeps says whether a node has bricks.
func (c *cluster) keeps(n *resource.Node) bool { return c.kept[n.UID] != nil }

// moving says how far a node is that is removed with copies leaving it; "" if none is on it. now is a volume by its key, as it
// was heard of last: nothing here is made anew for each byte.
func (c *cluster) moving(n *resource.Node, now func(key string) (*resource.Volume, bool)) string {
	left := c.kept[n.UID]
	if left == nil {
		return ""
	}
	trash := 0
	for _, v := range left {
		if v.trash {
			trash++
		}
	}
	text := fmt.Sprintf("%d copies of shared volumes are on it still: each is made on another host, and filled there, "+
		"while all others of its volume are there", len(left))
	if trash > 0 {
		text += fmt.Sprintf("; %d are in the trash: they have to be purged, or restored, first", trash)
	}
	const most = 5
	given := 0
	for _, v := range left {
		is, ok := now(v.key)
		if !ok || v.trash || given >= most {
			continue
		}
		leaves := func(b resource.VolumeBrick) bool { return b.NodeUID == n.UID }
		for _, b := range is.Status.Bricks {
			if how := is.GivenText(b); how != "" && slices.ContainsFunc(is.Status.Leaving, leaves) {
				text += fmt.Sprintf("; that of %s is on node %s: %s", v.key, b.Node, how)
				given++
			}
		}
	}
	for _, v := range left {
		if stays := v.Status.Conditions.Get(resource.VolumeCopiesStay); stays != nil && stays.Reason == resource.NoCapacity {
			return text + "; " + v.key + " waits: " + stays.Message
		}
	}
	return text
}

// storageOf is a node's part in shared volumes, nil if it has none: its bricks, and on the one host that
// leads the cluster as it shall be.
func (h *Hub) storageOf(node *resource.Node, c *cluster) *wire.Storage {
	s := &wire.Storage{Bricks: c.bricks[node.UID], Scrubs: c.scrubs[node.UID]}
	now, ok := h.cfg.Nodes.Get(node.Name) // who asks for a stream is as he was then
	part := s.Bricks != nil || ok && now.UID == node.UID && now.Status.StorageMember
	s.Renew = ok && now.UID == node.UID && !now.Status.StorageRenew.IsZero()
	if c.leads(node) {
		part, s.Cluster = true, c.told
	}
	if !part {
		return nil
	}
	return s
}

// leadOf is the host that has the cluster changed. It has to be in it: one that isn't would found
// another, which the hosts of the first can't join. So the first of all is the host of the oldest brick,
// and waited for, until it says who is in it; from then on the first of those that reports. Nil:
// there is none now.
func (h *Hub) leadOf(volumes []served) *resource.Node {
	nodes := map[string]*resource.Node{}
	var members []*resource.Node
	for _, n := range h.cfg.Nodes.List("") {
		if n.Gone() {
			continue
		}
		if nodes[n.UID] = n; n.Status.StorageMember {
			members = append(members, n)
		}
	}
	volumes = slices.Clone(volumes)
	slices.SortFunc(volumes, func(a, b served) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(a.UID, b.UID))
	})
	var order []string // the UIDs of hosts with bricks, those with the oldest first
	for _, v := range volumes {
		for _, b := range v.Status.Bricks {
			if nodes[b.NodeUID] != nil && !b.Removed && !slices.Contains(order, b.NodeUID) {
				order = append(order, b.NodeUID)
			}
		}
	}
	if members == nil {
		if order == nil {
			return nil
		}
		return nodes[order[0]]
	}
	members = slices.DeleteFunc(members, (*resource.Node).Silent)
	if len(members) == 0 {
		return nil
	}
	rank := func(n *resource.Node) int {
		if i := slices.Index(order, n.UID); i >= 0 {
			return i
		}
		return len(order) // it has none any more: the last, so that it can be let go
	}
	return slices.MinFunc(members, func(a, b *resource.Node) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.UID, b.UID))
	})
}

// told is what the host that leads is told.
func (h *Hub) told(lead *resource.Node, volumes []served) *wire.Cluster {
	c := &wire.Cluster{}
	with := map[string]bool{} // UIDs of hosts with a part in it
	for _, v := range volumes {
		for _, b := range v.AllBricks() {
			if n := h.brickPeer(b); n != nil && !b.Removed { // one whose bricks go, too, until they are gone
				with[n.UID] = true
			}
		}
		// A copy that may lack something is nobody's volume. One that knows nothing of copies would make a volume of all
		// bricks, of which the first alone has anything.
		early := !v.Status.Copy.Whole() || !lead.CopiesShared() && !v.Status.Conditions.Is(resource.VolumeServed) && v.Filled()
		if v.networkID == "" || v.Status.Conditions.Is(resource.VolumeUnserved) || early && !v.Going() {
			continue
		}
		cv := wire.ClusterVolume{Key: v.key, UID: v.UID, NetworkID: v.networkID,
			Made: v.Status.Conditions.Is(resource.VolumeServed), Look: v.Status.Look, Stop: v.trash,
			Remove: v.Going() || v.lost()}
		for _, b := range v.Status.Bricks {
			n := h.brickPeer(b)
			cb := wire.ClusterBrick{UID: b.UID, Ready: b.Ready, Replaces: b.Replaces, Filling: b.Filling, Lost: n == nil}
			// Of a host that is part of the platform it would leave.
			cb.ReplacesLost = b.Replaces != "" && !slices.ContainsFunc(v.Status.Leaving, func(was resource.VolumeBrick) bool {
				return was.UID == b.Replaces && h.brickPeer(was) != nil
			})
			if n != nil {
				cb.Address, with[n.UID] = n.Status.Address, true
				cv.Hosts = append(cv.Hosts, n.UID)
			}
			cv.Bricks, cv.Arbiter = append(cv.Bricks, cb), b.Arbiter
		}
		for _, m := range h.cfg.Machines.List(v.WorkspaceKey()) {
			if v.trash {
				break
			}
			if n, ok := h.cfg.Nodes.Get(m.Spec.Node); ok && m.Lives() {
				cv.Hosts = append(cv.Hosts, n.UID)
			}
		}
		slices.Sort(cv.Hosts)
		cv.Hosts = slices.Compact(cv.Hosts)
		c.Volumes = append(c.Volumes, cv)
	}
	for _, n := range h.cfg.Nodes.List("") {
		if with[n.UID] {
			c.Peers = append(c.Peers, wire.Peer{UID: n.UID, Name: n.Name, Address: n.Status.Address})
		}
	}
	return c
}
