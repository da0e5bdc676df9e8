package workspace

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Namespaces lists the namespaces of the workspace's cluster, maxNamespaces at most. It
// asks nobody, and wraps resource.ErrNotReady while the plane does not serve.
func (c *Controller) Namespaces(_ context.Context, key string) ([]resource.Namespace, error) {
	now, err := c.followed(key)
	if err != nil {
		return nil, err
	}
	out := []resource.Namespace{}
	for _, ns := range now.namespaces.All() {
		out = append(out, resource.Namespace{Name: ns.name, Phase: ns.phase})
	}
	slices.SortFunc(out, func(a, b resource.Namespace) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// CreateNamespace makes a namespace that is open to developers, or opens one.
// store.ErrExists: it is there already;
// resource.ErrSystemNamespace: its name belongs to Kubernetes.
func (c *Controller) CreateNamespace(ctx context.Context, key, name string) error {
	if resource.IsSystemNamespace(name) {
		return fmt.Errorf("namespace %s: %w", name, resource.ErrSystemNamespace)
	}
	client, err := c.Client(ctx, key)
	if err != nil {
		return err
	}
	fresh := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{developersLabel: "true"}}}
	_, err = client.CoreV1().Namespaces().Create(ctx, fresh, metav1.CreateOptions{})
	exists := apierrors.IsAlreadyExists(err)
	if exists {
		err = open(ctx, client, name)
	}
	if err != nil {
		return err
	}
	if err := bindDevelopers(ctx, client, name); err != nil { // at once: who made it will use it
		return err
	}
	if exists {
		return fmt.Errorf("namespace %s: %w", name, store.ErrExists)
	}
	return nil
}

// DeleteNamespace deletes a namespace and all in it. Kubernetes goes on with it
// after the call. store.ErrNotFound: it is not there; resource.ErrSystemNamespace:
// Kubernetes needs it.
func (c *Controller) DeleteNamespace(ctx context.Context, key, name string) error {
	if resource.IsSystemNamespace(name) || name == metav1.NamespaceDefault {
		return fmt.Errorf("namespace %s: %w", name, resource.ErrSystemNamespace)
	}
	client, err := c.Client(ctx, key)
	if err != nil {
		return err
	}
	err = client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("namespace %s: %w", name, store.ErrNotFound)
	}
	return err
}

// ClusterNodes lists the nodes of the workspace's cluster with the machines
// behind them; of others maxNodes at most. See Namespaces.
func (c *Controller) ClusterNodes(_ context.Context, key string) ([]resource.ClusterNode, error) {
	now, err := c.followed(key)
	if err != nil {
		return nil, err
	}
	out := []resource.ClusterNode{}
	for _, n := range now.nodes.All() {
		item := resource.ClusterNode{Name: n.name, Ready: n.ready, Version: n.version, Address: n.address}
		if m, ok := c.cfg.Machines.Get(key + "/" + n.name); ok {
			item.Node, item.Size = m.Spec.Node, m.Spec.Size
		}
		out = append(out, item)
	}
	slices.SortFunc(out, func(a, b resource.ClusterNode) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
