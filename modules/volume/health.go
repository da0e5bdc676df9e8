package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/multipaas/multipaas/appliance/disk"
	"github.com/multipaas/multipaas/modules/resource"
)

// healthEvery is how often disks are asked how they are: what they count changes over days.
const healthEvery = 30 * time.Minute

// health is what is known of how the disks below a pool are.
type health struct {
	asking asker[string]

	mu   sync.Mutex
	last *answer[string]
	said string
}

// healthOf says how the disks below a pool are: resource.PoolWell, PoolHealthUnknown, or what is wrong. They are asked now
// and then, in a goroutine of its own: what is returned is what they have said last. It does not block.
func (h *Host) healthOf(p *pool) string {
	s := &p.health
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil || time.Since(s.last.since) > healthEvery {
		s.last = s.asking.begin(func() (string, error) { return h.askHealth(p) })
	}
	select {
	case <-s.last.done:
		// A disk that doesn't answer any more is no better than when it said what is wrong.
		now := resource.Pool{Health: s.last.value}
		if s.last.err != nil {
			now.Health = resource.PoolHealthUnknown
		}
		if was := (resource.Pool{Health: s.said}); !was.Ails() || now.Health != resource.PoolHealthUnknown {
			s.said = now.Health
		}
	default:
		if s.said == "" {
			s.said = resource.PoolHealthUnknown
		}
	}
	return s.said
}

func (h *Host) askHealth(p *pool) (string, error) {
	p.mu.Lock()
	device := p.device
	p.mu.Unlock()
	of := func() ([]disk.Device, error) { return disk.Below(p.dir) }
	if device != (disk.Device{}) {
		of = device.Disks
	}
	disks, err := of()
	if err != nil {
		return "", err
	}
	all, bad := resource.PoolHealthUnknown, []string{}
	for _, d := range disks {
		switch said := d.Health(context.Background(), h.cfg.Encryption.Tools); said {
		case disk.Unknown:
		case disk.Well:
			all = resource.PoolWell
		default:
			bad = append(bad, fmt.Sprintf("%s (%s): %s", d.Name, d.Serial, said))
		}
	}
	if len(bad) > 0 {
		return strings.Join(bad, "; "), nil
	}
	return all, nil
}

// ailing is what healthOf says as an error, nil if it says nothing bad.
func (h *Host) ailing(p *pool) error {
	if seen := (resource.Pool{Health: h.healthOf(p)}); seen.Ails() {
		return errors.New(seen.Health)
	}
	return nil
}
