package guard

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	"k8s.io/kubernetes/pkg/apis/batch"
	api "k8s.io/kubernetes/pkg/apis/core"
)

var developer = &user.DefaultInfo{Name: "multipaas:dev@acme.example", Groups: []string{developers, "system:authenticated"}}

// world is a cluster in which developers work in namespace n: what its service
// accounts may do is what their names say.
func world() []runtime.Object {
	role := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	}
	on := func(verbs, resources string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: strings.Fields(verbs), APIGroups: []string{""}, Resources: strings.Fields(resources)}
	}
	account := func(name string) rbacv1.Subject {
		return rbacv1.Subject{Kind: "ServiceAccount", Namespace: "n", Name: name}
	}
	group := func(name string) rbacv1.Subject {
		return rbacv1.Subject{Kind: "Group", APIGroup: rbacv1.GroupName, Name: name}
	}
	everywhere := func(to rbacv1.Subject, role string) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: to.Namespace + "-" + to.Name + "-" + role}, Subjects: []rbacv1.Subject{to},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}}
	}
	in := func(namespace string, to rbacv1.Subject, role string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: to.Name + "-" + role}, Subjects: []rbacv1.Subject{to},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}}
	}
	discovery := role("system:service-account-issuer-discovery", rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/openid/v1/jwks"}})
	local := account("local")
	local.Namespace = "" // of the binding's own
	return []runtime.Object{
		discovery,
		role("developer", on("get list watch create update patch delete", "pods secrets configmaps serviceaccounts")),
		role("reader", on("get list", "pods")),
		role("nodes", on("list", "nodes")),
		role("tokens", on("create", "serviceaccounts/token")),
		role("all", rbacv1.PolicyRule{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}),
		everywhere(group("system:serviceaccounts"), discovery.Name),
		in("n", group(developers), "developer"), in("open", group(developers), "developer"),
		in("n", account("reader"), "reader"), in("open", account("reader"), "reader"),
		everywhere(account("admin"), "all"), everywhere(account("opened"), "all"), everywhere(account("nodes"), "nodes"),
		everywhere(account("reader-of-all"), "reader"), in("shut", account("elsewhere"), "reader"),
		in("n", local, "tokens"), everywhere(account("dangling"), "missing"),
		in("crowd", group(developers), "developer"), in("crowd", group("system:serviceaccounts:crowd"), "tokens"),
		in("given", group(developers), "developer"), everywhere(rbacv1.Subject{Kind: "ServiceAccount", Namespace: "given", Name: "admin"}, "all"),
		in("given", rbacv1.Subject{Kind: "User", APIGroup: rbacv1.GroupName, Name: developer.Name}, "tokens"),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "opened", Labels: map[string]string{developersLabel: "true"}}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "admin", Labels: map[string]string{developersLabel: "false"}}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "strong"}, Spec: corev1.PodSpec{ServiceAccountName: "admin"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "weak"}, Spec: corev1.PodSpec{ServiceAccountName: "default"}},
	}
}

func newWorld(t testing.TB, more ...runtime.Object) *Guard {
	t.Helper()
	g := newGuard(t, "baseline")
	client := fake.NewClientset(append(world(), more...)...)
	f := informers.NewSharedInformerFactory(client, 0)
	if err := g.ValidateInitialization(); err == nil {
		t.Error("a guard without informers is good")
	}
	g.SetExternalKubeClientSet(client)
	g.SetExternalKubeInformerFactory(f)
	if err := g.ValidateInitialization(); err != nil {
		t.Error(err)
	}
	if err := g.mayBe(developer, "n", "default"); err == nil {
		t.Error("who does not know the roles lets through")
	}
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())
	return g
}

// kinds are all that make pods, with what they are made by.
var kinds = map[string]func(api.PodSpec) runtime.Object{
	"pods":         func(s api.PodSpec) runtime.Object { return &api.Pod{Spec: s} },
	"podtemplates": func(s api.PodSpec) runtime.Object { return &api.PodTemplate{Template: api.PodTemplateSpec{Spec: s}} },
	"replicationcontrollers": func(s api.PodSpec) runtime.Object {
		return &api.ReplicationController{Spec: api.ReplicationControllerSpec{Template: &api.PodTemplateSpec{Spec: s}}}
	},
	"deployments.apps": func(s api.PodSpec) runtime.Object {
		return &apps.Deployment{Spec: apps.DeploymentSpec{Template: api.PodTemplateSpec{Spec: s}}}
	},
	"statefulsets.apps": func(s api.PodSpec) runtime.Object {
		return &apps.StatefulSet{Spec: apps.StatefulSetSpec{Template: api.PodTemplateSpec{Spec: s}}}
	},
	"daemonsets.apps": func(s api.PodSpec) runtime.Object {
		return &apps.DaemonSet{Spec: apps.DaemonSetSpec{Template: api.PodTemplateSpec{Spec: s}}}
	},
	"replicasets.apps": func(s api.PodSpec) runtime.Object {
		return &apps.ReplicaSet{Spec: apps.ReplicaSetSpec{Template: api.PodTemplateSpec{Spec: s}}}
	},
	"jobs.batch": func(s api.PodSpec) runtime.Object {
		return &batch.Job{Spec: batch.JobSpec{Template: api.PodTemplateSpec{Spec: s}}}
	},
	"cronjobs.batch": func(s api.PodSpec) runtime.Object {
		return &batch.CronJob{Spec: batch.CronJobSpec{JobTemplate: batch.JobTemplateSpec{Spec: batch.JobSpec{Template: api.PodTemplateSpec{Spec: s}}}}}
	},
}

func (g *Guard) ask(op admission.Operation, namespace, name, resource, subresource string, obj, old runtime.Object, who user.Info) error {
	gr := schema.ParseGroupResource(resource)
	return g.Validate(context.Background(), admission.NewAttributesRecord(obj, old, schema.GroupVersionKind{}, namespace, name,
		gr.WithVersion("v1"), subresource, op, nil, false, who), nil)
}

func TestDevelopersAreNoStrongServiceAccounts(t *testing.T) {
	g := newWorld(t)
	spec := func(account, image string) api.PodSpec {
		return api.PodSpec{ServiceAccountName: account, SecurityContext: &api.PodSecurityContext{}, Containers: []api.Container{{Name: "c", Image: image}}}
	}
	const refused = "developers act as no such"
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		of := func(account, image string) runtime.Object { return kinds[kind](spec(account, image)) }
		for account, words := range map[string]string{
			"": "", "default": "", "nobody": "", "reader": "", "opened": "", "dangling": "", // no more than a developer, or opened
			"admin": "(* *.*)", "nodes": "list nodes", "reader-of-all": "get pods", "elsewhere": "get pods in namespace shut",
			"local": "create serviceaccounts/token in namespace n",
		} {
			t.Run(kind+"/"+account, func(t *testing.T) {
				want(t, g.ask(admission.Create, "n", "x", kind, "", of(account, "i"), nil, developer), words)
				want(t, g.ask(admission.Update, "n", "x", kind, "", of(account, "i"), of("default", "i"), developer), words)
				want(t, g.ask(admission.Update, "n", "x", kind, "", of(account, "mine"), of(account, "i"), developer), words)
				// Its labels, its scale, its end.
				want(t, g.ask(admission.Update, "n", "x", kind, "", of(account, "i"), of(account, "i"), developer), "")
				want(t, g.ask(admission.Update, "n", "x", kind, "scale", &autoscaling.Scale{}, &autoscaling.Scale{}, developer), "")
				// Those who have more rights, and the controllers that make pods of workloads.
				want(t, g.ask(admission.Create, "n", "x", kind, "", of(account, "i"), nil, tenant), "")
				controller := &user.DefaultInfo{Name: "system:serviceaccount:kube-system:replicaset-controller", Groups: []string{"system:serviceaccounts"}}
				want(t, g.ask(admission.Create, "n", "x", kind, "", of(account, "i"), nil, controller), "")
			})
		}
		want(t, g.ask(admission.Create, "crowd", "x", kind, "", of("", "i"), nil, developer), refused)
		want(t, g.ask(admission.Create, "given", "x", kind, "", of("admin", "i"), nil, developer), "")
	}
	debug := spec("admin", "i")
	debug.EphemeralContainers = []api.EphemeralContainer{{EphemeralContainerCommon: api.EphemeralContainerCommon{Name: "d", Image: "mine"}}}
	want(t, g.ask(admission.Update, "n", "x", "pods", "ephemeralcontainers", &api.Pod{Spec: debug}, &api.Pod{Spec: spec("admin", "i")}, developer), refused)
}

func TestDevelopersReachNoTokens(t *testing.T) {
	g := newWorld(t)
	const refused = "developers act as no such"
	for _, c := range []struct {
		pod, how, want string
	}{
		{"strong", "exec", refused}, {"strong", "attach", refused}, {"strong", "portforward", refused}, {"strong", "proxy", ""},
		{"weak", "exec", ""}, {"weak", "attach", ""}, {"weak", "portforward", ""}, {"none", "exec", ""},
	} {
		want(t, g.ask(admission.Connect, "n", c.pod, "pods", c.how, &api.PodExecOptions{}, nil, developer), c.want)
		want(t, g.ask(admission.Connect, "n", c.pod, "pods", c.how, &api.PodExecOptions{}, nil, tenant), "")
	}
	secret := func(account string) *api.Secret {
		return &api.Secret{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{api.ServiceAccountNameKey: account}}, Type: api.SecretTypeServiceAccountToken}
	}
	plain := secret("admin")
	plain.Type = api.SecretTypeOpaque
	want(t, g.ask(admission.Create, "n", "s", "secrets", "", secret("admin"), nil, developer), refused)
	want(t, g.ask(admission.Update, "n", "s", "secrets", "", secret("admin"), secret("default"), developer), refused)
	want(t, g.ask(admission.Update, "n", "s", "secrets", "", secret("admin"), secret("admin"), developer), "")
	want(t, g.ask(admission.Create, "n", "s", "secrets", "", secret("default"), nil, developer), "")
	want(t, g.ask(admission.Create, "n", "s", "secrets", "", plain, nil, developer), "")
	want(t, g.ask(admission.Create, "n", "s", "secrets", "", secret("admin"), nil, tenant), "")

	account := func(label string) *api.ServiceAccount {
		return &api.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{developersLabel: label}}}
	}
	const label = "an admin of the workspace has to set it"
	want(t, g.ask(admission.Update, "n", "admin", "serviceaccounts", "", account("true"), account("false"), developer), label)
	want(t, g.ask(admission.Create, "n", "admin", "serviceaccounts", "", account("true"), nil, developer), label)
	want(t, g.ask(admission.Create, "n", "fresh", "serviceaccounts", "", account("true"), nil, developer), label)
	want(t, g.ask(admission.Create, "n", "fresh", "serviceaccounts", "", account(""), nil, developer), "")
	want(t, g.ask(admission.Create, "given", "admin", "serviceaccounts", "", account("true"), nil, developer), "")
	want(t, g.ask(admission.Update, "n", "opened", "serviceaccounts", "", account("true"), account("true"), developer), "")
	want(t, g.ask(admission.Update, "n", "admin", "serviceaccounts", "", account("true"), account("false"), tenant), "")
}
