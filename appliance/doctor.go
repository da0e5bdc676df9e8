package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/multipaas/multipaas/appliance/doctor"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/paths"
	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/embed/etcd"
	"github.com/multipaas/multipaas/embed/payload"
	"github.com/multipaas/multipaas/modules/agent"
	"github.com/multipaas/multipaas/modules/machine"
	"github.com/multipaas/multipaas/modules/network"
	"github.com/multipaas/multipaas/modules/registry"
	"github.com/multipaas/multipaas/modules/volume"
)

// Doctor looks for what of MultiPaaS on this host nobody wants; with fix it
// removes that, and tells removed of each. Of volumes it removes those with these UIDs. It works while the appliance runs and
// while it is stopped; then nobody can start it until Doctor returns.
func Doctor(ctx context.Context, p paths.Paths, fix bool, volumes []string, removed func(doctor.Orphan)) (doctor.Report, error) {
	cfg := doctor.Config{Paths: p, Traces: traces(p), Fix: fix, Volumes: doctor.Set(volumes), Removed: removed}
	release, err := holdIfStopped(ctx, p)
	if err != nil {
		return doctor.Report{}, err
	}
	if release != nil {
		defer release()
		w, err := wantedOnDisk(p)
		if err != nil {
			return doctor.Report{}, err
		}
		cfg.Stopped = &w
	}
	return doctor.Look(ctx, cfg)
}

// holdIfStopped keeps the appliance from starting if it does not run; release
// is nil if it does.
func holdIfStopped(ctx context.Context, p paths.Paths) (release func(), err error) {
	if _, err := inventory.Ask(ctx, p.Socket()); err == nil || !errors.Is(err, status.ErrNotRunning) {
		return nil, err
	}
	if _, err := os.Stat(p.Data); err != nil {
		return nil, fmt.Errorf("data directory: %w: nothing of MultiPaaS is kept here; say where with --data-dir or --config", err)
	}
	const why = "%w: it does not answer at %s: if it is starting, try again; if its run directory is another, say so with --config"
	unlock, err := lock(p.Lock())
	if err != nil {
		return nil, fmt.Errorf(why, err, p.Socket())
	}
	unlockHost, err := lock(hostLock)
	if err != nil {
		unlock()
		return nil, fmt.Errorf(why, err, p.Socket())
	}
	return func() { unlockHost(); unlock() }, nil
}

// wantedOnDisk is what the data directory of a stopped appliance says.
func wantedOnDisk(p paths.Paths) (doctor.Wanted, error) {
	w := doctor.Wanted{
		Source:     "the data directory " + p.Data + ", since MultiPaaS does not run here",
		Stopped:    true,
		Workspaces: doctor.Set(nil),
	}
	_, err := os.Stat(p.Etcd())
	server := err == nil
	if server {
		// The datastore is closed; who has a folder may have a workspace.
		ids, err := (&planes{base: &base{cfg: Config{Paths: p}}}).List()
		if err != nil {
			return w, err
		}
		w.Workspaces = doctor.Set(ids)
		w.Notes = append(w.Notes, "the datastore and the planes' data: the server is stopped; start it, and ask again")
	}
	s, err := agent.StateOnDisk(p.Node())
	switch {
	case err == nil:
		networks, machines, volumes := s.Wanted()
		w.Machines, w.Volumes = doctor.Set(machines), doctor.Set(volumes)
		for _, id := range networks {
			w.Workspaces[id] = true
		}
	case !errors.Is(err, fs.ErrNotExist):
		w.Workspaces = nil
		w.Notes = append(w.Notes, "workspaces and machines: "+err.Error())
	case server:
		w.Notes = append(w.Notes, "machines: this host is a server")
	default:
		w.Notes = append(w.Notes, "machines: this host has not heard from a server")
		w.Volumes = doctor.Set(nil) // those of a platform that it has left
	}
	return w, nil
}

// traces are what our parts make on hosts: each says what it makes.
func traces(p paths.Paths) []inventory.Traces {
	return []inventory.Traces{
		payload.Traces(p.Payload()),
		etcd.Traces(p.Etcd()),
		planeTraces(p.Planes()),
		network.Traces(),
		machine.Traces(machine.Config{Dir: p.Machines(), Images: p.Images(), Runc: p.Runc()}),
		volume.Traces(poolDirs(p)...),
		storageTraces(p),
		agent.Traces(p.Node()),
		registry.Traces(p.Registry()),
	}
}

// poolDirs are the folders in which this host has volumes: its own, disks' mounts, and folders that its server has named.
func poolDirs(p paths.Paths) []string {
	disks, _ := filepath.Glob(filepath.Join(p.Pools(), "*"))
	dirs := append([]string{p.Volumes()}, disks...)
	if s, err := agent.StateOnDisk(p.Node()); err == nil {
		for _, pool := range s.Pools {
			if pool.Path != "" {
				dirs = append(dirs, pool.Path)
			}
		}
	}
	return dirs
}
