package faultpoint

// Where a point is reached.
const (
	Server = "server"
	Node   = "node"
	Both   = "server and node"
)

// Point is a place in the code between two steps of an operation.
type Point struct {
	Name string // OPERATION/WHAT-IS-DONE
	In   string // which process gets there: Server, Node or Both
	Cuts string // what is done, and what is not yet
}

// Points are all there are, in the order of the operations they cut.
func Points() []Point {
	return []Point{
		{"pki/key-written", Both, "a key stands, its certificate does not"},
		{"file/written", Both, "the new content stands beside the file, which is still the old one"},
		{"store/committed", Server, "a commit is in etcd, who asked for it does not know"},

		{"bootstrap/platform-authority-made", Server, "the platform's authority stands, etcd's does not"},
		{"bootstrap/etcd-root-made", Server, "etcd has its root user and lets everybody in still"},
		{"bootstrap/etcd-closed", Server, "etcd asks who one is; nobody has been told it is ready"},
		{"bootstrap/admin-file-written", Server, "the first sysadmin's password is in the file, the user is not there"},
		{"bootstrap/admin-made", Server, "the first sysadmin is there"},

		{"payload/file-unpacked", Both, "a file is unpacked, under its temporary name"},
		{"payload/files-unpacked", Both, "all files are unpacked, no tree has them"},
		{"payload/tree-linked", Both, "the tree is whole, under its temporary name"},
		{"payload/tree-pruned", Both, "a former tree is gone, its files are not"},

		{"workspace/create/committed", Server, "workspace and task are in the store, the client has no answer"},
		{"workspace/create/allocated", Server, "network number and keys are in the store, nothing is on the host"},
		{"workspace/create/etcd-user-made", Server, "the plane's user is in etcd, its certificate is not there"},
		{"workspace/create/files-written", Server, "the plane's files stand, its process does not run"},
		{"workspace/create/process-started", Server, "the plane's process starts"},
		{"workspace/create/plane-ready", Server, "the plane answers, the status does not say so"},
		{"workspace/create/addon-applied", Server, "the first of the cluster's objects is there, the others are not"},
		{"workspace/create/addons-applied", Server, "all of the cluster's objects are there, the status does not say so"},
		{"workspace/machine/placed", Server, "a machine is in the store, no agent knows"},
		{"workspace/scale/committed", Server, "the new number of machines is in the store, no machine is"},
		{"workspace/scale/machine-marked", Server, "a machine shall go, nothing of it has"},
		{"workspace/scale/machine-drained", Server, "a machine's pods are gone, its agent does not know"},
		{"workspace/scale/node-deleted", Server, "a machine and its Kubernetes node are gone, the record is not"},
		{"workspace/scale/machine-deleted", Server, "the record of a machine is gone"},
		{"workspace/delete/marked", Server, "the workspace shall go, its apps are not told"},
		{"workspace/delete/machines-marked", Server, "a machine is told to go, others may not be"},
		{"workspace/delete/plane-stopped", Server, "the plane's process has ended, its data is there"},
		{"workspace/delete/etcd-user-removed", Server, "the plane's user and keys are gone from etcd, its folder is not"},
		{"workspace/delete/plane-removed", Server, "nothing of the plane is left, the network is"},
		{"workspace/delete/network-removed", Server, "nothing is left on the server's host, the records are"},
		{"workspace/delete/committed", Server, "the records are gone, nobody was told"},

		{"network/attach/namespace-made", Both, "the workspace's namespace is there, empty"},
		{"network/attach/rules-set", Both, "the rules stand, no link does"},
		{"network/attach/bridge-made", Both, "the bridge is there, the way to other hosts is not"},
		{"network/attach/vxlan-made", Both, "the way to other hosts is there, the one to the outside is not"},
		{"network/attach/uplink-made", Both, "all links are there, the members are not known"},
		{"network/detach/links-removed", Both, "the links are gone, the host's rules are not"},
		{"network/detach/rules-removed", Both, "the host's rules are gone if it was the last network, the namespace is not"},
		{"network/detach/namespace-removed", Both, "nothing of the network is left, nobody was told"},
		{"network/machine/namespace-made", Node, "the machine's namespace is there, its link is not"},
		{"network/machine/port-made", Node, "the machine's link is there, nothing says whose it is"},
		{"network/machine/port-joined", Node, "the machine's link is on the bridge, its addresses are not set"},
		{"network/machine/port-removed", Node, "the machine's link is gone, its namespace is not"},

		{"agent/state-kept", Node, "the new state is on disk, nothing of it was done"},
		{"agent/certificates-signed", Node, "the server has signed for a machine, nothing is kept"},
		{"agent/certificates-kept", Node, "the machine's certificates are kept, it is not made"},
		{"agent/machine-removed", Node, "the machine is gone, its network and keys are not"},
		{"agent/network-removed", Node, "the machine and its network are gone, its keys are not"},
		{"agent/keys-removed", Node, "nothing of the machine is left, the server does not know"},

		{"machine/start/recorded", Node, "the machine's folder and record are there"},
		{"machine/start/image-unpacked", Node, "the image is unpacked, under its temporary name"},
		{"machine/start/disk-file-made", Node, "the disk's file is there, without a file system"},
		{"machine/start/disk-formatted", Node, "the disk has a file system, but not its name"},
		{"machine/start/loop-attached", Node, "the loop device is there, not mounted"},
		{"machine/start/disk-mounted", Node, "the disk is mounted, the root is not"},
		{"machine/start/root-mounted", Node, "the root is mounted, the control group is not there"},
		{"machine/start/group-made", Node, "the control group is there, the bundle is not"},
		{"machine/start/bundle-written", Node, "everything is there, the container is not"},
		{"machine/start/container-running", Node, "the container runs, the record does not count it"},
		{"machine/remove/processes-ended", Node, "the machine's processes are gone, the container is known"},
		{"machine/remove/container-deleted", Node, "the container is gone, its group and mounts are not"},
		{"machine/remove/unmounted", Node, "nothing is mounted, the files are there"},

		{"node/join/token-spent", Server, "the token is used up, the node is not there"},
		{"node/join/recorded", Server, "the node is there, its certificate is not signed"},
		{"node/join/signed", Server, "the certificate is signed, the node does not have it"},
		{"node/join/answered", Node, "the node has its certificate, but not on disk"},
		{"node/join/kept", Node, "the node knows who it is, and runs nothing"},
		{"node/renew/signed", Node, "the node has a new certificate, but not on disk"},
		{"node/renew/kept", Node, "the new certificate is on disk, the old one is in use"},
		{"node/leave/marked", Server, "the node shall go, it has no answer"},
		{"node/leave/machine-marked", Server, "a machine of the node shall go, others may not"},
		{"node/leave/deleted", Server, "the node's record is gone, its agent does not know"},
		{"node/leave/cleaned", Node, "machines and networks are gone, the identity is not"},

		{"app/deploy/committed", Server, "app and task are in the store, the client has no answer"},
		{"app/deploy/service-applied", Server, "the Service is there, the Deployment is not"},
		{"app/deploy/deployment-applied", Server, "the Deployment is there, the route is not"},
		{"app/deploy/route-made", Server, "the route is there, the status does not say so"},
		{"app/delete/marked", Server, "the app shall go, the client has no answer"},
		{"app/delete/route-removed", Server, "nobody is sent to the app any more, it runs"},
		{"app/delete/objects-deleted", Server, "the cluster has been told to delete the app"},
		{"certificate/locked", Server, "the lock of a domain's certificate is taken"},
		{"certificate/stored", Server, "one of key, certificate and description is stored"},

		{"image/push/upload-begun", Server, "an upload is there, the client does not know"},
		{"image/push/blob-received", Server, "a blob's bytes are there, under the upload's name"},
		{"image/push/blob-committed", Server, "a blob has its name, the client does not know"},
		{"image/push/manifest-put", Server, "manifest and tag are there, the client does not know"},
		{"image/delete/one-removed", Server, "of a tag and its manifest one is gone"},
		{"image/collect/marked", Server, "garbage is known, none is removed"},
		{"image/collect/one-removed", Server, "a part of the garbage is removed"},

		{"token/create/committed", Server, "the token is in the store, who asked does not have it"},
		{"account/create/committed", Server, "account, owner and role are in the store, the client has no answer"},
		{"account/delete/marked", Server, "the account shall go, its roles are there"},
		{"account/delete/roles-dropped", Server, "nobody has a role in the account, it is there"},
		{"organization/delete/marked", Server, "the organization shall go, its roles are there"},
		{"organization/delete/roles-dropped", Server, "nobody has a role in the organization, its images are there"},
		{"organization/delete/images-removed", Server, "its images are gone, the organization is there"},
		{"user/delete/credential-removed", Server, "the user can't log in, his sessions go on"},
		{"user/delete/sessions-ended", Server, "the user's sessions are over, his roles are there"},
		{"user/delete/roles-removed", Server, "the user has no role, he is there"},
	}
}
