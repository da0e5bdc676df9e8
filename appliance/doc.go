// Package appliance is the machine: its configuration, its roles, the boot order
// of their parts, and the commands of `multipaas` that are about it. It is the one
// place where parts meet. DESIGN.md says how.
//
// Parties: main has its commands in the command table, tests drive it from
// outside. Only they may import it; it may import everything else of ours.
package appliance
