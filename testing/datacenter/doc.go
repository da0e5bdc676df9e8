// Package datacenter is a whole datacenter for tests: lab hosts with the one
// file on them, brought up by `lab up`, and the ways in which people use it:
// `multipaas mp`, kubectl, HTTPS, the registry.
//
// Parties: the test packages in testing/e2e and below it; nothing else imports
// it. It needs root, dist/multipaas and dist/lab: `make build lab`.
package datacenter
