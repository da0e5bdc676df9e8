package apps

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestScaler(t *testing.T) {
	t.Parallel()
	replicas, other := `{"f:spec":{"f:replicas":{}}}`, `{"f:spec":{"f:paused":{}}}`
	for _, tt := range []struct{ by, subresource, fields, want string }{
		{"plane", "scale", replicas, "a HorizontalPodAutoscaler"},
		{"plane", "", other, ""},
		{"plane", "status", `{"f:status":{"f:replicas":{}}}`, ""},
		{"kubectl", "scale", replicas, "kubectl"},
		{"kubectl-edit", "", replicas, "kubectl-edit"},
		{manager, "", replicas, ""},
		{"kubectl", "", `{`, ""},
	} {
		fields := metav1.ManagedFieldsEntry{Manager: tt.by, Subresource: tt.subresource, FieldsV1: metav1.NewFieldsV1(tt.fields)}
		if got := scaler([]metav1.ManagedFieldsEntry{{Manager: manager}, fields}); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt, got, tt.want)
		}
	}
}
