// Package storage is the server's side of volumes: it chooses the hosts that volumes are
// on, takes volumes through their life, and serves what each workspace's plane asks for
// its claims by CSI (github.com/container-storage-interface/spec).
//
// It promises that a volume belongs to one workspace and is found under that alone, that
// what claims make counts in the limits of the account as everything else does, and that
// nothing of a volume is destroyed but because that volume, by its UID, was deleted.
//
// Parties: planes ask by a socket of their own; the hub (modules/node) tells hosts' agents
// what shall be and writes down what they see. Only package appliance imports it.
package storage
