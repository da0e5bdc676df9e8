package payload

import (
	"path/filepath"

	"github.com/multipaas/multipaas/appliance/inventory"
)

// Traces are what is unpacked in dir. What was left half unpacked goes when a
// payload is unpacked next.
func Traces(dir string) inventory.Traces {
	return inventory.Traces{
		Trees:     []string{filepath.Join(dir, "trees")},
		Temporary: []string{filepath.Join(dir, "tmp")},
		Closed:    []string{dir},
	}
}
