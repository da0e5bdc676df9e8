package guard

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// podVolumeAllowed says whether a pod may bring a volume of this kind, and the
// kind's name. The Pod Security level "baseline" forbids hostPath only; but fc
// and iscsi look for block devices in the machine, and others run programs
// of the machine, so here the list is of what is known to be harmless. What
// comes by a claim was checked when its PersistentVolume was made.
func podVolumeAllowed(v corev1.VolumeSource) (kind string, ok bool) {
	switch {
	case v == (corev1.VolumeSource{}): // the API makes it an emptyDir
	case v.EmptyDir != nil, v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil, v.Projected != nil,
		v.PersistentVolumeClaim != nil, v.Ephemeral != nil, v.CSI != nil, v.NFS != nil, v.Image != nil:
	default:
		return firstSet(v), false
	}
	return "", true
}

// nfsOptions are what nfs(5) knows and what makes a mount weaker. The others
// are mount(8)'s own, by which kubelet mounts something else: "bind" any folder
// of the machine.
var nfsOptions = map[string]bool{
	"ro": true, "rw": true, "nodev": true, "nosuid": true, "noexec": true, "noatime": true, "nodiratime": true, "relatime": true,
	"sync": true, "async": true, "_netdev": true, "defaults": true,
	"nfsvers": true, "vers": true, "minorversion": true, "proto": true, "tcp": true, "udp": true, "rdma": true, "port": true,
	"mountport": true, "mountproto": true, "mountvers": true, "mounthost": true, "mountaddr": true, "namlen": true,
	"soft": true, "softerr": true, "softreval": true, "nosoftreval": true, "hard": true, "intr": true, "nointr": true,
	"timeo": true, "retrans": true, "retry": true, "rsize": true, "wsize": true, "bg": true, "fg": true,
	"ac": true, "noac": true, "acregmin": true, "acregmax": true, "acdirmin": true, "acdirmax": true, "actimeo": true,
	"cto": true, "nocto": true, "lookupcache": true, "rdirplus": true, "nordirplus": true, "acl": true, "noacl": true,
	"lock": true, "nolock": true, "local_lock": true, "resvport": true, "noresvport": true, "sharecache": true, "nosharecache": true,
	"sec": true, "nconnect": true, "max_connect": true, "trunkdiscovery": true, "notrunkdiscovery": true, "migration": true, "nomigration": true,
	"clientaddr": true, "write": true, "xprtsec": true,
}

// checkNFS is for what kubelet hands to mount(8) as "server:path" and by -o. A
// server that is no name can be an option, or a folder of the machine.
func checkNFS(server string, options []string) error {
	if _, err := netip.ParseAddr(strings.Trim(server, "[]")); err != nil && len(validation.IsDNS1123Subdomain(strings.ToLower(server))) > 0 {
		return fmt.Errorf("nfs server %q is neither a name nor an address", server)
	}
	for _, o := range options {
		name, _, _ := strings.Cut(o, "=")
		if !nfsOptions[name] || strings.ContainsAny(o, ", \t\n\"\\") {
			return fmt.Errorf("mount option %q is not one of nfs", o)
		}
	}
	return nil
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

// firstSet returns the name of the first pointer in a struct that is not nil,
// the way users write it.
func firstSet(source any) string {
	v := reflect.ValueOf(source)
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
			field := v.Type().Field(i)
			if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
				return name
			}
			return lowerFirst(field.Name)
		}
	}
	return "unknown"
}

// lowerFirst turns "HostPath" into "hostPath" and "ISCSI" into "iscsi".
func lowerFirst(name string) string {
	if strings.ToUpper(name) == name {
		return strings.ToLower(name)
	}
	return strings.ToLower(name[:1]) + name[1:]
}

func writeJSON(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }
