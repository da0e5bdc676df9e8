package client

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) trash() noun[resource.Trash] {
	const when = "2006-01-02 15:04 MST"
	return noun[resource.Trash]{
		one:   "volume",
		path:  "trash",
		in:    inOrganization,
		tasks: true,
		holds: true,
		gone:  "deleted for good",
		empty: "The trash is empty. Volumes that are deleted come here for " + trashLife() +
			"; what was made for a claim goes with that.",
		columns: standard([]column[resource.Trash]{
			{head: "VOLUME", cell: func(t *resource.Trash) string { return t.Spec.Volume }},
			{head: "WORKSPACE", cell: func(t *resource.Trash) string { return t.Spec.Workspace }},
			{head: "CLASS", cell: func(t *resource.Trash) string { return t.Spec.Was.Class }},
			{head: "SIZE", cell: func(t *resource.Trash) string { return resource.Bytes.Text(t.Spec.Was.SizeBytes) }},
			{head: "UNTIL", cell: func(t *resource.Trash) string { return t.Spec.Until.Format(when) }},
			{head: "WAITS", cell: func(t *resource.Trash) string { return waits(t.Status.Conditions, resource.VolumeKept) }},
			{head: "CLAIM", wide: true, cell: func(t *resource.Trash) string { return t.Spec.Was.Claim }},
			{head: "HOST", wide: true, cell: func(t *resource.Trash) string { return hosts(t.Status) }},
		}),
		more: func(w io.Writer, t *resource.Trash) {
			fmt.Fprintf(w, "\nIt is deleted for good at %s. Until then 'mp volumes trash restore %s' brings it back,\n"+
				"and it counts in the account's storage.\n", t.Spec.Until.Format(when), printable(t.Name))
			printConditions(w, "CONDITIONS", t.Status.Conditions)
		},
	}
}

// waits is what something waits for until a condition is true.
func waits(all resource.Conditions, until string) string {
	if c := all.Get(until); c != nil && c.Status != resource.True {
		return c.Message
	}
	return ""
}

// trashLife is how long a volume stays in the trash, in words.
func trashLife() string { return fmt.Sprintf("%d days", resource.TrashLife/(24*time.Hour)) }

func (p *program) trashCommands() *command {
	trash := p.trash()
	return group("trash", "list, show, restore and purge volumes that were deleted",
		trash.list(help("list the organization's volumes that are in the trash",
			"mp volumes trash list", "mp volumes trash list -o wide")),
		trash.show(help("show a volume in the trash, and until when it is there", "mp volumes trash show db-0a1b2c3d")),
		&command{
			name:  "restore",
			usage: "bring a volume back from the trash",
			args:  "NAME",
			names: trash.names,
			about: `It comes back with all that was in it, to the workspace that it was of if --to names no other
one of the organization, and is called as before if --as says nothing else. No claim has it then.`,
			examples: []string{"mp volumes trash restore db-0a1b2c3d", "mp volumes trash restore db-0a1b2c3d --to shop2 --as old-db"},
			flags: flags(placeFlags(inOrganization),
				&cli.StringFlag{Name: "to", Usage: "`WORKSPACE` that gets it"},
				&cli.StringFlag{Name: "as", Usage: "`NAME` that it gets"},
				dryRunFlag(), waitFlags(), resultFlag()),
			run: trash.on((*call).restoreVolume),
		},
		trash.delete("Delete volume %s with all data in it, for good?", command{
			name:     "purge, delete, rm",
			usage:    "delete a volume in the trash with all data in it",
			examples: []string{"mp volumes trash purge db-0a1b2c3d"},
		}),
	)
}

func (c *call) restoreVolume(it thing) error {
	body := map[string]string{}
	if to := c.String("to"); to != "" {
		body["workspace"] = to
	}
	if as := c.String("as"); as != "" {
		body["volume"] = as
	}
	volumes := c.volumes()
	accepted, err := volumes.write(c, http.MethodPost, it.path+"/restore", body)
	if err != nil {
		return err
	}
	v := &accepted.Resource
	to := Target{Account: v.Account, Organization: v.Organization, Workspace: v.Workspace}
	said := fmt.Sprintf("Volume %s of workspace %s is ", printable(v.Name), printable(v.Workspace))
	return volumes.settle(c, to.at(inWorkspace, "volumes", v.Name), accepted, said+"coming back.", said+"back, with what was in it.")
}

// deleteVolume puts a volume into the trash, or deletes it for good.
func (c *call) deleteVolume() error {
	volumes := c.volumes()
	if c.Bool("purge") {
		return volumes.remove(c, "Delete volume %s with all data in it, for good?", "?purge=true")
	}
	volumes.holds = false
	return volumes.remove(c, "Put volume %s into the trash? It can be had back for "+trashLife()+".", "")
}

// inTrash says where a volume is that was deleted.
func inTrash(v *resource.Volume) string {
	name := v.Status.Trash
	if name == "" {
		return ""
	}
	return fmt.Sprintf("in the trash for %s; 'mp volumes trash restore %s' brings it back", trashLife(), printable(name))
}

// deleteWorkspace says before and after what becomes of the volumes.
func (c *call) deleteWorkspace() error {
	workspaces, ask := c.workspaces(), "Delete workspace %s with its apps and data?"
	it, err := workspaces.arg(c)
	if err != nil {
		return err
	}
	all, err := c.volumes().all(c, it.Target)
	var snapshots []resource.Snapshot
	if err == nil {
		snapshots, err = c.snapshots().all(c, it.Target)
	}
	if no, ok := errors.AsType[*Problem](err); ok && no.exitCode() == ExitNotFound {
		err = nil // the deletion says more
	}
	if err != nil {
		return err
	}
	switch n := len(snapshots); n {
	case 0:
	case 1:
		ask += " A snapshot in it is lost, also if its volume is kept."
	default:
		ask += fmt.Sprintf(" The %d snapshots in it are lost, also if their volumes are kept.", n)
	}
	kept := 0
	for i := range all {
		if all[i].ToTrash(&resource.Workspace{}, time.Now()) != nil {
			kept++
		}
	}
	what := fmt.Sprintf("Its %d volumes are", kept)
	if kept == 1 {
		what = "A volume of it is"
	}
	query := ""
	switch {
	case c.Bool("purge-volumes"):
		if query = "?purgeVolumes=true"; len(all) > 0 {
			ask += fmt.Sprintf(" So are all volumes in it: %d, with all data in them, for good.", len(all))
		}
	case kept > 0:
		ask += " " + what + fmt.Sprintf(" kept in the trash for %s.", trashLife())
		workspaces.left = func() string {
			return what + fmt.Sprintf(" in the trash for %s: 'mp volumes trash list' shows what is there, "+
				"'mp volumes trash restore NAME --to WORKSPACE' brings one back.", trashLife())
		}
	}
	return workspaces.remove(c, ask, query)
}
