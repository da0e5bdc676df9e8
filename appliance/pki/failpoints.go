package pki

import "github.com/multipaas/multipaas/appliance/failpoint"

// Failpoints are where a test kills the process in this package.
func Failpoints() []failpoint.Point {
	return []failpoint.Point{
		{Name: "pki/key-written", In: failpoint.Both, Cuts: "a key stands, its certificate does not"},
	}
}
