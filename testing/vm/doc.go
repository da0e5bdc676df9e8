// Package vm boots virtual machines with Debian as it is - its kernel, systemd,
// control groups version 2 - and runs commands in them. Its tests run the
// appliance there, by the units of installer/units as they are.
//
// The hosts of testing/lab share the kernel of the machine that builds, with
// whatever that lacks or has more; what a customer's machine has is here:
//
//	root.qcow2   a plain Debian server, made by root/build.sh and kept by
//	             .ci/cached.sh; each machine writes to a copy on top of it
//	memory       what cmd/boot has kept of each machine after its first boot, so
//	             that tests begin with a machine that is up
//	disk         dist/multipaas and the units, read only, at /opt/multipaas: a
//	             new build needs no new root file system. It is plugged in later
//	eth0         a cable between two machines: datagrams between two sockets of
//	             QEMU, which nothing else on this machine sees
//	agent        QEMU's guest agent, over a virtual serial port: a command has
//	             its exit status, and no network is needed to run it
//	console      the serial console, in a file
//
// Processors are emulated (TCG), for KVM can't be relied on where this is
// built. Emulated ones take for the same work
//
//	hashing, AES, TLS          20 to 120 times as long
//	starting a process         12 times
//
// so TestDebian does in its short form what a host does without tenants: the
// tests of modules/network, preflight, server, join, reboot. With
// MULTIPAAS_LONG=1 it goes on with a workspace and an app, a restart of both
// units, a node without its agent, clocks that jump a day on and back, and power
// losses.
//
// What the short form's steps took of both machines' processors, in seconds, on a
// build machine that gave them a third of one because others worked on it (waits
// then work too: a server that does nothing takes an eighth of a processor):
//
//	boot 12, preflight 43, server 93, join 220, reboot 251; all 620 in 1529 s
//
// The tests of modules/network take 35 to 50 more. The first boot takes 120 more,
// once, and the root file system 50. A node's first start is its payload: 340 MB
// to decompress and hash at 4 MB/s.
//
// QEMU ends with the process that started it, however that ends.
//
// Parties: its own tests and cmd/boot. It drives from outside and imports nothing of the
// appliance.
package vm
