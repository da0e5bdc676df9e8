// Package workspace turns the workspaces in the store into running Kubernetes
// clusters: it allocates their networks and keys, runs their planes, places
// their machines on nodes, installs what every cluster needs and takes it all
// away again.
//
// It is one level-triggered controller: every pass over a workspace compares
// what is wanted with what is there and takes the next steps, so a pass may be
// lost, repeated or cut short by kill -9 at any point. It runs planes and
// networks through interfaces declared here; the nodes' agents follow what it
// writes about machines. DESIGN.md says why. Only package appliance imports it.
package workspace
