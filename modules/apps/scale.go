package apps

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// adoptScale makes a number of instances that somebody set in the cluster itself,
// by kubectl scale or a HorizontalPodAutoscaler, the number that the app asks for:
// it is what its owner wants, said in another place. Who says it last wins: a
// number that was asked of the platform and is not in the cluster yet is newer
// than what is there. Adopted, the app has changed, and is looked at again.
func (c *Controller) adoptScale(ctx context.Context, k *cluster, app *resource.App, there found) (adopted bool, err error) {
	if len(there.deployments) != 1 || app.Status.InstancesApplied != app.Spec.Instances {
		return false, nil
	}
	d := there.deployments[0]
	if d.Spec.Replicas == nil || int(*d.Spec.Replicas) == app.Spec.Instances {
		return false, nil
	}
	// The mirror is late, and knows nobody's fields.
	d, err = k.client.AppsV1().Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get deployment %s/%s: %w", namespaceOf(app), app.Name, err)
	}
	by := scaler(d.ManagedFields)
	if by == "" || d.Spec.Replicas == nil || d.DeletionTimestamp != nil {
		return false, nil
	}
	want := min(int(*d.Spec.Replicas), resource.MaxInstances)
	if want > 1 && app.Spec.Instances < 2 {
		shared, err := k.shared(ctx, app)
		if err != nil {
			return false, err
		}
		if !shared {
			want = 1
		}
	}
	if want == app.Spec.Instances {
		return false, nil
	}
	_, err = store.Of[resource.App](c.cfg.Store).Modify(ctx, app.Key(), func(now *resource.App) error {
		if now.UID != app.UID || now.Deleting() || now.Spec.Instances != app.Spec.Instances {
			return store.ErrSkip // he who changed it has the last word
		}
		now.Spec.Instances = want
		now.Status.InstancesApplied, now.Status.ScaledBy = want, by
		return nil
	})
	if err != nil {
		return false, unlessGone(err)
	}
	c.cfg.Log.Info("app was scaled in its cluster", "app", app.Key(), "from", app.Spec.Instances, "to", want, "by", by)
	return true, nil
}

// shared says whether several machines may have all of an app's volumes at once.
func (k *cluster) shared(ctx context.Context, app *resource.App) (bool, error) {
	for _, v := range app.Spec.Volumes {
		pvc, err := k.client.CoreV1().PersistentVolumeClaims(namespaceOf(app)).Get(ctx, v.Claim, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && !slices.Contains(pvc.Spec.AccessModes, corev1.ReadWriteMany) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("get claim %s/%s: %w", namespaceOf(app), v.Claim, err)
		}
	}
	return true, nil
}

// planeManager is the name under which the controllers of a plane write: that of its
// program, since they run in one process with the rest of it.
const planeManager = "plane"

// scaler is who set the number of replicas past us, or "".
func scaler(fields []metav1.ManagedFieldsEntry) string {
	for _, f := range fields {
		if f.Manager == manager || f.FieldsV1 == nil {
			continue
		}
		var set struct {
			Spec map[string]json.RawMessage `json:"f:spec"`
		}
		if err := json.Unmarshal(f.FieldsV1.GetRawBytes(), &set); err != nil {
			continue
		}
		if _, ok := set.Spec["f:replicas"]; !ok {
			continue
		}
		if f.Subresource == "scale" && f.Manager == planeManager {
			return "a HorizontalPodAutoscaler"
		}
		// Anybody may choose that name.
		return strings.ToValidUTF8(f.Manager[:min(len(f.Manager), 64)], "")
	}
	return ""
}
