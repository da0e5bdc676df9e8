package etcd

import (
	"path/filepath"

	"github.com/multipaas/multipaas/appliance/inventory"
)

// Traces are what a server in dir makes: its data is its own business.
func Traces(dir string) inventory.Traces {
	return inventory.Traces{Closed: []string{filepath.Join(dir, "data")}}
}
