package storage

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the server in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "storage/volume/recorded", In: failpoint.Server, Cuts: "a claim's volume is in the store, and its maker was not told"},
		{Name: "storage/volume/placed", In: failpoint.Server, Cuts: "the volume has a host, and nobody has looked at it since"},
		{Name: "storage/volume/removed", In: failpoint.Server, Cuts: "its host has taken the volume away, and the resource is there"},
		{Name: "storage/snapshot/removed", In: failpoint.Server, Cuts: "its host has taken the snapshot away, and the resource is there"},
		{Name: "storage/move/stepped", In: failpoint.Server, Cuts: "a volume's move is a step further in the store, or seen to wait"},
	}
}
