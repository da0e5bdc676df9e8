// Package datacenter builds a datacenter: a server, nodes that join it, a tenant
// with a workspace and an app that answers over TLS. Each step looks whether it is
// done already, so that building goes on where it ended before.
//
// It needs of a host what Host says: those of testing/lab have it by OnLab, the
// virtual machines of testing/vm by an adapter in its tests.
//
// Parties: `lab up`, testing/dctest for the suites, testing/bench/site,
// testing/vm. It does not import package testing.
package datacenter
