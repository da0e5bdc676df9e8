// Package appliance is the machine: its configuration, its roles and the boot
// order of their parts. It is the one place where parts meet.
//
// Parties: main runs what it makes, tests drive it from outside. Only they may
// import it; it may import everything else of ours.
package appliance
