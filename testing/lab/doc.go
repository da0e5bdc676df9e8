// Package lab makes hosts on this machine: real ones as far as software on them
// can tell, made of namespaces. It puts the real binary on them, joins them by
// a network, and cuts links and power.
//
// A host has its own network, mounts, processes, host name, IPC and control
// groups, its own disk (a folder that survives loss of power) and its own /run,
// /tmp, /var/log and /etc, which don't. Its process 1 is ours; to kill it is to
// pull the plug. Hosts hang on a bridge in the namespace of whoever makes the
// lab, so a developer's curl reaches them. They have no default route: nothing
// in a lab asks the outside. Services have mounts of their own and can't write to
// the system, as the appliance's units have it.
//
// Parties: the command testing/lab/cmd/lab, by which `make up` brings up a
// datacenter, and end-to-end tests. Both call Hook first. Nothing else may
// import it. It needs root, nsenter and nft.
//
// MULTIPAAS_KEEP=failure leaves the hosts of a failed test standing and prints
// how to look around; the next `lab sweep` removes them.
package lab
