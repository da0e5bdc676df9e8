package apps

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// filled is an object all of whose fields are set, texts and lists of text long.
func filled[T any](t *testing.T) *T {
	t.Helper()
	long := strings.Repeat("x", 20_000)
	var fill func(v reflect.Value, depth int)
	fill = func(v reflect.Value, depth int) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(long)
		case reflect.Int, reflect.Int32, reflect.Int64:
			v.SetInt(7)
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Pointer:
			if depth > 0 && v.Type().Elem().Kind() != reflect.Uint8 {
				v.Set(reflect.New(v.Type().Elem()))
				fill(v.Elem(), depth-1)
			}
		case reflect.Slice:
			if depth > 0 && v.Type().Elem().Kind() != reflect.Uint8 {
				v.Set(reflect.MakeSlice(v.Type(), 2, 2))
				for i := range 2 {
					fill(v.Index(i), depth-1)
				}
			}
		case reflect.Map:
			if v.Type() == reflect.TypeFor[map[string]string]() {
				v.Set(reflect.ValueOf(map[string]string{"a": long, labelName: "hello", labelManager: manager}))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() && v.Type() != reflect.TypeFor[metav1.Time]() {
					fill(v.Field(i), depth)
				}
			}
		}
	}
	o := new(T)
	fill(reflect.ValueOf(o).Elem(), 6)
	return o
}

// TestSlimObjects: of objects as fat as can be, little is kept, and it is enough to
// say the same of an app.
func TestSlimObjects(t *testing.T) {
	t.Parallel()
	small := func(o any) {
		t.Helper()
		data, err := json.Marshal(o)
		if err != nil || len(data) > 8000 {
			t.Errorf("%T: %d bytes are kept, %v", o, len(data), err)
		}
	}
	meta := metav1.ObjectMeta{Name: "hello", Namespace: "default", UID: "u", ResourceVersion: "9", Generation: 3,
		Labels: map[string]string{labelName: "hello", labelManager: manager}, Annotations: map[string]string{"a": "b"}}
	d := filled[appsv1.Deployment](t)
	d.ObjectMeta = meta
	d.Status.ObservedGeneration = 3
	d.Status.Conditions = []appsv1.DeploymentCondition{{Type: "Available", Message: strings.Repeat("x", 20_000)},
		{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionFalse}, {Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Message: "forbidden: quota"}}
	kept := slimDeployment(d)
	small(kept)
	if *kept.Spec.Replicas != 7 || len(kept.Finalizers) != 0 {
		t.Errorf("kept %+v", kept)
	}
	going := d.DeepCopy()
	going.DeletionTimestamp, going.Finalizers = new(metav1.Now()), slices.Repeat([]string{"example.com/" + strings.Repeat("x", 20_000)}, 1000)
	if kept := slimDeployment(going); len(kept.Finalizers) == 0 || holders([]metav1.Object{kept}) == "" {
		t.Errorf("kept %+v, want to know what holds it", kept)
	} else {
		small(kept)
	}
	s := filled[corev1.Service](t)
	s.ObjectMeta = meta
	small(slimService(s))

	app := newApp("hello", "hello:1")
	pod := func(change func(p *corev1.Pod)) *corev1.Pod {
		p := filled[corev1.Pod](t)
		p.ObjectMeta = meta
		p.Status.Phase, p.Status.Conditions, p.Status.ContainerStatuses = corev1.PodRunning, nil, nil
		change(p)
		return p
	}
	in := func(status corev1.ContainerStatus) func(p *corev1.Pod) {
		status.Name, status.Image, status.ImageID = container, strings.Repeat("i", 20_000), strings.Repeat("i", 20_000)
		return func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "side"}, status} }
	}
	for what, p := range map[string]*corev1.Pod{
		"no room": pod(func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/1 nodes " + strings.Repeat("x", 20_000)}}
		}),
		"evicted": pod(func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason, p.Status.Message = corev1.PodFailed, "Evicted", "The node was low on resource: memory"
		}),
		"crashes":     pod(in(corev1.ContainerStatus{RestartCount: 5, State: waiting("CrashLoopBackOff", "back-off"), LastTerminationState: ended("Error", 42)})),
		"no image":    pod(in(corev1.ContainerStatus{State: waiting("ErrImagePull", "not found "+strings.Repeat("x", 20_000))})),
		"not ready":   pod(in(corev1.ContainerStatus{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}})),
		"not started": pod(in(corev1.ContainerStatus{RestartCount: 3, LastTerminationState: ended("StartError", 1), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}})),
	} {
		kept := slimPod(p)
		if kept == nil {
			t.Errorf("%s: nothing is kept", what)
			continue
		}
		small(kept)
		if got, want := troubleOf(app, kept), troubleOf(app, p); got != want || got.message == "" {
			t.Errorf("%s: got %+v, want %+v", what, got, want)
		}
	}
	well := in(corev1.ContainerStatus{Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}})
	leaves := pod(in(corev1.ContainerStatus{RestartCount: 5, State: waiting("CrashLoopBackOff", "back-off")}))
	leaves.DeletionTimestamp = &metav1.Time{}
	for what, o := range map[string]runtime.Object{"that is well": pod(well), "that leaves": leaves} {
		if slimPod(o) != nil {
			t.Errorf("something is kept of a pod %s", what)
		}
	}
}

// TestCrowdedCluster: a tenant puts our label on very many things of his own. An app
// that isn't among what there was room for says so.
func TestCrowdedCluster(t *testing.T) {
	t.Parallel()
	k := newStandIn(t, false)
	for i := range maxObjects + 1 {
		k.items = append(k.items, map[string]any{"metadata": map[string]any{"name": fmt.Sprintf("x-%d", i), "namespace": "default",
			"labels": map[string]string{labelManager: manager, labelName: "no-app"}}})
	}
	f := start(t, byWorkspace{"acme/web/shop": k}, anyImage{}, 30*time.Second)
	f.must(store.Of[resource.App](f.st).Create(f.ctx, newApp("a", "hello:1")))
	f.app("a", "told", says(resource.AppDeployed, fmt.Sprintf("The cluster has more than %d ", maxObjects)))
}
