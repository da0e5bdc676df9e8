package client

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) volumes() noun[resource.Volume] {
	return noun[resource.Volume]{
		one:   "volume",
		in:    inWorkspace,
		tasks: true,
		holds: true,
		empty: "There are no volumes. Make one with 'mp volumes create NAME --size SIZE'; claims in the cluster make theirs.",
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
			{head: "NEAR", wide: true, cell: func(v *resource.Volume) string { return strings.Join(v.Status.Near, ", ") }},
			{head: "HOST", wide: true, cell: func(v *resource.Volume) string { return v.Status.Node }},
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
	return group("volumes, volume", "create, list, show, resize and delete a workspace's volumes",
		volumes.create(command{
			usage: "make a volume",
			about: `A volume of the class local is on the disk of one host: as fast as that, and lost with it.
Its size is a limit, and counts in the account's storage; it can grow later, and not shrink.
Claims in the cluster (PersistentVolumeClaim) make volumes of their own, which are listed here too.`,
			examples: []string{"mp volumes create db --size 10Gi", "mp volumes create db --size 10Gi --class local"},
			flags: []cli.Flag{
				sizeFlag("`SIZE` of it, a limit: 10Gi"),
				&cli.StringFlag{Name: "class", Usage: "`CLASS` of it: local, which is the default"},
			},
		}, func(c *call) (any, error) {
			size, err := neededSize(c)
			return struct {
				Class     string `json:"class,omitempty"`
				SizeBytes int64  `json:"sizeBytes"`
			}{c.String("class"), size}, err
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
		volumes.delete("Delete volume %s with all data in it?", help("delete a volume with all data in it", "mp volumes delete db --yes")),
	)
}

func sizeFlag(usage string) cli.Flag { return &cli.StringFlag{Name: "size", Usage: usage} }

// neededSize is what --size says.
func neededSize(c *call) (int64, error) {
	if c.String("size") == "" {
		return 0, usagef("write it like --size 10Gi", "%s: the size is missing", c.path)
	}
	return amount(c, "size")
}

// explainVolume says where the data is and who has it, to somebody who knows neither hosts
// nor file systems.
func explainVolume(w io.Writer, v *resource.Volume) {
	fmt.Fprintln(w)
	switch near := strings.Join(v.Status.Near, ", "); {
	case v.Spec.Class != resource.LocalVolume:
	case !v.Status.Conditions.Is(resource.VolumePlaced):
		fmt.Fprintln(w, "Its data will be on the disk of one host, which is not chosen yet.")
	case near == "":
		fmt.Fprintln(w, "Its data is on the disk of one host, on which the workspace has no machine now: no pod can use it.")
	default:
		fmt.Fprintf(w, "Its data is on the disk of one host, that of %s: pods that use it run there.\n", printable(near))
	}
	if v.Spec.Class == resource.LocalVolume {
		fmt.Fprintln(w, "There is no copy of it: what it holds is lost with that host's disk.")
	}
	switch waiting := attachedTo(v, func(a resource.VolumeAttachment) bool { return !a.Attached }); {
	case v.Spec.Claim == "":
		fmt.Fprintln(w, "No claim has it, so no pod uses it.")
	case len(v.Status.Attachments) == 0:
		fmt.Fprintf(w, "The claim %s has it; no pod uses it now.\n", printable(v.Spec.Claim))
	case len(waiting) > 0:
		fmt.Fprintf(w, "Pods wait for it on %s.\n", printable(strings.Join(waiting, ", ")))
	}
	for _, a := range v.Status.Attachments {
		if a.Message != "" && !a.Attached {
			fmt.Fprintf(w, "  %s: %s\n", printable(a.Machine), printable(a.Message))
		}
	}
	printConditions(w, "CONDITIONS", v.Status.Conditions)
}
