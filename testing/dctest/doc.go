// Package dctest is a whole datacenter for tests: lab hosts with the one file on
// them, brought up by testing/datacenter, and the ways in which people use it:
// `multipaas mp`, kubectl, HTTPS, the registry.
//
// Parties: the test packages in testing/e2e and below it, and testing/vm for
// its counts. It needs root and dist/multipaas: `make build`.
package dctest
