package agent

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/wire"
)

// VolumeHost keeps volumes on this host, and has machines see them. Implemented by
// modules/volume. All calls are idempotent, may block for seconds unless they say otherwise,
// and may be concurrent for different items.
type VolumeHost interface {
	Ensure(ctx context.Context, v wire.Volume) error
	// Keep puts a volume away that is in the trash: nobody sees it, and what is in it stays.
	Keep(ctx context.Context, v wire.Volume) error
	// Remove destroys what is in a volume.
	Remove(ctx context.Context, v wire.Volume) error
	// Leave lets go of all volumes, and returns where they are kept.
	Leave() (kept []string, err error)
	// List returns what is there, mounted or not. Nothing keeps it waiting for long. The error
	// says that some of where volumes are is away.
	List() ([]wire.VolumeReport, error)

	Attach(volume, machine string) error
	// AttachShared is Attach of a volume that others have mounted for the machine. It waits for nothing that is in it.
	AttachShared(volume, machine string) error
	Detach(volume, machine string) error
	// Imported says how far the file of a shared volume is that this host writes into it: VolumeReport's Import, and what there
	// is to say. It waits for nothing that is in the volume.
	Imported(v wire.Volume) (state, message string)
	// Attached are the machines that see volumes, by the volumes' UIDs. It does not block.
	Attached() (map[string][]wire.VolumeAttachment, error)
}

// Volumes drives volumes. One is destroyed only by a wire.Volume that says so: what a state does
// not name stays.
func Volumes(host VolumeHost) Driver { return volumes{host, &usage{}} }

type volumes struct {
	host VolumeHost
	used *usage
}

const volumeKind = wire.VolumeItem

func (volumes) Kind() string { return volumeKind }

func (d volumes) Wanted(s *wire.State) []Item {
	var items []Item
	for _, v := range s.Volumes {
		if shares(v) {
			continue // see mounts
		}
		item := Item{
			Key:       v.UID,
			Workspace: v.NetworkID,
			Ensure:    func(ctx context.Context) error { return d.host.Ensure(ctx, v) },
		}
		if source := (Ref{volumeKind, v.Source}); slices.ContainsFunc(s.Volumes, func(of wire.Volume) bool {
			return v.Source != "" && !v.Made && !v.Incoming && of.UID == v.Source && !of.Remove
		}) {
			item.Needs = []Ref{source}
		}
		if v.Keep {
			item.Ensure = func(ctx context.Context) error { return d.host.Keep(ctx, v) }
		}
		if v.Remove {
			item.Remove = func(ctx context.Context) error { return d.host.Remove(ctx, v) }
		}
		items = append(items, item)
	}
	return items
}

func (volumes) Drop(context.Context, string) error { return nil }

func (volumes) List(context.Context) ([]string, error) { return nil, nil }

// Leave is for a Keeper.
func (d volumes) Leave() (kept []string, err error) { return d.host.Leave() }

func (d volumes) Report(
	_ context.Context,
	s *wire.State,
	progress func(string) Progress,
	r *Report,
) (fallen []string, err error) {
	there, away := d.host.List() // of which all else shall be told all the same
	if away != nil {
		hold(r, wire.HoldsUnknown)
	}
	seen, steady := map[string]wire.VolumeReport{}, d.used.look()
	for _, v := range there {
		seen[v.UID] = v
		hold(r, cmp.Or(v.NetworkID, wire.HoldsUnknown))
	}
	for _, v := range s.Volumes {
		if shares(v) {
			continue
		}
		p := progress(v.UID)
		hold(r, v.NetworkID)
		rep, ok := seen[v.UID]
		if p.Removed {
			rep = wire.VolumeReport{Removed: true}
		}
		rep.Key, rep.UID, rep.Move = v.Key, v.UID, v.Move
		rep.UsedBytes = steady(v.UID, rep.UsedBytes, rep.SizeBytes)
		rep.Ready = rep.Ready && p.Problem == "" && rep.SizeBytes >= v.SizeBytes
		unmounted := v.Keep || v.Incoming // as it shall be
		if unmounted {
			rep.Ready = ok && rep.Fallen && p.Ready()
		}
		if id := v.Arrival(); rep.Came != id && (id != "" || v.Incoming) {
			rep.Ready = false
		}
		if p.Problem != "" {
			rep.Message = p.Problem
		} else if away != nil && !ok && !p.Removed {
			rep.Message = "the disk with volumes of its host is away"
		}
		if p.Ready() && !v.Remove && (!ok || rep.Fallen != unmounted) {
			fallen = append(fallen, v.UID)
		}
		rep.Message = cut(rep.Message, maxText)
		r.Items[Ref{volumeKind, v.UID}] = &rep
	}
	return fallen, nil
}

// Attachments drives which machines see which volumes. It comes after volumes and machines.
func Attachments(host VolumeHost) Driver { return attachments{host} }

type attachments struct{ host VolumeHost }

func (attachments) Kind() string { return "attachment" }

// attachmentKey is VOLUME/MACHINE.
func attachmentKey(volume, machine string) string { return volume + "/" + machine }

func (d attachments) Wanted(s *wire.State) []Item {
	var items []Item
	for _, v := range s.Volumes {
		for _, a := range v.Attachments {
			if v.Remove {
				continue
			}
			item := Item{
				Key:       attachmentKey(v.UID, a.MachineUID),
				Workspace: v.NetworkID,
				Needs:     []Ref{{volumeKind, v.UID}, {machineKind, a.MachineUID}},
				Ensure:    func(context.Context) error { return d.host.Attach(v.UID, a.MachineUID) },
			}
			if shares(v) {
				item.Needs[0] = Ref{mountKind, mountOf(v, a).key()}
				item.Ensure = func(context.Context) error { return d.host.AttachShared(v.UID, a.MachineUID) }
				item.Every = mountEvery // what was mounted anew has to be attached anew
			}
			items = append(items, item)
		}
	}
	return items
}

func (d attachments) Drop(_ context.Context, key string) error {
	volume, machine, _ := strings.Cut(key, "/")
	return d.host.Detach(volume, machine)
}

func (d attachments) List(context.Context) (keys []string, err error) {
	attached, err := d.host.Attached()
	for volume, machines := range attached {
		for _, a := range machines {
			keys = append(keys, attachmentKey(volume, a.MachineUID))
		}
	}
	slices.Sort(keys)
	return keys, err
}

// allFailed is how long the texts of one volume's machines are together: a hundred machines from
// before volumes say why, each of each volume.
const allFailed = 4 << 10

// Report fills in what Volumes has left out.
func (d attachments) Report(
	_ context.Context,
	s *wire.State,
	progress func(string) Progress,
	r *Report,
) (fallen []string, err error) {
	attached, err := d.host.Attached()
	if err != nil {
		return nil, err
	}
	for _, v := range s.Volumes {
		rep, ok := r.Items[Ref{volumeKind, v.UID}].(*wire.VolumeReport)
		if !ok || v.Remove {
			continue
		}
		if shares(v) && v.Importing {
			if state, message := d.host.Imported(v); rep.Message == "" || state != wire.ImportBegun {
				rep.Import, rep.Message = state, cut(message, maxText)
			} else if rep.Message == errImports.Error() { // for tenants to read
				rep.Import = state
			}
		}
		limit := share(allFailed, len(v.Attachments))
		for _, a := range v.Attachments {
			key := attachmentKey(v.UID, a.MachineUID)
			p := progress(key)
			switch {
			case slices.Contains(attached[v.UID], a): // also while the machine is down, say
				rep.Attached = append(rep.Attached, a.MachineUID)
			case p.Problem != "":
				if rep.Failed == nil {
					rep.Failed = map[string]string{}
				}
				rep.Failed[a.MachineUID] = cut(p.Problem, limit)
			case p.Ready():
				fallen = append(fallen, key)
			}
		}
	}
	return fallen, nil
}
