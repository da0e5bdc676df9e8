// Package paths says where everything of the appliance stands on a machine, so
// that no two packages have their own idea of it.
//
// Parties: the composition root fills each part's Config from here; the
// installer and the tests look here too. It makes nothing and reads nothing.
package paths

import "path/filepath"

// Defaults of the two roots and of the configuration file.
const (
	DefaultData   = "/var/lib/multipaas"
	DefaultRun    = "/run/multipaas"
	DefaultConfig = "/etc/multipaas/config.yaml"
)

// Paths are the places of one appliance. Data survives a reboot, Run does not.
type Paths struct {
	Data string
	Run  string
}

// Default are the places of an appliance that was not told otherwise.
func Default() Paths { return Paths{Data: DefaultData, Run: DefaultRun} }

func (p Paths) data(elem ...string) string {
	return filepath.Join(append([]string{p.Data}, elem...)...)
}

func (p Paths) run(elem ...string) string {
	return filepath.Join(append([]string{p.Run}, elem...)...)
}

// Lock is held by the server or node that owns the data directory.
func (p Paths) Lock() string { return p.data("lock") }

// PKI holds the platform's authority (ca.crt, ca.key) and the certificates of
// this server, or this node's certificate.
func (p Paths) PKI() string { return p.data("pki") }

// BootstrapAdmin is the file with the first sysadmin's credentials.
func (p Paths) BootstrapAdmin() string { return p.data("bootstrap-admin.json") }

// Etcd is the data directory of the embedded etcd.
func (p Paths) Etcd() string { return p.data("etcd") }

// EtcdSocket is where it serves its clients. It stands in the file system, not
// on a port, so that planes in other network namespaces reach it.
func (p Paths) EtcdSocket() string { return p.run("etcd.sock") }

// Planes holds a folder for each workspace's plane on this server.
func (p Paths) Planes() string { return p.data("planes") }

// Plane is the folder of one workspace's plane: keys, configuration, kine's
// database.
func (p Paths) Plane(id string) string { return p.data("planes", id) }

// Machines holds a folder for each machine on this node.
func (p Paths) Machines() string { return p.data("machines") }

// Machine is the folder of one machine: its root file system's upper layer, the
// disk of its containers, its certificates.
func (p Paths) Machine(uid string) string { return p.data("machines", uid) }

// MachineRun is what of a machine need not survive a reboot: sockets, runc's
// state.
func (p Paths) MachineRun(uid string) string { return p.run("machines", uid) }

// Runc is where runc keeps its state.
func (p Paths) Runc() string { return p.run("runc") }

// Payload is where payload files are unpacked, by content.
func (p Paths) Payload() string { return p.data("payload") }

// Registry is the storage of the platform's registry.
func (p Paths) Registry() string { return p.data("registry") }

// NodeState is what a node remembers over a restart: the server's address, its
// own name.
func (p Paths) NodeState() string { return p.data("node.json") }

// AgentState is the last wanted state that the server sent to this node, with
// which the node goes on while it can't reach the server.
func (p Paths) AgentState() string { return p.data("agent-state.json") }

// BalancerState is the last routing table, with which the balancer goes on
// while everything else is down.
func (p Paths) BalancerState() string { return p.data("balancer.json") }

// Logs holds the output of child processes.
func (p Paths) Logs() string { return p.data("log") }

// Log is the file for the output of one child process.
func (p Paths) Log(name string) string { return p.data("log", name+".log") }

// Socket is where `multipaas status` asks.
func (p Paths) Socket() string { return p.run("status.sock") }

// AdminSocket is where commands on the server itself ask, as its root.
func (p Paths) AdminSocket() string { return p.run("admin.sock") }
