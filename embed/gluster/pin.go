package gluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pin begins the names of a scrub's mounts where others have their machine. No machine is called so.
const pin = "scrub-"

func (m Mount) pinned() bool { return strings.HasPrefix(m.Machine, pin) }

// layout is of what a client makes a volume.
type layout struct {
	copies    []replica // those with data, in order
	clients   string    // the parts that reach all bricks, an arbiter's too
	replicate string    // the part that makes one volume of them
}

// replica is a copy of a volume, and how a client reaches it alone.
type replica struct {
	Brick
	client  string // the part of a volume file
	pending string // the attribute by which others say what it lacks
}

// layout reads what this host's glusterd has clients use.
func (h *Host) layout(volume string) (*layout, error) {
	f, err := os.Open(h.at("lib", "vols", volume, "trusted-"+volume+".tcp-fuse.vol"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, err
	}
	l, err := parseLayout(string(text))
	if err != nil {
		return nil, fmt.Errorf("what clients make volume %s of: %w", volume, err)
	}
	return l, nil
}

func parseLayout(text string) (*layout, error) {
	l, clients, arbiters := &layout{}, map[string]replica{}, 0
	var subvolumes, pending []string
	const end = "end-volume\n"
	for part := range strings.SplitSeq(text, end) {
		part = strings.TrimLeft(part, "\n")
		if part == "" {
			continue
		}
		name, kind, options := "", "", map[string]string{}
		var below []string
		for line := range strings.Lines(part) {
			switch words := strings.Fields(line); {
			case len(words) == 2 && words[0] == "volume":
				name = words[1]
			case len(words) == 2 && words[0] == "type":
				kind = words[1]
			case len(words) == 3 && words[0] == "option":
				options[words[1]] = words[2]
			case len(words) > 1 && words[0] == "subvolumes":
				below = words[1:]
			}
		}
		switch kind {
		case "protocol/client":
			host, err := netip.ParseAddr(options["remote-host"])
			if err != nil {
				return nil, err
			}
			clients[name] = replica{Brick: Brick{Host: host, Path: options["remote-subvolume"]}, client: part + end}
			l.clients += part + end
		case "cluster/replicate":
			if subvolumes != nil {
				return nil, errors.New("it has copies of more than one kind")
			}
			l.replicate, subvolumes = part+end, below
			pending = strings.Split(options["afr-pending-xattr"], ",")
			if n := options["arbiter-count"]; n != "" {
				var err error
				if arbiters, err = strconv.Atoi(n); err != nil {
					return nil, err
				}
			}
		}
	}
	if len(pending) != len(subvolumes) || len(subvolumes) != len(clients) || arbiters < 0 || len(subvolumes)-arbiters < 2 {
		return nil, fmt.Errorf("it has %d bricks, %d of which hold each other's names, and %d arbiters",
			len(clients), len(pending), arbiters)
	}
	for i, name := range subvolumes[:len(subvolumes)-arbiters] {
		c, ok := clients[name]
		if !ok {
			return nil, fmt.Errorf("no part reaches %s", name)
		}
		c.pending = "trusted.afr." + pending[i]
		l.copies = append(l.copies, c)
	}
	return l, nil
}

// healing is a volume file by which a client heals what it opens. It compares, and writes what differs: holes stay.
func (l *layout) healing() string {
	const options = "    option data-self-heal on\n    option data-self-heal-algorithm diff\n"
	at := strings.Index(l.replicate, "    subvolumes")
	return l.clients + l.replicate[:at] + options + l.replicate[at:]
}

// mountPin mounts what a volume file says, for a scrub. Files are found there by their gfid, in .gfid. The caller closes
// tree, and then unmounts.
func (h *Host) mountPin(ctx context.Context, m Mount, volfile string) (tree *os.File, err error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	if err := h.unmount(ctx, m); err != nil {
		return nil, err
	}
	c := h.client(m)
	err = os.MkdirAll(c.at("log"), 0o700)
	if err == nil {
		err = os.WriteFile(c.at("log/pin.vol"), []byte(volfile), 0o600) // it has what bricks know a client by
	}
	if err == nil {
		err = h.startClient(ctx, m, nil, []string{"--volfile=/var/log/glusterfs/pin.vol", "--aux-gfid-mount"})
	}
	if err == nil {
		err = h.awaitMount(ctx, m)
	}
	if err == nil {
		tree, err = h.Take(ctx, m)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reach a copy of volume %s: %w", m.Volume, err), h.unmount(context.WithoutCancel(ctx), m))
	}
	return tree, nil
}

// Pinned lists the volumes that a scrub has mounted, one that was cut off too. It asks none.
func (h *Host) Pinned() (volumes []string, err error) {
	all, err := h.mounts()
	for _, m := range all {
		if m.pinned() && !slices.Contains(volumes, m.Volume) {
			volumes = append(volumes, m.Volume)
		}
	}
	return volumes, err
}

// Unpin unmounts what a scrub of a volume has mounted. None there is no error.
func (h *Host) Unpin(ctx context.Context, volume string) error {
	return h.unpin(ctx, volume, func(Mount) bool { return true })
}

func (h *Host) unpin(ctx context.Context, volume string, which func(Mount) bool) error {
	all, err := h.mounts()
	for _, m := range all {
		if m.pinned() && m.Volume == volume && which(m) {
			err = errors.Join(err, h.Unmount(ctx, m))
		}
	}
	return err
}

// pathOf is where a file is in its volume, "" if that can't be said: by what its brick knows of it.
func pathOf(brick, gfid string) string {
	link := func(gfid string) string { return filepath.Join(brick, ".glusterfs", gfid[:2], gfid[2:4], gfid) }
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(link(gfid), list)
	if err != nil {
		return ""
	}
	parent, name := "", ""
	for key := range strings.SplitSeq(string(list[:n]), "\x00") {
		value := make([]byte, 1024)
		if !strings.HasPrefix(key, "trusted.gfid2path.") {
			continue
		}
		if n, err = unix.Lgetxattr(link(gfid), key, value); err == nil {
			parent, name, _ = strings.Cut(string(value[:n]), "/")
			break
		}
	}
	const root = "00000000-0000-0000-0000-000000000001"
	for range 64 {
		if parent == root {
			return name
		}
		if !gfidForm.MatchString(parent) {
			return ""
		}
		to, err := os.Readlink(link(parent)) // ../../ab/cd/PARENT/NAME
		if err != nil {
			return ""
		}
		name, parent = filepath.Join(filepath.Base(to), name), filepath.Base(filepath.Dir(to))
	}
	return ""
}
