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

// Machines holds a folder for each machine on this node: its root file system's
// upper layer, the disk of its containers, its certificates.
func (p Paths) Machines() string { return p.data("machines") }

// Volumes holds a folder for each volume on this node: the disk in which a tenant's data is.
func (p Paths) Volumes() string { return p.data("volumes") }

// Pools holds a folder for each disk that was given this node for volumes, where it is mounted.
func (p Paths) Pools() string { return p.data("pools") }

// Storage is what GlusterFS keeps on this node, and where its volumes are mounted; bricks are
// among Volumes. StorageImages holds what of its image is unpacked, and StorageRunc what runc knows of it.
func (p Paths) Storage() string       { return p.data("storage") }
func (p Paths) StorageImages() string { return p.data("storage-images") }
func (p Paths) StorageRunc() string   { return p.run("storage") }

// Runc is where runc keeps its state.
func (p Paths) Runc() string { return p.run("runc") }

// Payload is where payload files are unpacked, by content.
func (p Paths) Payload() string { return p.data("payload") }

// Registry is the storage of the platform's registry.
func (p Paths) Registry() string { return p.data("registry") }

// Socket is where `multipaas status` asks.
func (p Paths) Socket() string { return p.run("status.sock") }

// Balancer holds the last routing table and copies of certificates, with which the
// balancer goes on while everything else is down.
func (p Paths) Balancer() string { return p.data("balancer") }

// Node is what a node remembers over a restart: who it is, on which platform,
// and what the server wanted last.
func (p Paths) Node() string { return p.data("node") }

// Images holds what this node has unpacked of images.
func (p Paths) Images() string { return p.data("images") }
