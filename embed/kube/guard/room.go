package guard

import (
	"context"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	authentication "k8s.io/kubernetes/pkg/apis/authentication"
	authorization "k8s.io/kubernetes/pkg/apis/authorization"
	coordination "k8s.io/kubernetes/pkg/apis/coordination"

	"github.com/multipaas/multipaas/embed/kube/budget"
)

// How far over its limit the datastore may be, as multiples of it. What makes
// it grow stops first; what a cluster lives by, and what is needed to delete,
// goes on longer. All of it is history a little later, so that each level opens
// again by itself.
const (
	growing   = 1.0
	renewing  = 1.25 // an object is written that takes no more than it did
	heartbeat = 1.5  // a lease, or the end of an object
	unbounded = 1e6  // each object has only so many finalizers to lose
)

const (
	slackBytes     = 512      // a condition's time and reason change in length
	statusBytes    = 32 << 10 // a pod's with a hundred containers
	leaseBytes     = 4 << 10
	beingGoneBytes = 16 << 10
)

// validateRoom asks whether the datastore has room for the write.
func (g *Guard) validateRoom(ctx context.Context, a admission.Attributes) error {
	if g.budget == nil || a.IsDryRun() || !stored(a) {
		return nil
	}
	write := budget.Write{Bytes: sizeOf(a.GetObject()), Ceiling: growing}
	if a.GetOperation() == admission.Update {
		write.Replaced = sizeOf(a.GetOldObject())
	}
	switch {
	case a.GetResource().GroupResource() == coordination.Resource("leases") && write.Bytes <= leaseBytes:
		write.Ceiling = heartbeat
	case a.GetOperation() == admission.Update:
		write.Ceiling = ceilingOfUpdate(a, write.Bytes, write.Replaced)
	}
	return g.budget.Admit(ctx, write)
}

func ceilingOfUpdate(a admission.Attributes, size, oldSize int64) float64 {
	obj, _ := meta.Accessor(a.GetObject()) // nil if it has no metadata
	oldObj, _ := meta.Accessor(a.GetOldObject())
	smaller := size <= oldSize+slackBytes
	switch {
	case obj != nil && oldObj != nil && len(obj.GetFinalizers()) < len(oldObj.GetFinalizers()) && smaller:
		return unbounded
	case oldObj != nil && oldObj.GetDeletionTimestamp() != nil && size <= beingGoneBytes:
		return heartbeat
	case smaller, a.GetSubresource() == "status" && size <= oldSize+statusBytes && size <= 4*statusBytes:
		return renewing
	}
	return growing
}

// stored says whether the write ends in the datastore under its own name.
func stored(a admission.Attributes) bool {
	switch a.GetResource().Group {
	case authentication.GroupName, authorization.GroupName:
		return false // reviews
	}
	// Bindings, evictions and tokens change small things of other objects.
	return a.GetSubresource() == "" || a.GetOperation() == admission.Update
}

// sizeOf is about what obj takes in the datastore, without encoding it: this is
// asked for each write, a lease's included.
func sizeOf(obj runtime.Object) int64 { return sizeOfValue(reflect.ValueOf(obj)) }

func sizeOfValue(v reflect.Value) (n int64) {
	switch v.Kind() {
	case reflect.Invalid: // nil
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			n = sizeOfValue(v.Elem())
		}
	case reflect.String:
		n = int64(v.Len())
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return int64(v.Len())
		}
		for i := range v.Len() {
			n += 2 + sizeOfValue(v.Index(i))
		}
	case reflect.Map:
		for i := v.MapRange(); i.Next(); {
			n += 4 + sizeOfValue(i.Key()) + sizeOfValue(i.Value())
		}
	case reflect.Struct:
		for field, value := range v.Fields() {
			if field.IsExported() && !value.IsZero() {
				n += 4 + sizeOfValue(value)
			}
		}
	default:
		n = 4
	}
	return n
}
