package client

import (
	"cmp"
	"net/http"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) snapshots() noun[resource.Snapshot] {
	return noun[resource.Snapshot]{
		one:   "snapshot",
		in:    inWorkspace,
		tasks: true,
		empty: "There are no snapshots. Make one with 'mp volumes snapshot VOLUME'.",
		columns: standard([]column[resource.Snapshot]{
			{head: "VOLUME", cell: func(s *resource.Snapshot) string { return s.Spec.Volume }},
			{head: "SIZE", cell: func(s *resource.Snapshot) string { return resource.Bytes.Text(s.Asks().VolumeBytes) }},
			{head: "USED", cell: func(s *resource.Snapshot) string {
				if s.Status.UsedBytes == 0 {
					return "" // it isn't known yet
				}
				return resource.Size{DiskBytes: s.Status.UsedBytes}.Disk()
			}},
			{head: "WAITS", cell: func(s *resource.Snapshot) string { return waits(s.Status.Conditions, resource.SnapshotReady) }},
			{head: "HOST", wide: true, cell: func(s *resource.Snapshot) string { return s.Status.Node }},
		}),
	}
}

func (p *program) snapshotCommands() *command {
	snapshots := p.snapshots()
	return group("snapshots, snapshot", "list, show and delete snapshots of volumes",
		snapshots.list(help("list the workspace's snapshots", "mp snapshots list")),
		snapshots.show(help("show a snapshot", "mp snapshots show db-before")),
		snapshots.delete("Delete snapshot %s?",
			help("delete a snapshot; what was made from it stays", "mp snapshots delete db-before --yes")),
	)
}

// copyCommands are the verbs of volumes that make copies.
func (p *program) copyCommands(volumes noun[resource.Volume]) []*command {
	snapshots := p.snapshots()
	size := sizeFlag("`SIZE` of the new volume, if it shall have more: 20Gi")
	made := flags(placeFlags(inWorkspace), size, dryRunFlag(), waitFlags(), resultFlag())
	return []*command{
		{
			name:  "snapshot",
			usage: "keep what a volume holds now",
			args:  "VOLUME [NAME]",
			names: volumes.names,
			about: `A snapshot is on the volume's host and stands by itself: the volume may be deleted. It holds what a
power cut would have left, so what was synced is in it. It counts in the account's storage as a volume of its size, and is
lost with the host. Where the host's disk can't share blocks it is a copy, which takes its time; before
the copy is done, writing to the volume waits for as long as it takes to read it. So there only
volumes with up to 4 GiB in them have snapshots.

Of a shared volume it is one of its copies, on that one's host, and lost with that. It is made while all copies are there and
have the same, which is looked at before and after: if one went meanwhile it has failed, and another is to be made.`,
			examples: []string{"mp volumes snapshot db", "mp volumes snapshot db db-before"},
			flags:    flags(placeFlags(inWorkspace), dryRunFlag(), waitFlags(), resultFlag()),
			run: volumes.on(func(c *call, of thing) error {
				name := cmp.Or(c.arg(1), snapshotName(of.name))
				it, err := snapshots.named(c, name)
				if err != nil {
					return err
				}
				in := map[string]any{"spec": map[string]any{"volume": of.name}}
				accepted, err := snapshots.write(c, http.MethodPut, it.path, in, "If-None-Match", "*")
				if err != nil {
					return err
				}
				subject := snapshots.subject(it)
				return snapshots.settle(c, it.path, accepted, subject+" is being made.", subject+" is ready.")
			}),
		},
		{
			name:  "restore",
			usage: "make a volume from a snapshot",
			args:  "SNAPSHOT NAME",
			names: snapshots.names,
			about: `The new volume is on the snapshot's host, and the snapshot stays. The volume that the snapshot is of is
left as it is: bind the new one in its place.`,
			examples: []string{"mp volumes restore db-before db2", "mp volumes restore db-before db2 --size 20Gi"},
			flags:    made,
			run:      snapshots.on(func(c *call, from thing) error { return c.copyVolume(volumes, "snapshot", from.name) }),
		},
		{
			name:     "clone",
			usage:    "make a volume from what another holds now",
			args:     "VOLUME NAME",
			names:    volumes.names,
			about:    "The new volume is on the other's host. It has what a power cut would have left of that, and none of its claims.",
			examples: []string{"mp volumes clone db db2"},
			flags:    made,
			run:      volumes.on(func(c *call, from thing) error { return c.copyVolume(volumes, "volume", from.name) }),
		},
	}
}

// snapshotName is a name with the time behind it.
func snapshotName(of string) string {
	const stamp = "-20060102-150405"
	return of[:min(len(of), resource.MaxName-len(stamp))] + time.Now().UTC().Format(stamp)
}

// copyVolume makes the volume that the second argument names from what is called so.
func (c *call) copyVolume(volumes noun[resource.Volume], kind, from string) error {
	it, err := volumes.named(c, c.arg(1))
	if err != nil {
		return err
	}
	size := int64(0) // as what it is made from
	if c.String("size") != "" {
		if size, err = amount(c, "size"); err != nil {
			return err
		}
	}
	in := map[string]any{"spec": map[string]any{"sizeBytes": size, "source": map[string]any{kind: from}}}
	accepted, err := volumes.write(c, http.MethodPut, it.path, in, "If-None-Match", "*")
	if err != nil {
		return err
	}
	subject := volumes.subject(it)
	return volumes.settle(c, it.path, accepted, subject+" is being made.", subject+" is ready.")
}
