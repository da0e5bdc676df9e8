package agent

import (
	"path/filepath"

	"github.com/multipaas/multipaas/appliance/inventory"
)

// Traces are what an agent keeps in dir: the keys of machines.
func Traces(dir string) inventory.Traces {
	return inventory.Traces{Folders: []inventory.OwnedFolder{{Dir: filepath.Join(dir, keysFolder), Owner: inventory.Machine}}}
}
