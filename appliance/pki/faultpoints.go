package pki

import "github.com/multipaas/multipaas/appliance/faultpoint"

// Faultpoints are where a test kills the process in this package.
func Faultpoints() []faultpoint.Point {
	return []faultpoint.Point{
		{Name: "pki/key-written", In: faultpoint.Both, Cuts: "a key stands, its certificate does not"},
	}
}
