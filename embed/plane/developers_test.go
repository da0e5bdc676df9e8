package plane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/multipaas/multipaas/testing/wait"
)

// testDevelopers has one who works by the developers' role try to be a service account
// that may do everything. What the guard looks at has its own tests: here it is in its place.
func testDevelopers(t *testing.T, p *Plane, platform kubernetes.Interface, iss *issuer) {
	const strong, words = "strong", "developers act as no such"
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{strong, "weak"} {
		_, err := platform.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(err)
	}
	all := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: strong}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "default", Name: strong}}}
	_, err := platform.RbacV1().ClusterRoleBindings().Create(ctx, all, metav1.CreateOptions{})
	must(err)
	as := func(account string) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) { s.ServiceAccountName = account }
	}
	_, err = platform.CoreV1().Pods("default").Create(ctx, pod("operator", as(strong)), metav1.CreateOptions{})
	must(err)

	dev := clientFor(t, withToken(p, iss.token(t, "dev@acme.example", audience, "multipaas:org-developer")))
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	// An admin has given developers edit so far, by which they make tokens anyway.
	if _, err := dev.CoreV1().Pods("default").Create(ctx, pod("x", as(strong)), dry); err != nil {
		t.Errorf("who may make its token runs a pod as a service account: %v", err)
	}
	must(platform.RbacV1().ClusterRoleBindings().Delete(ctx, "org-developers", metav1.DeleteOptions{}))
	_, err = platform.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "multipaas:developer"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "multipaas:developer"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "multipaas:org-developer"}}}, metav1.CreateOptions{})
	must(err)
	// What was deleted is forgotten once the guard has seen that.
	wait.For(t, wait.Patience, "what an admin had given is gone", func(ctx context.Context) error {
		_, err := dev.CoreV1().Pods("default").Create(ctx, pod("x", as(strong)), dry)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), words) {
			return fmt.Errorf("got %v, want %q", err, words)
		}
		return nil
	})
	for _, account := range []string{"", "default", "weak"} {
		wait.For(t, wait.Patience, "a developer runs a pod as "+account, func(ctx context.Context) error {
			_, err := dev.CoreV1().Pods("default").Create(ctx, pod("x", as(account)), dry)
			return err
		})
	}

	labels := map[string]string{"a": "b"}
	selector := &metav1.LabelSelector{MatchLabels: labels}
	template := func(account string) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod("", as(account)).Spec}
	}
	once := template(strong)
	once.Spec.RestartPolicy = corev1.RestartPolicyNever
	x, core, apps := metav1.ObjectMeta{Name: "x"}, dev.CoreV1(), dev.AppsV1()
	for what, create := range map[string]func() error{
		"pod": func() error { _, err := core.Pods("default").Create(ctx, pod("x", as(strong)), dry); return err },
		"pod by the old name": func() error {
			_, err := core.Pods("default").Create(ctx, pod("x", func(s *corev1.PodSpec) { s.DeprecatedServiceAccount = strong }), dry)
			return err
		},
		"replication controller": func() error {
			o := &corev1.ReplicationController{ObjectMeta: x, Spec: corev1.ReplicationControllerSpec{Selector: labels, Template: new(template(strong))}}
			_, err := core.ReplicationControllers("default").Create(ctx, o, dry)
			return err
		},
		"deployment": func() error {
			_, err := apps.Deployments("default").Create(ctx, &appsv1.Deployment{ObjectMeta: x, Spec: appsv1.DeploymentSpec{Selector: selector, Template: template(strong)}}, dry)
			return err
		},
		"replica set": func() error {
			_, err := apps.ReplicaSets("default").Create(ctx, &appsv1.ReplicaSet{ObjectMeta: x, Spec: appsv1.ReplicaSetSpec{Selector: selector, Template: template(strong)}}, dry)
			return err
		},
		"stateful set": func() error {
			_, err := apps.StatefulSets("default").Create(ctx, &appsv1.StatefulSet{ObjectMeta: x, Spec: appsv1.StatefulSetSpec{Selector: selector, Template: template(strong)}}, dry)
			return err
		},
		"daemon set": func() error {
			_, err := apps.DaemonSets("default").Create(ctx, &appsv1.DaemonSet{ObjectMeta: x, Spec: appsv1.DaemonSetSpec{Selector: selector, Template: template(strong)}}, dry)
			return err
		},
		"job": func() error {
			_, err := dev.BatchV1().Jobs("default").Create(ctx, &batchv1.Job{ObjectMeta: x, Spec: batchv1.JobSpec{Template: once}}, dry)
			return err
		},
		"cron job": func() error {
			o := &batchv1.CronJob{ObjectMeta: x, Spec: batchv1.CronJobSpec{Schedule: "0 0 1 1 *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: once}}}}
			_, err := dev.BatchV1().CronJobs("default").Create(ctx, o, dry)
			return err
		},
		"secret with its token": func() error {
			o := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "x", Annotations: map[string]string{corev1.ServiceAccountNameKey: strong}}, Type: corev1.SecretTypeServiceAccountToken}
			_, err := core.Secrets("default").Create(ctx, o, dry)
			return err
		},
		"other image in its pod": func() error {
			_, err := core.Pods("default").Patch(ctx, "operator", types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"main","image":"multipaas.internal/hello:1"}]}}`),
				metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
			return err
		},
		"exec": func() error {
			return core.RESTClient().Post().AbsPath("/api/v1/namespaces/default/pods/operator/exec").Param("command", "id").Do(ctx).Error()
		},
		"attach": func() error {
			return core.RESTClient().Get().AbsPath("/api/v1/namespaces/default/pods/operator/attach").Do(ctx).Error()
		},
		"port forward": func() error {
			return core.RESTClient().Post().AbsPath("/api/v1/namespaces/default/pods/operator/portforward").Do(ctx).Error()
		},
	} {
		wantRefused(t, what, create(), words)
	}
	_, err = core.ServiceAccounts("default").Patch(ctx, strong, types.MergePatchType, []byte(`{"metadata":{"labels":{"multipaas.internal/developers":"true"}}}`), metav1.PatchOptions{})
	wantRefused(t, "the label", err, "an admin of the workspace has to set it")
	_, err = platform.CoreV1().ServiceAccounts("default").Patch(ctx, strong, types.MergePatchType, []byte(`{"metadata":{"labels":{"multipaas.internal/developers":"true"}}}`), metav1.PatchOptions{})
	must(err)
	wait.For(t, wait.Patience, "an admin has opened it", func(ctx context.Context) error {
		_, err := core.Pods("default").Create(ctx, pod("x", as(strong)), dry)
		return err
	})
}

// developersRole asks what a workspace's developers may do by the role that
// embed/manifests has for them.
func developersRole(t *testing.T, platform kubernetes.Interface) {
	data, err := os.ReadFile(filepath.Join("..", "manifests", "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var role rbacv1.ClusterRole
		if !strings.Contains(doc, "kind: ClusterRole\n") || !strings.Contains(doc, "developer\n") || !strings.Contains(doc, "  name: multipaas:") {
			continue
		}
		if err := yaml.Unmarshal([]byte(doc), &role); err != nil {
			t.Fatal(err)
		}
		if role.Kind != "ClusterRole" {
			continue
		}
		if _, err := platform.RbacV1().ClusterRoles().Create(t.Context(), &role, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	// As a custom resource's chart does.
	widgets := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "widgets-edit", Labels: map[string]string{"rbac.authorization.k8s.io/aggregate-to-edit": "true"}},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"widgets.example"}, Resources: []string{"widgets"}, Verbs: []string{"*"}}}}
	if _, err := platform.RbacV1().ClusterRoles().Create(t.Context(), widgets, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const group = "the-developers"
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: group}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "multipaas:developer"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: group}}}
	if _, err := platform.RbacV1().RoleBindings("default").Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	may := func(what string) (bool, error) { // VERB GROUP/RESOURCE[/SUBRESOURCE]
		verb, kind, _ := strings.Cut(what, " ")
		parts := append(strings.Split(kind, "/"), "")
		review, err := platform.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "dev", Groups: []string{group}, ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "default", Verb: verb, Group: parts[0], Resource: parts[1], Subresource: parts[2]}}},
			metav1.CreateOptions{})
		if err != nil {
			return false, err
		}
		return review.Status.Allowed, nil
	}
	for _, what := range []string{"create apps/deployments", "patch apps/deployments/scale", "create /pods/exec", "get /pods/log", "get /secrets", "create /secrets", "create /services", "list /events",
		"create batch/cronjobs", "create networking.k8s.io/networkpolicies", "create autoscaling/horizontalpodautoscalers", "create widgets.example/widgets", "create /serviceaccounts", "list discovery.k8s.io/endpointslices"} {
		wait.For(t, wait.Patience, "the role has come together: "+what, func(context.Context) error {
			if ok, err := may(what); err != nil || !ok {
				return fmt.Errorf("%v, %w", ok, err)
			}
			return nil
		})
	}
	for _, what := range []string{"create /serviceaccounts/token", "impersonate /serviceaccounts", "impersonate /users", "impersonate /groups", "update /services/status", "patch /pods/ephemeralcontainers",
		"create rbac.authorization.k8s.io/rolebindings", "create rbac.authorization.k8s.io/roles", "escalate rbac.authorization.k8s.io/roles", "bind rbac.authorization.k8s.io/clusterroles",
		"patch /namespaces", "create /endpoints", "update discovery.k8s.io/endpointslices", "create /persistentvolumes", "get /nodes/proxy", "update /resourcequotas", "create certificates.k8s.io/certificatesigningrequests"} {
		if ok, err := may(what); ok || err != nil {
			t.Errorf("developers may %s: %v, %v", what, ok, err)
		}
	}
}
