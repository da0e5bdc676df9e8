package workspace

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	rbac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/modules/resource"
)

// developers is the group in the tokens of an organization's developers, and the
// name of the binding that gives it `edit` in a namespace.
const developers = "multipaas:org-developer"

// bindDevelopers gives developers `edit` in every namespace but Kubernetes' own.
// One binding for the whole cluster was tried: in kube-system, `edit` may make
// tokens for the controllers' service accounts, some of which can do everything.
// It returns false while the namespaces are not known yet.
func (r *run) bindDevelopers(ctx context.Context) (bool, error) {
	known := r.now()
	if !known.followed() {
		return false, nil // the first list queues the workspace again
	}
	now := map[types.UID]bool{}
	for _, ns := range known.namespaces.All() {
		if ns.going || resource.IsSystemNamespace(ns.name) {
			continue
		}
		if !r.bound[ns.uid] {
			if err := bindDevelopers(ctx, known.client, ns.name); err != nil {
				return false, fmt.Errorf("developers in namespace %s: %w", ns.name, err)
			}
		}
		now[ns.uid] = true
	}
	r.bound = now
	return true, nil
}

func bindDevelopers(ctx context.Context, client kubernetes.Interface, namespace string) error {
	_, err := client.RbacV1().RoleBindings(namespace).Apply(ctx, rbac.RoleBinding(developers, namespace).
		WithRoleRef(rbac.RoleRef().WithAPIGroup("rbac.authorization.k8s.io").WithKind("ClusterRole").WithName("edit")).
		WithSubjects(rbac.Subject().WithAPIGroup("rbac.authorization.k8s.io").WithKind("Group").WithName(developers)),
		metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}
