package client

import (
	"net/http"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) moveCommand(volumes noun[resource.Volume]) *command {
	return &command{
		name:  "move",
		usage: "bring a local volume to another host",
		args:  "NAME",
		names: volumes.names,
		about: `--to names a machine of the workspace, and the volume goes to the disk of that one's host; the operator may
name the host. No pod may use it meanwhile: scale down what does, and up again when it is there; pods run where it is.
A claim that has it keeps it. What was there is taken away once all of it is on the other host, and in use there.
Snapshots stay where they are. If it is cut off it goes on by itself where it ended; --stay gives it up.`,
		examples: []string{"mp volumes move db --to shop-2", "mp volumes move db --stay"},
		flags: flags(placeFlags(inWorkspace),
			&cli.StringFlag{Name: "to", Usage: "`MACHINE` on the host that it shall go to"},
			&cli.BoolFlag{Name: "stay", Usage: "give up a move that was begun: it stays where it is"},
			dryRunFlag(), waitFlags(), resultFlag()),
		run: volumes.on((*call).moveVolume),
	}
}

func (c *call) moveVolume(it thing) error {
	to, stay := c.String("to"), c.Bool("stay")
	if (to == "") != stay {
		return usagef("write it like --to MACHINE", "%s: name where it shall go, or --stay", c.path)
	}
	volumes := c.volumes()
	accepted, err := volumes.write(c, http.MethodPost, it.path+"/move", map[string]any{"to": to, "stay": stay})
	if err != nil {
		return err
	}
	subject := volumes.subject(it)
	if stay {
		return volumes.settle(c, it.path, accepted, subject+" stays where it is.", subject+" is where it was.")
	}
	return volumes.settle(c, it.path, accepted, subject+" is on its way.", subject+" has moved: pods that use it run there.")
}
