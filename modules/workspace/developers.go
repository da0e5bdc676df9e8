package workspace

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	core "k8s.io/client-go/applyconfigurations/core/v1"
	rbac "k8s.io/client-go/applyconfigurations/rbac/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/modules/resource"
)

const (
	// developers is the group in the tokens of an organization's developers. A binding
	// of this name gave them "edit" in every namespace once: it is taken away.
	developers = "multipaas:org-developer"
	// developer is their role, which embed/manifests makes, and the name of the binding
	// that gives it to them.
	developer = "multipaas:developer"
	// developersLabel opens a namespace to developers: "true". On default, "false" shuts
	// it.
	developersLabel = "multipaas.internal/developers"
)

// openToDevelopers says whether developers may work in a namespace: where they
// were let in, and in "default". All that were not Kubernetes' own was tried: each
// operator that an admin installs stands in one of its own, with a service account
// that may do much. The plane's guard keeps developers from its pods, but who reads
// its secrets and changes what it mounts may do most of that.
func openToDevelopers(ns *corev1.Namespace) bool {
	if resource.IsSystemNamespace(ns.Name) {
		return false // whatever its label: the controllers' service accounts are there
	}
	label := ns.Labels[developersLabel]
	return label == "true" || ns.Name == metav1.NamespaceDefault && label != "false"
}

// bindDevelopers gives developers their role in the namespaces that are open to
// them, and takes it away in others. It returns false while the namespaces are not
// known yet.
func (r *run) bindDevelopers(ctx context.Context) (bool, error) {
	known := r.now()
	if !known.followed() {
		return false, nil // the first list queues the workspace again
	}
	now := map[types.UID]bool{}
	for _, ns := range known.namespaces.All() {
		if ns.going {
			continue
		}
		if done, ok := r.bound[ns.uid]; !ok || done != ns.open {
			bind := unbindDevelopers
			if ns.open {
				bind = bindDevelopers
			}
			if err := bind(ctx, known.client, ns.name); err != nil {
				return false, fmt.Errorf("developers in namespace %s: %w", ns.name, err)
			}
		}
		now[ns.uid] = ns.open
	}
	r.bound = now
	return true, nil
}

func bindDevelopers(ctx context.Context, client kubernetes.Interface, namespace string) error {
	const group = "rbac.authorization.k8s.io"
	_, err := client.RbacV1().RoleBindings(namespace).Apply(ctx, rbac.RoleBinding(developer, namespace).
		WithRoleRef(rbac.RoleRef().WithAPIGroup(group).WithKind("ClusterRole").WithName(developer)).
		WithSubjects(rbac.Subject().WithAPIGroup(group).WithKind("Group").WithName(developers)),
		metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return err
	}
	return unbind(ctx, client, namespace, developers)
}

func unbindDevelopers(ctx context.Context, client kubernetes.Interface, namespace string) error {
	return unbind(ctx, client, namespace, developers, developer)
}

func unbind(ctx context.Context, client kubernetes.Interface, namespace string, bindings ...string) error {
	for _, name := range bindings {
		err := client.RbacV1().RoleBindings(namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// open lets developers into a namespace that is there.
func open(ctx context.Context, client kubernetes.Interface, namespace string) error {
	label := core.Namespace(namespace).WithLabels(map[string]string{developersLabel: "true"})
	_, err := client.CoreV1().Namespaces().Apply(ctx, label, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}
