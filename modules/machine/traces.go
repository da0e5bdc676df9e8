package machine

import "github.com/multipaas/multipaas/appliance/inventory"

// Traces are what machines are on a host, kept as cfg says.
func Traces(cfg Config) inventory.Traces {
	return inventory.Traces{
		Folders: []inventory.OwnedFolder{
			// What is below, a whole Debian among it, is the machine's.
			{Dir: cfg.Dir, Owner: inventory.Machine, HalfWritten: true},
			{Dir: cfg.Runc, Owner: inventory.Machine},
		},
		Groups: map[string]func(string) inventory.Owner{groups: inventory.Machine},
		Trees:  []string{cfg.Images},
		Closed: []string{cfg.Dir, cfg.Runc, cfg.Images},
	}
}
