package guard

import (
	"encoding/json"
	"io"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
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
