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
		show: func(ctx context.Context, machines ...*resource.Machine) error {
			if !a.seesHosts(ctx) {
				for _, m := range machines {
					m.Spec.Node = ""
				}
			}
			return nil
		},
	}
	machines.list("The machines of a workspace")
	ofWorkspace(a, op("clusternodes.list", "GET "+one+"/nodes", "The Kubernetes nodes of a workspace, as its own API shows them"),
		func(ctx context.Context, ws *resource.Workspace) (resource.List[resource.ClusterNode], error) {
			nodes, err := a.cfg.Workspaces.ClusterNodes(ctx, ws.Key())
			if !a.seesHosts(ctx) {
				for i := range nodes {
					nodes[i].Node = ""
				}
			}
			return listOf(nodes, ""), err
		})
	ofWorkspace(a, op("namespaces.list", "GET "+one+"/namespaces", "The Kubernetes namespaces of a workspace"),
		func(ctx context.Context, ws *resource.Workspace) (resource.List[resource.Namespace], error) {
			namespaces, err := a.cfg.Workspaces.Namespaces(ctx, ws.Key())
			return listOf(namespaces, ""), err
		})
	add(a, op("namespaces.put", "PUT "+one+"/namespaces/{namespace}", "Make a Kubernetes namespace").answers(http.StatusCreated),
		a.putNamespace)
	add(a, op("namespaces.delete", "DELETE "+one+"/namespaces/{namespace}", "Delete a Kubernetes namespace with all in it"),
		a.deleteNamespace)
	ofWorkspace(a, op("kube.access", "GET "+one+"/kube", "What a kubeconfig for a workspace needs; no secret"),
		a.cfg.Workspaces.Access)
	ofWorkspace(a, op("kube.credential", "POST "+one+"/kube/credential", "A token for a workspace's API, valid for ten minutes"),
		func(ctx context.Context, ws *resource.Workspace) (resource.KubeToken, error) {
			return a.id.IssueKubeToken(ctx, who(ctx), ws)
		})
}

// ofWorkspace adds an operation that answers with what do says of a workspace.
func ofWorkspace[T any](a *API, op operation, do func(context.Context, *resource.Workspace) (T, error)) {
	add(a, op, func(ctx context.Context, in *WorkspacePath) (*Output[T], error) {
		ws, err := a.workspace(ctx, *in)
		if err != nil {
			return nil, err
		}
		out, err := do(ctx, ws)
		return ok(out), err
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
