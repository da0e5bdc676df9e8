package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// SharedHost is this host's part in shared volumes: what serves bricks, what leads all hosts that do,
// and mounts. Implemented by package appliance, with embed/gluster. Errors are for everybody to
// read, what else there is to say is in the log. All calls are idempotent, may block for a minute
// unless they say otherwise, and may be concurrent.
type SharedHost interface {
	// Trust has the host be known to others by this, and makes the place of bricks.
	Trust(id StorageIdentity) error
	// Serve has bricks served; with renew what is Old is started anew. Called again soon, it costs little.
	Serve(ctx context.Context, renew bool) error
	// Old says that they are by older software, or other settings, than Serve would start now.
	// It does not block.
	Old() bool
	// Server is another text after all that serves bricks was started anew, "" before Serve has seen it. It does not block.
	Server() string
	// Forget ends that, and what this host knows of other hosts. Clear ends all, and mounts.
	Forget(ctx context.Context) error
	Clear(ctx context.Context) error
	// Left says what there is for Forget, and for Clear. It does not block.
	Left() (served, any bool, err error)

	// Gather has these hosts, and no others, know each other. members are those that do, also if
	// some could not be reached; nil if that is not known.
	Gather(ctx context.Context, peers []wire.Peer) (members []netip.Addr, err error)
	// Bring has a volume be as it shall. What is seen of its bricks is returned also with some errors.
	Bring(ctx context.Context, peers []wire.Peer, v wire.ClusterVolume) ([]wire.ClusterBrickReport, error)
	// Heal asks what of a volume is to be healed, if it is time to: Bring returns it later. One volume is asked at
	// a time, and it may take a minute.
	Heal(ctx context.Context, v wire.ClusterVolume) error
	// Remove has all hosts forget a volume. What is in its bricks stays.
	Remove(ctx context.Context, v wire.ClusterVolume) error

	// Mount has a volume mounted for a machine, which runs, or this host (wire.ImportMount), and answer. Called again soon, it
	// costs little.
	Mount(ctx context.Context, v wire.Volume, machine string) error
	// Unmount takes the name (wire.GlusterName) of a volume.
	Unmount(ctx context.Context, name, machine string) error
	// Mounted are the mounts of which there is something. It does not block.
	Mounted() ([]SharedMount, error)
}

// SharedMount is a shared volume, by its wire.GlusterName, as one machine has it.
type SharedMount struct{ Name, Machine string }

// key is that of the item.
func (m SharedMount) key() string { return m.Name + "/" + m.Machine }

// BrickHost keeps the disks of bricks. Implemented by modules/volume. See VolumeHost.
type BrickHost interface {
	EnsureBrick(ctx context.Context, b wire.Brick) error
	RemoveBrick(ctx context.Context, b wire.Brick) error
	Bricks() ([]wire.VolumeReport, error)
}

// StorageIdentity is by what hosts with shared volumes know this one. PEM.
type StorageIdentity struct {
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
	CA          []byte `json:"ca"`
}

// SharedConfig is what drives shared volumes.
type SharedConfig struct {
	Log    *slog.Logger
	Client *Client // asks for the host's certificate, and knows where to keep it
	Host   SharedHost
	Bricks BrickHost
}

// Shared drives a host's part in shared volumes: what serves them, their bricks, the cluster if
// this host leads it.
func Shared(cfg SharedConfig) []Driver {
	lead := &cluster{SharedConfig: cfg, seen: map[string][]wire.ClusterBrickReport{}, stopped: map[string]bool{}}
	return []Driver{serving{cfg}, bricks{cfg, &usage{}}, lead, heals{cfg, lead}}
}

// Mounts drives the mounts of shared volumes, each of which is one machine's. It comes after
// machines, in whose user namespaces they are, and before attachments.
func Mounts(host SharedHost) Driver { return mounts{host} }

// shares says whether a volume is one of the shared.
func shares(v wire.Volume) bool { return v.Class == resource.SharedVolume }

// serving drives what serves bricks, in two steps: bricks are mounted after the first and before
// they are needed by the second, which others go on with if they are not.
type serving struct{ SharedConfig }

const (
	servingKind = "storage"
	identityKey = "identity"
	serverKey   = "server"

	identityEvery = time.Hour
	serverEvery   = time.Minute
)

func (serving) Kind() string { return servingKind }

func (d serving) Wanted(s *wire.State) (items []Item) {
	if s.Storage != nil || slices.ContainsFunc(s.Volumes, shares) {
		items = append(items, Item{Key: identityKey, Every: identityEvery, Ensure: d.identify})
	}
	if s.Storage != nil {
		items = append(items, Item{Key: serverKey, Every: serverEvery, Ensure: func(ctx context.Context) error {
			return d.Host.Serve(ctx, s.Storage.Renew)
		}, Needs: []Ref{{servingKind, identityKey}}})
	}
	return items
}

func (d serving) identify(ctx context.Context) error {
	id, err := d.certificate(ctx)
	if err != nil {
		return fmt.Errorf("certificate of this host for shared volumes: %w", err)
	}
	return d.Host.Trust(id)
}

// certificate is machines.certificates for the host.
func (d serving) certificate(ctx context.Context) (id StorageIdentity, err error) {
	file := filepath.Join(d.Client.dir, "storage.json")
	data, err := os.ReadFile(file)
	have := err == nil && json.Unmarshal(data, &id) == nil && len(id.Certificate) > 0
	if have && keptSince(file) < wire.StorageCertificateRenew {
		return id, nil
	}
	fresh, err := d.askCertificate(ctx)
	if err != nil {
		if have {
			d.Log.Warn("renew this host's certificate for shared volumes; going on with the old one", "err", err)
			return id, nil
		}
		return id, err
	}
	return fresh, atomicfile.WriteJSON(file, fresh)
}

func (d serving) askCertificate(ctx context.Context) (id StorageIdentity, err error) {
	var csr []byte
	if id.Key, csr, err = pki.NewKeyCSR(); err != nil {
		return id, err
	}
	var res wire.JoinResponse
	err = d.Client.call(ctx, wire.StorageCertificatePath, wire.JoinRequest{CSR: csr}, &res)
	id.Certificate, id.CA = res.Certificate, res.CA
	return id, err
}

func (d serving) Drop(ctx context.Context, key string) error {
	if key == serverKey {
		return d.Host.Forget(ctx)
	}
	if served, _, err := d.Host.Left(); err != nil || served {
		return cmp.Or(err, errors.New("bricks are served still"))
	}
	return d.Host.Clear(ctx)
}

// List is nothing as long as there is a brick: nobody has said that it may go.
func (d serving) List(context.Context) (keys []string, err error) {
	served, any, err := d.Host.Left()
	if err != nil || !any {
		return nil, err
	}
	if there, err := d.Bricks.Bricks(); err != nil || len(there) > 0 {
		return nil, nil
	}
	if served {
		keys = append(keys, serverKey)
	}
	return append(keys, identityKey), nil
}

// Leave is for a Keeper. What is kept are bricks' disks, which others say.
func (d serving) Leave() ([]string, error) { return nil, d.Host.Clear(context.Background()) }

func (d serving) Report(_ context.Context, s *wire.State, _ func(string) Progress, r *Report) ([]string, error) {
	r.StorageOld = s.Storage != nil && d.Host.Old()
	return nil, nil
}

// bricks drives bricks' disks. See volumes: one goes only by a wire.Brick that says so.
type bricks struct {
	SharedConfig
	used *usage
}

func (bricks) Kind() string { return wire.BrickItem }

func (d bricks) Wanted(s *wire.State) (items []Item) {
	if s.Storage == nil {
		return nil
	}
	for _, b := range s.Storage.Bricks {
		item := Item{
			Key:       b.UID,
			Workspace: b.NetworkID,
			Needs:     []Ref{{servingKind, identityKey}},
			Ensure:    func(ctx context.Context) error { return d.Bricks.EnsureBrick(ctx, b) },
		}
		if b.Remove {
			item.Remove = func(ctx context.Context) error { return d.Bricks.RemoveBrick(ctx, b) }
		}
		items = append(items, item)
	}
	return items
}

func (bricks) Drop(context.Context, string) error { return nil }

func (bricks) List(context.Context) ([]string, error) { return nil, nil }

func (d bricks) Report(_ context.Context, s *wire.State, progress func(string) Progress, r *Report) (fallen []string, err error) {
	there, away := d.Bricks.Bricks()
	seen := map[string]wire.VolumeReport{}
	for _, b := range there {
		seen[b.UID] = b
		hold(r, cmp.Or(b.NetworkID, wire.HoldsUnknown))
	}
	if s.Storage == nil {
		return nil, nil
	}
	steady, server := d.used.look(), d.Host.Server()
	for _, b := range s.Storage.Bricks {
		hold(r, b.NetworkID)
		p := progress(b.UID)
		see, ok := seen[b.UID]
		rep := wire.BrickReport{SizeBytes: see.SizeBytes, Message: see.Message,
			UsedBytes: steady(b.UID, see.UsedBytes, see.SizeBytes)}
		rep.Ready = see.Ready && p.Problem == "" && see.SizeBytes >= b.SizeBytes
		rep.Server = server
		if p.Removed {
			rep = wire.BrickReport{Removed: true}
		}
		rep.Key, rep.UID = b.Key, b.UID
		if strings.HasPrefix(p.Problem, servingKind+" ") { // of the host's own: the log has it
			rep.Message = "its host is not ready to serve shared volumes: it is tried again"
		} else if p.Problem != "" {
			rep.Message = p.Problem
		} else if away != nil && !ok && !p.Removed {
			rep.Message = "the disk with volumes of its host is away"
		}
		if p.Ready() && !b.Remove && (!ok || see.Fallen) {
			fallen = append(fallen, b.UID)
		}
		rep.Message = cut(rep.Message, maxText)
		r.Items[Ref{wire.BrickItem, b.UID}] = &rep
	}
	return fallen, nil
}

// cluster drives, on the host that leads, who is in the cluster, and its volumes.
type cluster struct {
	SharedConfig

	mu      sync.Mutex
	members []netip.Addr
	seen    map[string][]wire.ClusterBrickReport // by UID of the volume
	stopped map[string]bool                      // since it was asked for; by UID
}

const (
	membersKey   = "members" // no UID
	clusterEvery = 15 * time.Second
)

func (*cluster) Kind() string { return wire.ClusterItem }

func (d *cluster) Wanted(s *wire.State) (items []Item) {
	if s.Storage == nil || s.Storage.Cluster == nil {
		return nil
	}
	c := s.Storage.Cluster
	needs := []Ref{{servingKind, serverKey}}
	items = append(items, Item{Key: membersKey, Needs: needs, Every: clusterEvery, Ensure: func(ctx context.Context) error {
		members, err := d.Host.Gather(ctx, c.Peers)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.members = members
		return err
	}})
	for _, v := range c.Volumes {
		item := Item{Key: v.UID, Workspace: v.NetworkID, Needs: needs, Every: clusterEvery, Ensure: func(ctx context.Context) error {
			seen, err := d.Host.Bring(ctx, c.Peers, v)
			d.see(v.UID, seen, v.Stop && err == nil)
			return err
		}}
		if v.Remove {
			item.Remove = func(ctx context.Context) error {
				d.see(v.UID, nil, false)
				return d.Host.Remove(ctx, v)
			}
		}
		items = append(items, item)
	}
	return items
}

// awaited says whether the look that is wanted at a volume was not told yet.
func (d *cluster) awaited(v wire.ClusterVolume) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.seen[v.UID], func(b wire.ClusterBrickReport) bool { return b.Looked < v.Look })
}

func (d *cluster) see(uid string, seen []wire.ClusterBrickReport, stopped bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if stopped {
		d.stopped[uid] = true
	} else {
		delete(d.stopped, uid)
	}
	if seen == nil {
		delete(d.seen, uid)
	} else {
		d.seen[uid] = seen
	}
}

func (*cluster) Drop(context.Context, string) error { return nil }

func (*cluster) List(context.Context) ([]string, error) { return nil, nil }

func (d *cluster) Report(_ context.Context, s *wire.State, progress func(string) Progress, r *Report) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.Storage == nil || s.Storage.Cluster == nil {
		d.members, d.seen, d.stopped = nil, map[string][]wire.ClusterBrickReport{}, map[string]bool{} // another leads
		return nil, nil
	}
	r.StorageMembers = d.members
	for _, v := range s.Storage.Cluster.Volumes {
		p := progress(v.UID)
		rep := wire.ClusterReport{Key: v.Key, UID: v.UID, Ready: p.Ready() && !v.Remove, Removed: p.Removed, Bricks: d.seen[v.UID],
			Stopped: v.Stop && p.Ready() && d.stopped[v.UID], Message: cut(p.Problem, maxText)}
		r.Items[Ref{wire.ClusterItem, v.UID}] = &rep
	}
	return nil, nil
}

// heals drives, on the host that leads, what is asked of volumes that takes long: it holds up nothing of cluster.
type heals struct {
	SharedConfig
	lead *cluster
}

const (
	healKind  = "heal"
	healEvery = 5 * time.Second // how often it is looked whether it is time to ask
)

func (heals) Kind() string { return healKind }

func (d heals) Wanted(s *wire.State) (items []Item) {
	if s.Storage == nil || s.Storage.Cluster == nil {
		return nil
	}
	for _, v := range s.Storage.Cluster.Volumes {
		if v.Remove || v.Stop || len(v.Bricks) < 2 {
			continue
		}
		items = append(items, Item{Key: v.UID, Workspace: v.NetworkID, Needs: []Ref{{servingKind, serverKey}}, Every: healEvery,
			Ensure: func(ctx context.Context) error {
				if err := d.Host.Heal(ctx, v); err != nil || !d.lead.awaited(v) {
					return err
				}
				seen, err := d.Host.Bring(ctx, s.Storage.Cluster.Peers, v) // somebody waits for what was heard
				d.lead.see(v.UID, seen, false)
				return err
			}})
	}
	return items
}

func (heals) Drop(context.Context, string) error { return nil }

func (heals) List(context.Context) ([]string, error) { return nil, nil }

func (heals) Report(context.Context, *wire.State, func(string) Progress, *Report) ([]string, error) {
	return nil, nil
}

// mounts is Mounts. One that nobody wants is dropped: no data is in it.
type mounts struct{ host SharedHost }

const (
	mountKind  = "mount"
	mountEvery = 10 * time.Second // its client may die
)

func (mounts) Kind() string { return mountKind }

// mount is a mount that is wanted.
type mount struct {
	v  wire.Volume
	of SharedMount
}

// imports is 1 for one that a file is written into by, else 0.
func (m mount) imports() int {
	if m.of.Machine == wire.ImportMount {
		return 1
	}
	return 0
}

// Wanted has no more than so many mounted, whatever the server says. What is mounted stays: who comes later is told. Those of
// imports come last, and only take what machines leave.
func (d mounts) Wanted(s *wire.State) (items []Item) {
	var all []mount
	for _, v := range s.Volumes {
		if !shares(v) || v.Remove {
			continue
		}
		for _, of := range mountsOf(v) {
			all = append(all, mount{v, of})
		}
	}
	if len(all) == 0 {
		return nil
	}
	there := map[SharedMount]int{}
	mounted, _ := d.host.Mounted() // who can't say mounts none either
	for _, of := range mounted {
		there[of] = -1
	}
	slices.SortFunc(all, func(a, b mount) int {
		return cmp.Or(cmp.Compare(a.imports(), b.imports()), cmp.Compare(there[a.of], there[b.of]),
			cmp.Compare(a.of.Name, b.of.Name), cmp.Compare(a.of.Machine, b.of.Machine))
	})
	own, taken := map[string]int{}, 0
	ownImports, imports := map[string]int{}, 0
	for _, m := range all {
		item := Item{
			Key:       m.of.key(),
			Workspace: m.v.NetworkID,
			Needs:     []Ref{{servingKind, identityKey}, {machineKind, m.of.Machine}},
			Every:     mountEvery,
			Ensure:    func(ctx context.Context) error { return d.host.Mount(ctx, m.v, m.of.Machine) },
		}
		if m.imports() > 0 {
			item.Needs = item.Needs[:1]
		}
		switch {
		case m.imports() > 0 && (imports >= resource.MaxImportsOnHost || taken >= resource.MaxMountsOnHost ||
			ownImports[m.v.NetworkID] >= resource.MaxWorkspaceImportsOnHost):
			item.Ensure = func(context.Context) error { return errImports }
		case m.imports() > 0:
			ownImports[m.v.NetworkID]++
			imports, taken = imports+1, taken+1
		case own[m.v.NetworkID] >= resource.MaxWorkspaceMountsOnHost:
			item.Ensure = func(context.Context) error { return errOwnMounts }
		case taken >= resource.MaxMountsOnHost:
			item.Ensure = func(context.Context) error { return errAllMounts }
		default:
			own[m.v.NetworkID]++
			taken++
		}
		items = append(items, item)
	}
	return items
}

var (
	errOwnMounts = fmt.Errorf("the machines of the workspace on one host have shared volumes mounted %d times, and no more is "+
		"possible: delete some of them, or have fewer machines on it", resource.MaxWorkspaceMountsOnHost)
	errImports = fmt.Errorf("its host writes files into %d shared volumes at a time, and %d of one workspace: it goes on once "+
		"another has all of its file, or is deleted", resource.MaxImportsOnHost, resource.MaxWorkspaceImportsOnHost)
	errAllMounts = errors.New("the machine's host has as many shared volumes mounted as are possible: " +
		"ask the operator for another host, and have the machine replaced")
)

// mountsOf are all those of a volume.
func mountsOf(v wire.Volume) (all []SharedMount) {
	for _, a := range v.Attachments {
		all = append(all, mountOf(v, a))
	}
	if v.Importing {
		all = append(all, SharedMount{wire.GlusterName(v.UID), wire.ImportMount})
	}
	return all
}

func mountOf(v wire.Volume, a wire.VolumeAttachment) SharedMount {
	return SharedMount{wire.GlusterName(v.UID), a.MachineUID}
}

func (d mounts) Drop(ctx context.Context, key string) error {
	name, machine, _ := strings.Cut(key, "/")
	return d.host.Unmount(ctx, name, machine)
}

func (d mounts) List(context.Context) (keys []string, err error) {
	mounted, err := d.host.Mounted()
	for _, m := range mounted {
		keys = append(keys, m.key())
	}
	return keys, err
}

// Report says of a volume what is wrong with its first mount of which something is.
func (d mounts) Report(_ context.Context, s *wire.State, progress func(string) Progress, r *Report) ([]string, error) {
	mounted, err := d.host.Mounted()
	if err != nil {
		return nil, err
	}
	for _, v := range s.Volumes {
		if !shares(v) {
			continue
		}
		hold(r, v.NetworkID)
		rep := &wire.VolumeReport{Key: v.Key, UID: v.UID, Ready: true}
		for _, of := range mountsOf(v) {
			mounted = slices.DeleteFunc(mounted, func(m SharedMount) bool { return m == of })
			p := progress(of.key())
			rep.Ready = rep.Ready && p.Ready()
			rep.Message = cmp.Or(rep.Message, cut(p.Problem, maxText))
		}
		r.Items[Ref{wire.VolumeItem, v.UID}] = rep
	}
	if len(mounted) > 0 {
		hold(r, wire.HoldsUnknown)
	}
	return nil, nil
}
