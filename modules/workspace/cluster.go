package workspace

import (
	"context"
	"fmt"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Namespaces lists the namespaces of the workspace's cluster.
func (c *Controller) Namespaces(ctx context.Context, key string) ([]resource.Namespace, error) {
	client, err := c.Client(ctx, key)
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	out := make([]resource.Namespace, 0, len(list.Items))
	for i := range list.Items {
		out = append(out, resource.Namespace{Name: list.Items[i].Name, Phase: string(list.Items[i].Status.Phase)})
	}
	return out, nil
}

// CreateNamespace makes a namespace. store.ErrExists: it is there already;
// resource.ErrSystemNamespace: its name belongs to Kubernetes.
func (c *Controller) CreateNamespace(ctx context.Context, key, name string) error {
	if resource.IsSystemNamespace(name) {
		return fmt.Errorf("namespace %s: %w", name, resource.ErrSystemNamespace)
	}
	client, err := c.Client(ctx, key)
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	exists := apierrors.IsAlreadyExists(err)
	if err != nil && !exists {
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
// behind them.
func (c *Controller) ClusterNodes(ctx context.Context, key string) ([]resource.ClusterNode, error) {
	client, err := c.Client(ctx, key)
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	out := make([]resource.ClusterNode, 0, len(list.Items))
	for i := range list.Items {
		n := &list.Items[i]
		item := resource.ClusterNode{Name: n.Name, Ready: nodeReady(n), Version: n.Status.NodeInfo.KubeletVersion}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				item.Address = a.Address
			}
		}
		if m, ok := c.cfg.Machines.Get(key + "/" + n.Name); ok {
			item.Node, item.Size = m.Spec.Node, m.Spec.Size
		}
		out = append(out, item)
	}
	return out, nil
}
