// Package testpki makes certificate authorities for tests.
//
// Parties: tests.
package testpki

import (
	"testing"

	"github.com/multipaas/multipaas/appliance/pki"
)

// New is a new authority.
func New(t testing.TB) *pki.CA {
	t.Helper()
	cert, key, err := pki.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCA(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}
