package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/multipaas/multipaas/appliance/atomicfile"
)

const (
	// saveEvery is how often the table is saved at most while it changes.
	saveEvery = time.Second
	// saveShare bounds the work to a twentieth of the time: 50,000 routes take
	// about a quarter of a second.
	saveShare = 20
	// maxSaved is far above 50,000 routes with 1,000 pods each.
	maxSaved = 1 << 30
)

// savedTable is the file from which the balancer serves after a restart, until
// the store and the planes are there.
type savedTable struct {
	Routes    []*entry         `json:"routes"`
	Endpoints []savedEndpoints `json:"endpoints"`
}

type savedEndpoints struct {
	Workspace string       `json:"workspace"`
	Namespace string       `json:"namespace"`
	Service   string       `json:"service"`
	Addresses []netip.Addr `json:"addresses"`
}

// load fills the table from a file. None there is no error.
func (t *table) load(file string) error {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load routes: %w", err)
	}
	if info.Size() > maxSaved {
		return fmt.Errorf("load routes: %s has %d bytes", file, info.Size())
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("load routes: %w", err)
	}
	var saved savedTable
	if err := json.Unmarshal(data, &saved); err != nil {
		return fmt.Errorf("load routes from %s: %w", file, err)
	}
	for _, e := range saved.Routes {
		if e == nil {
			continue
		}
		if host, ok := canonicalHost(e.Host); !ok || host != e.Host || e.Port == 0 {
			continue
		}
		t.add(e)
	}
	for _, s := range saved.Endpoints {
		t.setEndpoints(service{s.Workspace, s.Namespace, s.Service}, s.Addresses)
	}
	return nil
}

func (t *table) save(file string) error {
	var saved savedTable
	t.mu.RLock()
	for _, e := range t.routes {
		saved.Routes = append(saved.Routes, e)
	}
	for s, addrs := range t.endpoints {
		saved.Endpoints = append(saved.Endpoints, savedEndpoints{s.workspace, s.namespace, s.name, addrs})
	}
	t.mu.RUnlock() // entries and address lists never change
	data, err := json.Marshal(saved)
	if err != nil {
		return fmt.Errorf("save routes: %w", err)
	}
	if err := atomicfile.Write(file, data, 0o600); err != nil {
		return fmt.Errorf("save routes: %w", err)
	}
	return nil
}

// keepSaved saves the table after changes until ctx is done, and then once more.
func (b *Balancer) keepSaved(ctx context.Context, file string) {
	for {
		select {
		case <-b.table.dirty:
		case <-ctx.Done():
			select {
			case <-b.table.dirty:
				if err := b.table.save(file); err != nil {
					b.log.Error("keep the routing table", "err", err)
				}
			default:
			}
			return
		}
		begin := time.Now()
		if err := b.table.save(file); err != nil {
			b.log.Error("keep the routing table", "err", err)
			b.table.touch()
		}
		pause := time.NewTimer(max(saveEvery, saveShare*time.Since(begin)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}
