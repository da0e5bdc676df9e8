package client

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

// hosts are those that a volume is on.
func hosts(s resource.VolumeStatus) string {
	all := []string{s.Node}
	for _, b := range s.Bricks {
		all = append(all, b.Node)
	}
	return strings.Join(slices.DeleteFunc(all, func(h string) bool { return h == "" }), ", ")
}

func (p *program) volumes() noun[resource.Volume] {
	return noun[resource.Volume]{
		one:   "volume",
		in:    inWorkspace,
		tasks: true,
		holds: true,
		empty: "There are no volumes. Make one with 'mp volumes create NAME --size SIZE'; claims in the cluster make theirs.",
		kept:  inTrash,
		more:  explainVolume,
		columns: standard([]column[resource.Volume]{
			{head: "CLASS", cell: func(v *resource.Volume) string { return v.Spec.Class }},
			{head: "SIZE", cell: func(v *resource.Volume) string { return resource.Bytes.Text(v.Spec.SizeBytes) }},
			{head: "USED", cell: func(v *resource.Volume) string {
				if v.Status.SizeBytes == 0 {
					return "" // it isn't there yet
				}
				return resource.Size{DiskBytes: v.Status.UsedBytes}.Disk()
			}},
			{head: "CLAIM", cell: func(v *resource.Volume) string { return v.Spec.Claim }},
			{head: "MACHINES", cell: func(v *resource.Volume) string {
				return strings.Join(attachedTo(v, func(a resource.VolumeAttachment) bool { return a.Attached }), ", ")
			}},
			{head: "HOST", wide: true, cell: func(v *resource.Volume) string { return hosts(v.Status) }},
		}),
	}
}

func attachedTo(v *resource.Volume, which func(resource.VolumeAttachment) bool) (machines []string) {
	for _, a := range v.Status.Attachments {
		if which(a) {
			machines = append(machines, a.Machine)
		}
	}
	return machines
}

func (p *program) volumeCommands() *command {
	volumes := p.volumes()
	all := group("volumes, volume", "create, list, show, resize, bind, copy, move and delete a workspace's volumes",
		volumes.create(command{
			usage: "make a volume",
			about: `A volume of the class local is on the disk of one host, and lost with it. It reads as fast as that disk; what is
written and synced piece by piece takes up to twice as long.
One of the class shared is on several hosts, a copy on each, and pods on all machines can use it
at the same time: three copies if the platform has three hosts for it, else one. Two can't tell
which one is right when they lose each other, so two take an arbiter, a third host without data.
Its size is a limit, and counts in the account's storage; it can grow later, and not shrink.
With --encrypted nobody reads it from a disk of its hosts without its key, which the platform's servers keep. Snapshots and
clones are encrypted with the same key, which is destroyed with the last of them.
With --block it has no file system: pods get its raw blocks (volumeDevices), as databases and storage systems want them. Only
of class local, and not encrypted; no files come out of it or go into it.
Claims in the cluster (PersistentVolumeClaim) make volumes of their own, which are listed here too.`,
			examples: []string{"mp volumes create db --size 10Gi", "mp volumes create files --size 10Gi --class shared",
				"mp volumes create files --size 10Gi --class shared --replicas 2 --arbiter"},
			flags: []cli.Flag{
				sizeFlag("`SIZE` of it, a limit: 10Gi"),
				&cli.StringFlag{Name: "class", Usage: "`CLASS` of it: local, which is the default, or shared"},
				replicasFlag(), arbiterFlag(),
				&cli.BoolFlag{Name: "encrypted", Usage: "encrypt what is on its hosts' disks"},
				&cli.BoolFlag{Name: "block", Usage: "make no file system: pods get raw blocks"},
			},
		}, func(c *call) (any, error) {
			size, err := neededSize(c)
			return struct {
				Class     string `json:"class,omitempty"`
				SizeBytes int64  `json:"sizeBytes"`
				Replicas  int    `json:"replicas,omitempty"`
				Arbiter   bool   `json:"arbiter,omitempty"`
				Encrypted bool   `json:"encrypted,omitempty"`
				Block     bool   `json:"block,omitempty"`
			}{c.String("class"), size, c.Int("replicas"), c.Bool("arbiter"), c.Bool("encrypted"), c.Bool("block")}, err
		}),
		volumes.list(help("list the workspace's volumes", "mp volumes list", "mp volumes list -o wide")),
		volumes.show(help("show a volume, where its data is, and who has it", "mp volumes show db")),
		volumes.set(command{
			name:     "resize",
			usage:    "make a volume larger",
			about:    "Nothing that uses it has to stop. A volume that a claim has grows with the claim.",
			examples: []string{"mp volumes resize db --size 20Gi"},
			flags:    []cli.Flag{sizeFlag("`SIZE` that it shall have: 20Gi")},
		}, func(c *call) (map[string]any, string, error) {
			size, err := neededSize(c)
			return map[string]any{"sizeBytes": size}, "has " + resource.Bytes.Text(size), err
		}),
		&command{
			name:  "bind",
			usage: "give a volume to a claim in the cluster, so that pods can use it",
			args:  "NAME",
			names: volumes.names,
			about: `The claim, a PersistentVolumeClaim, is made, and called as the volume if --claim says
nothing else. What is in the volume stays when the claim is deleted.`,
			examples: []string{"mp volumes bind db", "mp volumes bind db --namespace staging --claim data"},
			flags: flags(placeFlags(inWorkspace), namespaceFlag(),
				&cli.StringFlag{Name: "claim", Usage: "`NAME` of the claim, if not as the volume's"},
				dryRunFlag(), waitFlags(), resultFlag()),
			run: volumes.on((*call).bindVolume),
		},
		&command{
			name:  "unbind",
			usage: "take a volume from its claim, and keep what is in it",
			args:  "NAME",
			names: volumes.names,
			about: `The claim is deleted, also one for which the volume was made. While pods use it, that
is refused: delete them, or scale down what makes them.`,
			examples: []string{"mp volumes unbind db --yes"},
			flags:    flags(placeFlags(inWorkspace), yesFlag(), dryRunFlag(), resultFlag()),
			run:      volumes.on((*call).unbindVolume),
		},
		p.moveCommand(volumes),
		p.scrubCommand(volumes),
		volumes.delete("", command{
			usage: "put a volume into the trash, from where it can be had back for " + trashLife(),
			about: `It counts in the account's storage as long as it is there. 'mp volumes trash' lists what is
in the trash, and brings it back. With --purge it is deleted at once, with all data in it.`,
			examples: []string{"mp volumes delete db", "mp volumes delete db --purge"},
			flags:    []cli.Flag{&cli.BoolFlag{Name: "purge", Usage: "delete it at once, with all data in it"}},
			run:      (*call).deleteVolume,
		}),
		p.trashCommands(),
	)
	all.sub = slices.Concat(all.sub, p.copyCommands(volumes), p.fileCommands(volumes))
	return all
}

// newClaim is what is said of a new claim.
func newClaim(c *call) (any, error) {
	size, err := neededSize(c)
	return struct {
		Class     string `json:"class,omitempty"`
		SizeBytes int64  `json:"sizeBytes"`
	}{c.String("class"), size}, err
}

func sizeFlag(usage string) cli.Flag { return &cli.StringFlag{Name: "size", Usage: usage} }

func replicasFlag() cli.Flag {
	return &cli.IntFlag{Name: "replicas", Usage: "`NUMBER` of copies of a shared one: 1 or 3, or 2 with an arbiter"}
}

func arbiterFlag() cli.Flag {
	return &cli.BoolFlag{Name: "arbiter", Usage: "have a third host without data tell which of two copies is right"}
}

// neededSize is what --size says.
func neededSize(c *call) (int64, error) {
	if c.String("size") == "" {
		return 0, usagef("write it like --size 10Gi", "%s: the size is missing", c.path)
	}
	return amount(c, "size")
}

const importText = "What is in it comes as a file, and nobody has it before all of that is there: 'mp volumes import' sends it."

// explainVolume says where the data is and who has it, to somebody who knows neither hosts
// nor file systems.
func explainVolume(w io.Writer, v *resource.Volume) {
	fmt.Fprintln(w)
	there := strings.Join(attachedTo(v, func(resource.VolumeAttachment) bool { return true }), ", ")
	switch {
	case v.Spec.Class == resource.SharedVolume:
		explainCopies(w, v)
		if v.Importing() {
			fmt.Fprintln(w, importText)
		}
	case v.Spec.Class != resource.LocalVolume:
	case v.Status.Moving != nil && v.Status.Moving.Stage != resource.MoveRemoving:
		fmt.Fprintln(w, "Its data is on its way to the disk of another host: pods that use it wait for that.")
	case !v.Status.Conditions.Is(resource.VolumePlaced):
		fmt.Fprintln(w, "Its data will be on the disk of one host, which is not chosen yet.")
	case v.Importing():
		fmt.Fprintln(w, importText)
	case v.Status.SizeBytes == 0:
		fmt.Fprintln(w, "Its data will be on the disk of one host, which has not made it yet.")
	case there == "":
		fmt.Fprintln(w, "Its data is on the disk of one host, on which the workspace has no machine now: no pod can use it.")
	default:
		fmt.Fprintf(w, "Its data is on the disk of one host, that of %s: pods that use it run there.\n", printable(there))
	}
	if v.Spec.Class == resource.LocalVolume {
		fmt.Fprintln(w, "There is no copy of it: what it holds is lost with that host's disk.")
	}
	if v.Spec.Block {
		fmt.Fprintln(w, "It has no file system: pods get its raw blocks, as a device (volumeDevices, volumeMode Block).")
	}
	if v.Spec.Encrypted {
		fmt.Fprintln(w, "It is encrypted there. The platform's servers have its key, and destroy it "+
			"with the last of it, its snapshots and clones.")
	}
	if from := v.Spec.Source; from != nil && from.Snapshot != "" {
		fmt.Fprintf(w, "It was made from snapshot %s.\n", printable(from.Snapshot))
	} else if from != nil {
		fmt.Fprintf(w, "It was made from volume %s.\n", printable(from.Volume))
	}
	if v.Spec.Claim == "" {
		fmt.Fprintln(w, "No claim has it, so no pod uses it.")
	} else {
		fmt.Fprintf(w, "The claim %s has it.\n", printable(v.Spec.Claim))
	}
	for _, a := range v.Status.Attachments {
		if a.Message != "" && !a.Attached {
			fmt.Fprintf(w, "  %s: %s\n", printable(a.Machine), printable(a.Message))
		}
	}
	printConditions(w, "CONDITIONS", v.Status.Conditions)
}

// explainCopies says where the data of a shared volume is.
func explainCopies(w io.Writer, v *resource.Volume) {
	bricks, copies := v.Status.Bricks, v.Copies()
	whole := !slices.ContainsFunc(bricks, func(b resource.VolumeBrick) bool {
		return !b.Online || b.Replaces != "" || b.Heal != 0
	})
	switch {
	case len(bricks) == 0:
		fmt.Fprintln(w, "Its data will be on hosts of the platform, which are not chosen yet.")
		return
	case copies == 1 && !whole:
		fmt.Fprintln(w, "Its data is on one host, which does not serve it now, and there is no copy of it.")
	case copies == 1:
		fmt.Fprintln(w, "Its data is on one host, and pods on all machines can use it as long as that host is there.")
		fmt.Fprintln(w, "There is no copy of it: what it holds is lost with that host's disk.")
	case !whole:
		fmt.Fprintf(w, "Its data is on %d hosts, a copy on each, and not all are there and whole now.\n", copies)
	case copies < len(bricks):
		fmt.Fprintf(w, "Its data is on %d hosts, a copy on each; a third one knows which is right: one may fail.\n", copies)
	default:
		fmt.Fprintf(w, "Its data is on %d hosts, a copy on each: one of them may fail.\n", copies)
	}
	if len(bricks) > 1 {
		fmt.Fprintln(w, "Pods on all machines can use it.")
	}
	if slices.ContainsFunc(bricks, func(b resource.VolumeBrick) bool { return b.Filling }) {
		fmt.Fprintln(w, "What it was made from is in its first copy, which the others are given: until they have all, it may not fail.")
	}
	for i, b := range bricks {
		name, is := fmt.Sprintf("copy %d", i+1), "there"
		if b.Arbiter {
			name = "arbiter"
		}
		switch {
		case !b.Online && b.Message != "":
			is = "not there: " + printable(b.Message)
		case !b.Online || b.Replaces != "":
			is = "not there"
		case v.GivenText(b) != "":
			is = "there; is given what it lacks: " + v.GivenText(b)
		case b.Filling:
			is = "there; is given what the first one has"
		case b.Heal < 0:
			is = "there; it is being found out what others have missed"
		case b.Heal > 0:
			is = fmt.Sprintf("there; has %d files and folders that others are given", b.Heal)
		}
		if b.Node != "" {
			name += " (" + printable(b.Node) + ")"
		}
		fmt.Fprintf(w, "  %s: %s\n", name, is)
	}
	explainScrub(w, v)
}

func (c *call) bindVolume(it thing) error {
	claim := map[string]string{"namespace": cmp.Or(it.Namespace, "default"), "claim": cmp.Or(c.String("claim"), it.name)}
	volumes := c.volumes()
	accepted, err := volumes.write(c, http.MethodPut, it.path+"/claim", claim)
	if err != nil {
		return err
	}
	said := fmt.Sprintf("%s has the claim %s: pods in namespace %s use it by that name.", volumes.subject(it),
		printable(claim["claim"]), printable(claim["namespace"]))
	return volumes.settle(c, it.path, accepted, said, said)
}

func (c *call) unbindVolume(it thing) error {
	volumes := c.volumes()
	const ask = "Take volume %s from its claim? The claim is deleted, what is in the volume stays."
	if err := c.confirm(fmt.Sprintf(ask, it.inFull()), ""); err != nil {
		return err
	}
	accepted, err := volumes.write(c, http.MethodDelete, it.path+"/claim", nil)
	if err != nil {
		return err
	}
	return volumes.printResult(c, &accepted.Resource, "%s has no claim, and what was in it.", volumes.subject(it))
}

func (p *program) claims() noun[resource.Claim] {
	return noun[resource.Claim]{
		one:   "claim",
		in:    inNamespace,
		gone:  "being deleted", // pods may use it
		holds: true,
		empty: "There are no claims in this namespace. Make one with 'mp pvc create NAME --size SIZE'.",
		columns: []column[resource.Claim]{
			{head: "NAME", cell: func(p *resource.Claim) string { return p.Name }},
			{head: "PHASE", cell: func(p *resource.Claim) string { return p.Phase }},
			{head: "CLASS", cell: func(p *resource.Claim) string { return p.Class }},
			{head: "SIZE", cell: func(p *resource.Claim) string { return resource.Bytes.Text(p.SizeBytes) }},
			{head: "VOLUME", cell: func(p *resource.Claim) string { return p.Volume }},
			{head: "AGE", cell: func(p *resource.Claim) string { return since(p.CreatedAt) }},
			{head: "WAITS", cell: func(p *resource.Claim) string { return p.Message }},
		},
	}
}

func (p *program) claimCommands() *command {
	claims := p.claims()
	return group("pvc, claims, claim", "create, list and delete claims for volumes (PersistentVolumeClaim)",
		claims.create(command{
			usage: "make a claim, for which the platform makes a volume",
			about: `Pods use the volume by the claim's name. It is made where the first pod that uses it
runs. The claim is of the cluster: kubectl shows it too, and what you may do there counts.`,
			examples: []string{"mp pvc create data --size 1Gi", "mp pvc create data --size 1Gi --class local --namespace staging"},
			flags: []cli.Flag{
				sizeFlag("`SIZE` of the volume: 1Gi"),
				&cli.StringFlag{Name: "class", Usage: "`CLASS` of the volume; the cluster's default one, if it is not given"},
			},
		}, newClaim),
		claims.list(help("list the claims of a namespace", "mp pvc list", "mp pvc list --namespace staging")),
		claims.delete("Delete claim %s, and if a volume was made for it, that with all data in it?",
			help("delete a claim, and the volume that was made for it", "mp pvc delete data --yes")),
	)
}
