package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// NamespacePath names a namespace of a workspace.
type NamespacePath struct {
	WorkspacePath
	Namespace string `path:"namespace" maxLength:"63" example:"staging"`
}

func (a *API) clusterOperations() {
	const one = workspacesPath + "/{workspace}"
	machines := collection[resource.Machine, *resource.Machine]{
		api:  a,
		noun: "machine",
		path: one + "/machines",
		hide: func(ctx context.Context, m *resource.Machine) {
			if !a.seesHosts(ctx) {
				m.Spec.Node = ""
			}
		},
	}
	machines.list("The machines of a workspace")
	add(a, op("clusternodes.list", "GET "+one+"/nodes", "The Kubernetes nodes of a workspace, as its own API shows them"),
		func(ctx context.Context, in *WorkspacePath) (*Output[resource.List[resource.ClusterNode]], error) {
			if _, err := a.workspace(ctx, *in); err != nil {
				return nil, err
			}
			nodes, err := a.cfg.Workspaces.ClusterNodes(ctx, in.key())
			if err != nil {
				return nil, err
			}
			if !a.seesHosts(ctx) {
				for i := range nodes {
					nodes[i].Node = ""
				}
			}
			return ok(listOf(nodes, "")), nil
		})
	add(a, op("namespaces.list", "GET "+one+"/namespaces", "The Kubernetes namespaces of a workspace"),
		func(ctx context.Context, in *WorkspacePath) (*Output[resource.List[resource.Namespace]], error) {
			if _, err := a.workspace(ctx, *in); err != nil {
				return nil, err
			}
			namespaces, err := a.cfg.Workspaces.Namespaces(ctx, in.key())
			return ok(listOf(namespaces, "")), err
		})
	add(a, op("namespaces.put", "PUT "+one+"/namespaces/{namespace}", "Make a Kubernetes namespace").answers(http.StatusCreated),
		a.putNamespace)
	add(a, op("namespaces.delete", "DELETE "+one+"/namespaces/{namespace}", "Delete a Kubernetes namespace with all in it"),
		a.deleteNamespace)
	add(a, op("kube.access", "GET "+one+"/kube", "What a kubeconfig for a workspace needs; no secret"),
		func(ctx context.Context, in *WorkspacePath) (*Output[resource.KubeAccess], error) {
			ws, err := a.workspace(ctx, *in)
			if err != nil {
				return nil, err
			}
			kube, err := a.cfg.Workspaces.Access(ctx, ws)
			return ok(kube), err
		})
	add(a, op("kube.credential", "POST "+one+"/kube/credential", "A token for a workspace's API, valid for ten minutes"),
		func(ctx context.Context, in *WorkspacePath) (*Output[resource.KubeToken], error) {
			ws, err := a.workspace(ctx, *in)
			if err != nil {
				return nil, err
			}
			token, err := a.id.IssueKubeToken(ctx, who(ctx), ws)
			return ok(token), err
		})
}

func (a *API) putNamespace(ctx context.Context, in *NamespacePath) (*Output[resource.Namespace], error) {
	if err := resource.CheckName("namespace", in.Namespace); err != nil {
		return nil, invalid("path.namespace", err.Error(), "")
	}
	ws, err := a.workspace(ctx, in.WorkspacePath)
	if err != nil {
		return nil, err
	}
	if ws.Deleting() {
		return nil, deleting("workspace", ws.Name)
	}
	out := &Output[resource.Namespace]{Status: http.StatusCreated, Body: resource.Namespace{Name: in.Namespace, Phase: "Active"}}
	err = a.cfg.Workspaces.CreateNamespace(ctx, in.key(), in.Namespace)
	switch {
	case errors.Is(err, store.ErrExists):
		out.Status, err = http.StatusOK, nil
	case errors.Is(err, resource.ErrSystemNamespace):
		err = invalid("path.namespace", "names that begin with kube- belong to Kubernetes", "Choose another name.")
	}
	return out, err
}

func (a *API) deleteNamespace(ctx context.Context, in *NamespacePath) (*Empty, error) {
	if resource.CheckName("namespace", in.Namespace) != nil {
		return nil, missing("namespace", in.Namespace)
	}
	if _, err := a.workspace(ctx, in.WorkspacePath); err != nil {
		return nil, err
	}
	err := a.cfg.Workspaces.DeleteNamespace(ctx, in.key(), in.Namespace)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, missing("namespace", in.Namespace)
	case errors.Is(err, resource.ErrSystemNamespace):
		return nil, conflict("in-use", fmt.Sprintf("The namespace %q belongs to Kubernetes.", in.Namespace), "")
	}
	return &Empty{}, err
}
