package client

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

func (p *program) scrubCommand(volumes noun[resource.Volume]) *command {
	return &command{
		name:  "scrub",
		usage: "compare the copies of a shared volume, and mend what differs",
		args:  "NAME",
		names: volumes.names,
		about: `A disk may give back something else than was written to it. All copies of a shared volume are compared byte by byte each
week by themselves, and now by this; reading and writing go on. Of three copies one that is not as the two others is
written as they are. If more than one is wrong in a file, and of two, with an arbiter, nobody can say which is right: it is
told, and left as it is.
A volume with one copy, and a local one, has nothing to be compared with.
It takes a while, and little of the hosts' disks: 'mp volumes show NAME' says how far it is, and what was found.`,
		examples: []string{"mp volumes scrub files"},
		flags:    flags(placeFlags(inWorkspace), dryRunFlag(), resultFlag()),
		run:      volumes.on((*call).scrubVolume),
	}
}

func (c *call) scrubVolume(it thing) error {
	volumes := c.volumes()
	accepted, err := volumes.write(c, http.MethodPost, it.path+"/scrub", nil)
	if err != nil {
		return err
	}
	return volumes.printResult(c, &accepted.Resource, "The copies of %s are being compared: 'mp volumes show %s' says how far.",
		lower(volumes.subject(it)), printable(it.name))
}

func lower(text string) string { return strings.ToLower(text[:1]) + text[1:] }

// explainScrub says whether the copies of a volume are the same.
func explainScrub(w io.Writer, v *resource.Volume) {
	s := v.Status.Scrub
	if v.Copies() < 2 || s == nil {
		return
	}
	bytes := func(n int64) string { return resource.Size{DiskBytes: n}.Disk() }
	if s.Runs() && s.Brick == "" {
		fmt.Fprintln(w, "They are to be compared once all of them are there.")
	} else if s.Runs() {
		fmt.Fprintf(w, "They are being compared, byte by byte: %s of about %s so far.\n", bytes(s.Bytes),
			bytes(max(v.Status.UsedBytes, s.Bytes)))
	}
	if s.Checked.IsZero() {
		return
	}
	fmt.Fprintf(w, "They were compared to the end %s: %s in %d files.", s.Checked.Format(time.RFC3339), bytes(s.CheckedBytes),
		s.Files)
	if s.Mended == 0 && s.Damaged == 0 && s.Left == 0 {
		fmt.Fprint(w, " All were the same.")
	}
	if s.Mended > 0 {
		fmt.Fprintf(w, " %d were not the same in all of them, and were mended.", s.Mended)
	}
	if s.Left > 0 {
		fmt.Fprintf(w, " %d could not be compared, since a copy had yet to be given something: it is done again in a day.", s.Left)
	}
	fmt.Fprintln(w)
	if s.Damaged == 0 {
		return
	}
	fmt.Fprintf(w, "%d files are damaged: what the copies have of them is not the same, or can't be read, and it can't be said "+
		"which is right, or it could not be written.\n", s.Damaged)
	for _, name := range s.Names {
		fmt.Fprintf(w, "  %s\n", printable(name))
	}
}
