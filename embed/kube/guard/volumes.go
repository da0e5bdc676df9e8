package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/storage"

	"github.com/multipaas/multipaas/embed/kube/volumes"
)

// podVolumeAllowed says whether a pod may bring a volume of this kind, and the
// kind's name. The Pod Security level "baseline" forbids hostPath only; but fc
// and iscsi look for block devices in the machine, and others run programs
// of the machine, so here the list is of what is known to be harmless. What
// comes by a claim was checked when its PersistentVolume was made; the platform's own
// volumes come by one only.
func podVolumeAllowed(v corev1.VolumeSource) (kind string, ok bool) {
	switch {
	case v == (corev1.VolumeSource{}): // the API makes it an emptyDir
	case v.EmptyDir != nil, v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil, v.Projected != nil,
		v.PersistentVolumeClaim != nil, v.Ephemeral != nil, v.CSI != nil, v.NFS != nil, v.Image != nil:
	default:
		return firstSet(v), false
	}
	if v.CSI != nil && v.CSI.Driver == volumes.Driver {
		return "csi, which for " + volumes.Driver + " takes a PersistentVolumeClaim (ephemeral makes one)", false
	}
	return "", true
}

// nfsOptions are what nfs(5) knows and what makes a mount weaker. The others
// are mount(8)'s own, by which kubelet mounts something else: "bind" any folder
// of the machine.
var nfsOptions = strings.Fields(`
	ro rw nodev nosuid noexec noatime nodiratime relatime sync async _netdev defaults nfsvers vers minorversion
	proto tcp udp rdma port mountport mountproto mountvers mounthost mountaddr namlen soft softerr softreval
	nosoftreval hard intr nointr timeo retrans retry rsize wsize bg fg ac noac acregmin acregmax acdirmin
	acdirmax actimeo cto nocto lookupcache rdirplus nordirplus acl noacl lock nolock local_lock resvport
	noresvport sharecache nosharecache sec nconnect max_connect trunkdiscovery notrunkdiscovery migration
	nomigration clientaddr write xprtsec
`)

// checkNFS is for what kubelet hands to mount(8) as "server:path" and by -o. A
// server that is no name can be an option, or a folder of the machine.
func checkNFS(server string, options []string) error {
	if _, err := netip.ParseAddr(strings.Trim(server, "[]")); err != nil && len(validation.IsDNS1123Subdomain(strings.ToLower(server))) > 0 {
		return fmt.Errorf("nfs server %q is neither a name nor an address", server)
	}
	for _, o := range options {
		name, _, _ := strings.Cut(o, "=")
		if !slices.Contains(nfsOptions, name) || strings.ContainsAny(o, ", \t\n\"\\") {
			return fmt.Errorf("mount option %q is not one of nfs", o)
		}
	}
	return nil
}

// checkOwn is for volumes of the platform's own driver. Their file system is the
// platform's, and so is how it is mounted: the machine (embed/kube/volumes) would refuse another, and a
// claim would wait for ever for what its class says wrong.
func checkOwn(fsType string, options []string) error {
	if fsType != "" && fsType != "xfs" {
		return fmt.Errorf("volumes of %s have the file system that the platform chose, not %q: leave the type out",
			volumes.Driver, fsType)
	}
	for _, o := range options {
		if o != "ro" {
			return fmt.Errorf("volumes of %s take no mount option but ro: take %q out", volumes.Driver, o)
		}
	}
	return nil
}

// validateClass holds whatever the level: classes of the platform's driver can't ask
// for what no volume of it can be.
func validateClass(a admission.Attributes) error {
	class, err := as[*storage.StorageClass](a.GetObject())
	if err != nil || class.Provisioner != volumes.Driver {
		return err
	}
	for key, value := range class.Parameters {
		if key = strings.ToLower(key); key == "fstype" || key == "csi.storage.k8s.io/fstype" {
			err = errors.Join(err, checkOwn(value, nil))
		}
	}
	return errors.Join(err, checkOwn("", class.MountOptions))
}

// mountOptions are what kubelet mounts a volume with: the old annotation comes
// first, but here it does not matter which counts.
func mountOptions(pv *api.PersistentVolume) []string {
	var options []string
	if old := pv.Annotations[corev1.MountOptionAnnotation]; old != "" {
		options = strings.Split(old, ",")
	}
	return append(options, pv.Spec.MountOptions...)
}

// firstSet returns the JSON name of the first pointer in a struct that is not nil.
func firstSet(source any) string {
	for field, value := range reflect.ValueOf(source).Fields() {
		if value.Kind() == reflect.Pointer && !value.IsNil() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			return name
		}
	}
	return "unknown"
}
