package guard

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/batch"
	api "k8s.io/kubernetes/pkg/apis/core"
)

type recorder []string

func (r *recorder) AddWarning(_, text string) { *r = append(*r, text) }

func TestAdvice(t *testing.T) {
	plain := api.PodTemplateSpec{Spec: newPod(nil).Spec}
	ours := func(replicas int32) *apps.Deployment {
		return &apps.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "hello", Labels: map[string]string{labelManager: manager}},
			Spec: apps.DeploymentSpec{Replicas: replicas, Template: plain}}
	}
	dns := func(namespace, data string) *api.ConfigMap {
		return &api.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "coredns", Namespace: namespace}, Data: map[string]string{"Corefile": data}}
	}
	own := api.PodSpec{SecurityContext: &api.PodSecurityContext{HostUsers: new(false)}}
	template := api.PodTemplateSpec{Spec: own}
	const users = "have none to give"
	for name, c := range map[string]struct {
		obj, old    runtime.Object
		namespace   string
		subresource string
		who         user.Info
		want        string
	}{
		"platform":                   {obj: ours(3), old: ours(2), who: &user.DefaultInfo{Name: platform, Groups: []string{"system:masters"}}},
		"controller":                 {obj: ours(3), old: ours(2), who: &user.DefaultInfo{Name: "system:serviceaccount:kube-system:x"}},
		"edit of an app":             {obj: ours(3), old: ours(2), want: "change the app with `mp apps deploy`"},
		"scale of an app":            {obj: ours(3), old: ours(2), subresource: "scale"},
		"the platform's Corefile":    {obj: dns("kube-system", "new"), old: dns("kube-system", "old"), namespace: "kube-system", want: "is lost then"},
		"a pod's own users":          {obj: &api.Pod{Spec: own}, want: users},
		"a replication controller's": {obj: &api.ReplicationController{Spec: api.ReplicationControllerSpec{Template: &template}}, want: users},
		"a replication controller":   {obj: &api.ReplicationController{}},
		"a replica set's":            {obj: &apps.ReplicaSet{Spec: apps.ReplicaSetSpec{Template: template}}, want: users},
		"a deployment's":             {obj: &apps.Deployment{Spec: apps.DeploymentSpec{Template: template}}, want: users},
		"a later deployment's":       {obj: &apps.Deployment{Spec: apps.DeploymentSpec{Template: template}}, old: &apps.Deployment{}, want: users},
		"a stateful set's":           {obj: &apps.StatefulSet{Spec: apps.StatefulSetSpec{Template: template}}, want: users},
		"a daemon set's":             {obj: &apps.DaemonSet{Spec: apps.DaemonSetSpec{Template: template}}, want: users},
		"a job's":                    {obj: &batch.Job{Spec: batch.JobSpec{Template: template}}, want: users},
		"a cron job's":               {obj: &batch.CronJob{Spec: batch.CronJobSpec{JobTemplate: batch.JobTemplateSpec{Spec: batch.JobSpec{Template: template}}}}, want: users},
		"the host's users": {obj: &apps.ReplicaSet{Spec: apps.ReplicaSetSpec{Template: api.PodTemplateSpec{Spec: api.PodSpec{
			SecurityContext: &api.PodSecurityContext{HostUsers: new(true)}}}}}},
		"another Corefile": {obj: dns("n", "new"), old: dns("n", "old"), namespace: "n"},
	} {
		who := c.who
		if who == nil {
			who = tenant
		}
		op := admission.Create
		if c.old != nil {
			op = admission.Update
		}
		var got recorder
		ctx := warning.WithWarningRecorder(context.Background(), &got)
		err := newGuard(t, "baseline").Validate(ctx, admission.NewAttributesRecord(c.obj, c.old, schema.GroupVersionKind{}, c.namespace, "x",
			schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "things"}, c.subresource, op, nil, false, who), nil)
		if err != nil {
			t.Errorf("%s: refused: %v", name, err)
		}
		if text := strings.Join(got, "\n"); !strings.Contains(text, c.want) || (text == "") != (c.want == "") {
			t.Errorf("%s: warned %q, want %q", name, text, c.want)
		}
	}
}

// Who writes what nobody serves may hear of it later.
func TestGuardTellsWhatIsWritten(t *testing.T) {
	var told []string
	g := newGuard(t, "baseline")
	g.wrote = func(kind schema.GroupResource) { told = append(told, kind.Resource) }
	if err := validate(g, "services", "", &api.Service{}, nil, tenant); err != nil {
		t.Fatal(err)
	}
	_ = validate(g, "services", "status", &api.Service{}, &api.Service{}, tenant)
	_ = validate(g, "pods", "", newPod(privileged), nil, tenant)
	if len(told) != 1 || told[0] != "services" {
		t.Errorf("told %v, want the service once", told)
	}
}
