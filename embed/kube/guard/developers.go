package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	rbaclisters "k8s.io/client-go/listers/rbac/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/auth/rbac/validation"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/batch"
	api "k8s.io/kubernetes/pkg/apis/core"
	rbacvalidation "k8s.io/kubernetes/pkg/registry/rbac/validation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
)

// Who makes pods in a namespace can be any of its service accounts, and who may run
// programs in a pod is its own. The role of developers (embed/manifests) makes no
// tokens, so here they are kept to service accounts that may do no more than they
// may themselves. A label for those that are good would not do alone: charts bring
// service accounts of their own, most of which may do nothing. Service accounts
// themselves are kept from nothing, as everywhere: one that makes pods may be all of
// its namespace, so it counts as all of them (see reach.go).
//
// What an admin gives a service account later, its pods have, whoever made them, and
// so have pods of one that makes pods beside it. And pods that are made by a tenant's
// own controllers, for kinds of their own, are those controllers'.
const (
	// developers is the group in the tokens of an organization's developers.
	developers = "multipaas:org-developer"
	// developersLabel opens a namespace to developers, and a service account whatever
	// it may do: "true".
	developersLabel = "multipaas.internal/developers"
)

// givenToAll are the roles that Kubernetes itself gives to all service accounts, and
// not to people.
var givenToAll = []string{"system:service-account-issuer-discovery", "system:cluster-trust-bundle-discovery"}

// roles is what the API server knows of who may do what.
type roles struct {
	resolver rbacvalidation.AuthorizationRuleResolver
	bindings rbaclisters.RoleBindingLister
	overall  rbaclisters.ClusterRoleBindingLister
	cluster  rbaclisters.ClusterRoleLister
	accounts corelisters.ServiceAccountLister
	synced   []cache.InformerSynced
	pods     func(ctx context.Context, namespace, name string) (*corev1.Pod, error)
}

var (
	_ initializer.WantsExternalKubeInformerFactory = (*Guard)(nil)
	_ initializer.WantsExternalKubeClientSet       = (*Guard)(nil)
)

// SetExternalKubeInformerFactory takes the informers that the API server itself
// authorizes by: nothing is kept twice.
func (g *Guard) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	in, accounts := f.Rbac().V1(), f.Core().V1().ServiceAccounts()
	g.roles.bindings, g.roles.overall = in.RoleBindings().Lister(), in.ClusterRoleBindings().Lister()
	g.roles.cluster, g.roles.accounts = in.ClusterRoles().Lister(), accounts.Lister()
	g.roles.resolver = rbacvalidation.NewDefaultRuleResolver(
		&rbac.RoleGetter{Lister: in.Roles().Lister()}, &rbac.RoleBindingLister{Lister: g.roles.bindings},
		&rbac.ClusterRoleGetter{Lister: g.roles.cluster}, &rbac.ClusterRoleBindingLister{Lister: g.roles.overall})
	g.roles.synced = []cache.InformerSynced{in.Roles().Informer().HasSynced, in.RoleBindings().Informer().HasSynced,
		in.ClusterRoles().Informer().HasSynced, in.ClusterRoleBindings().Informer().HasSynced, accounts.Informer().HasSynced}
}

// SetExternalKubeClientSet takes the client by which pods are looked at: few are.
func (g *Guard) SetExternalKubeClientSet(c kubernetes.Interface) {
	g.roles.pods = func(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
		return c.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	}
}

// ValidateInitialization is called once the API server has given what it can.
func (g *Guard) ValidateInitialization() error {
	if g.roles.resolver == nil || g.roles.pods == nil {
		return errors.New("guard: the API server has given no informers or no client")
	}
	return nil
}

// validateDeveloper refuses what would make a developer a service account that may
// do more than he. Others are nobody's business here: who may make pods in a
// namespace by another role may be all of its service accounts, as everywhere.
func (g *Guard) validateDeveloper(ctx context.Context, a admission.Attributes) error {
	who := a.GetUserInfo()
	if who == nil || !slices.Contains(who.GetGroups(), developers) {
		return nil
	}
	if a.GetOperation() == admission.Connect {
		return g.validateConnect(ctx, who, a)
	}
	if spec := podSpecOf(a.GetObject()); spec != nil {
		// Its scale, its labels, a restart: what runs as whom is as it was.
		if old := podSpecOf(a.GetOldObject()); old != nil && apiequality.Semantic.DeepEqual(old, spec) {
			return nil
		}
		return g.mayBe(who, a.GetNamespace(), spec.ServiceAccountName)
	}
	switch obj := a.GetObject().(type) {
	case *api.Secret:
		// Kubernetes puts a token in, which lasts.
		name := obj.Annotations[api.ServiceAccountNameKey]
		old, _ := a.GetOldObject().(*api.Secret)
		if obj.Type != api.SecretTypeServiceAccountToken || old != nil && old.Annotations[api.ServiceAccountNameKey] == name {
			return nil
		}
		return g.mayBe(who, a.GetNamespace(), name)
	case *api.ServiceAccount:
		old, _ := a.GetOldObject().(*api.ServiceAccount)
		if obj.Labels[developersLabel] != "true" || old != nil && old.Labels[developersLabel] == "true" {
			return nil
		}
		// Whatever it may do now: an admin may give it more, and the label would stay.
		if !g.roles.known() || !makesTokens(g.roles.rulesOf(who, a.GetNamespace()), a.GetName()) {
			return fmt.Errorf("the label %s of a service account opens it to developers, so an admin of the workspace has to set it",
				developersLabel)
		}
	}
	return nil
}

// validateConnect is for what reaches into a pod, where its token is. What goes to
// its address (proxy) is heard as any pod's requests are.
func (g *Guard) validateConnect(ctx context.Context, who user.Info, a admission.Attributes) error {
	if a.GetResource().GroupResource() != api.Resource("pods") ||
		!slices.Contains([]string{"exec", "attach", "portforward"}, a.GetSubresource()) {
		return nil
	}
	pod, err := g.roles.pods(ctx, a.GetNamespace(), a.GetName())
	if apierrors.IsNotFound(err) {
		return nil // the API says so in its own words
	} else if err != nil {
		return err
	}
	return g.mayBe(who, a.GetNamespace(), pod.Spec.ServiceAccountName)
}

// podSpecOf is what pods of an object are made by, nil of one that makes none.
func podSpecOf(obj runtime.Object) *api.PodSpec {
	switch o := obj.(type) {
	case *api.Pod:
		return &o.Spec
	case *api.PodTemplate:
		return &o.Template.Spec
	case *api.ReplicationController:
		if o.Spec.Template != nil {
			return &o.Spec.Template.Spec
		}
	case *apps.Deployment:
		return &o.Spec.Template.Spec
	case *apps.StatefulSet:
		return &o.Spec.Template.Spec
	case *apps.DaemonSet:
		return &o.Spec.Template.Spec
	case *apps.ReplicaSet:
		return &o.Spec.Template.Spec
	case *batch.Job:
		return &o.Spec.Template.Spec
	case *batch.CronJob:
		return &o.Spec.JobTemplate.Spec.Template.Spec
	}
	return nil
}

// known says whether roles and bindings are.
func (r *roles) known() bool {
	return r.resolver != nil && !slices.ContainsFunc(r.synced, func(synced cache.InformerSynced) bool { return !synced() })
}

// rulesOf are what u may do in a namespace. A binding whose role is missing is an error
// to those who ask, and gives nobody anything.
func (r *roles) rulesOf(u user.Info, namespace string) []rbacv1.PolicyRule {
	rules, _ := r.resolver.RulesFor(context.Background(), u, namespace)
	return rules
}

// makesTokens says whether rules give more than the role of developers: who has them may
// be a service account anyway.
func makesTokens(rules []rbacv1.PolicyRule, account string) bool {
	token := rbacv1.PolicyRule{Verbs: []string{"create"}, APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"},
		ResourceNames: []string{account}}
	has, _ := validation.Covers(rules, []rbacv1.PolicyRule{token})
	return has
}
