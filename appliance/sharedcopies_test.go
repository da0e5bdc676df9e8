package appliance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/multipaas/multipaas/modules/wire"
)

// copies: it is looked at a volume as often as somebody wants to; a brick of it is copied, and becomes the first of another
// volume's, whose others get what is in it; all of it goes. lead tells who leads, has says that a brick has what the volume
// holds.
func (s *shared) copies(
	v wire.ClusterVolume, lead func(look int64, beside ...wire.ClusterVolume), has func(h *sharedHost, brick string) error,
) {
	h1 := s.hosts[0]
	seen := func(uid string) wire.ClusterReport {
		r, _ := item[wire.ClusterReport](h1, wire.ClusterItem, uid)
		return r
	}
	processes := ""
	for look := int64(1); look <= 2; look++ {
		lead(look)
		s.until("it was looked at", func() error {
			now := ""
			for _, b := range seen(v.UID).Bricks {
				if now += fmt.Sprint(b.Process, " "); b.Looked != look || b.Heal != 0 || b.Process == 0 {
					return fmt.Errorf("it is %+v", seen(v.UID))
				}
			}
			if processes != "" && now != processes {
				s.t.Errorf("processes were %s, are %s", processes, now)
			}
			processes = now
			return nil
		})
	}
	const then, back = "5a0b-then", "5a0b-back"
	snapshot := wire.Volume{Key: "acme/web/shop/then", UID: then, NetworkID: v.NetworkID, Class: "local",
		SizeBytes: h1.state.Storage.Bricks[0].SizeBytes, Source: v.Bricks[0].UID, Snapshot: true}
	h1.state.Volumes = append(h1.state.Volumes, snapshot)
	h1.tell()
	s.until("there is a snapshot", func() error {
		if r, ok := item[wire.VolumeReport](h1, wire.VolumeItem, then); !ok || !r.Ready {
			return fmt.Errorf("it is %+v", r)
		}
		return nil
	})
	copied := wire.ClusterVolume{Key: "acme/web/shop/back", UID: back, NetworkID: v.NetworkID, Hosts: v.Hosts}
	var uids []string
	for i, h := range s.hosts {
		b := wire.Brick{Key: copied.Key, Volume: back, UID: fmt.Sprintf("c%d", i+1), NetworkID: v.NetworkID, SizeBytes: snapshot.SizeBytes}
		if i == 0 {
			b.Source = then
		}
		h.state.Storage.Bricks = append(h.state.Storage.Bricks, b)
		h.tell()
		uids = append(uids, b.UID)
		s.until("a brick is made", func() error { return h.brick(b.UID, true, b.SizeBytes) })
		copied.Bricks = append(copied.Bricks, wire.ClusterBrick{UID: b.UID, Address: h.address, Ready: true, Filling: i > 0})
	}
	for i, h := range s.hosts[1:] {
		if entries, err := os.ReadDir(filepath.Join(h.BrickDir(), uids[i+1], "volume/brick")); err != nil || len(entries) > 0 {
			s.t.Errorf("brick %s has %v, %v", uids[i+1], entries, err)
		}
	}
	lead(2, copied)
	s.until("it is made of the first", func() error {
		if r := seen(back); !r.Ready || len(r.Bricks) == 0 || r.Bricks[0].UID != "c1" {
			return fmt.Errorf("it is %+v", r)
		}
		return has(h1, "c1")
	})
	copied.Made = true
	lead(2, copied)
	s.until("it has all its bricks, and all have all", func() error {
		var well []string
		for _, b := range seen(back).Bricks {
			if b.Online && b.Heal == 0 {
				well = append(well, b.UID)
			}
		}
		if !slices.Equal(well, uids) {
			return fmt.Errorf("it is %+v", seen(back))
		}
		return errors.Join(has(s.hosts[1], "c2"), has(s.hosts[2], "c3"))
	})
	for i := range copied.Bricks {
		copied.Bricks[i].Filling = false
	}
	copied.Remove = true
	lead(2, copied)
	s.until("it is forgotten", func() error {
		if r := seen(back); !r.Removed {
			return fmt.Errorf("it is %+v", r)
		}
		return nil
	})
	h1.state.Volumes[len(h1.state.Volumes)-1].Remove = true
	for _, h := range s.hosts {
		h.state.Storage.Bricks[len(h.state.Storage.Bricks)-1].Remove = true
		h.tell()
	}
	for i, h := range s.hosts {
		s.until("bricks are gone", func() error { return h.removed(uids[i]) })
		h.state.Storage.Bricks = h.state.Storage.Bricks[:len(h.state.Storage.Bricks)-1]
	}
	s.until("the snapshot is gone", func() error {
		if r, ok := item[wire.VolumeReport](h1, wire.VolumeItem, then); !ok || !r.Removed {
			return fmt.Errorf("it is %+v", r)
		}
		return nil
	})
	h1.state.Volumes = h1.state.Volumes[:len(h1.state.Volumes)-1]
	lead(2)
}
