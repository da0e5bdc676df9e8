package workspace

import (
	"context"
	"fmt"

	"github.com/multipaas/multipaas/modules/internal/mirror"
	"github.com/multipaas/multipaas/modules/resource"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

const (
	// maxNodes is how many of a cluster's nodes are followed that are no machines of
	// ours. A tenant can write any number of Nodes, and has no use for them.
	maxNodes = 1000
	// maxNamespaces is how many namespaces of a cluster are followed: half of what
	// Kubernetes is tested with. Slim they take 1 MiB.
	maxNamespaces = 5000
	// maxText is what is kept of a word in a status that a tenant can write, and
	// maxMessage of a sentence.
	maxText, maxMessage = 100, 1000
)

// node is what is kept of a Node.
type node struct {
	name, podCIDR, zone, version, address string
	ready                                 bool
	why                                   string // it is not ready; may be ""
}

// namespace is what is kept of a Namespace.
type namespace struct {
	name, phase string
	uid         types.UID
	going       bool
	open        bool // to developers
}

// followCluster follows the cluster's nodes and namespaces until ctx is done.
func (c *Controller) followCluster(ctx context.Context, r *run, client kubernetes.Interface) {
	changed := func() { c.loop.Add(r.key) }
	nodes := mirror.New(mirror.Config[node]{
		What: "nodes of " + r.key,
		Log:  c.cfg.Log,
		Open: func(context.Context) (mirror.Source, error) { return mirror.Of(client.CoreV1().Nodes()), nil },
		Slim: slimNode,
		Size: func(n *node) int {
			if _, ours := c.cfg.Machines.Get(r.key + "/" + n.name); ours {
				return 0 // resource.MaxMachines bounds them
			}
			return 1
		},
		Max: maxNodes,
		Changed: func(old, now *node) {
			if old == nil || now == nil || old.ready != now.ready || old.podCIDR != now.podCIDR || old.zone != now.zone {
				changed()
			}
		},
		Listed: changed,
	})
	namespaces := mirror.New(mirror.Config[namespace]{
		What: "namespaces of " + r.key,
		Log:  c.cfg.Log,
		Open: func(context.Context) (mirror.Source, error) { return mirror.Of(client.CoreV1().Namespaces()), nil },
		Slim: slimNamespace,
		Max:  maxNamespaces,
		Changed: func(old, now *namespace) {
			if old == nil || now != nil && old.open != now.open {
				changed()
			}
		},
		Listed: changed,
	})
	r.note(func(l *live) { l.nodes, l.namespaces = nodes, namespaces })
	c.wg.Go(func() { nodes.Run(ctx) })
	c.wg.Go(func() { namespaces.Run(ctx) })
}

func slimNode(o runtime.Object) *node {
	n, ok := o.(*corev1.Node)
	if !ok {
		return nil
	}
	kept := &node{
		name:    n.Name,
		podCIDR: mirror.Cut(n.Spec.PodCIDR, maxText),
		zone:    mirror.Cut(n.Labels[corev1.LabelTopologyZone], maxText),
		version: mirror.Cut(n.Status.NodeInfo.KubeletVersion, maxText),
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			kept.address = mirror.Cut(a.Address, maxText)
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			kept.ready, kept.why = c.Status == corev1.ConditionTrue, mirror.Cut(c.Message, maxMessage)
		}
	}
	return kept
}

func slimNamespace(o runtime.Object) *namespace {
	ns, ok := o.(*corev1.Namespace)
	if !ok {
		return nil
	}
	return &namespace{
		name:  ns.Name,
		uid:   ns.UID,
		going: ns.DeletionTimestamp != nil,
		open:  openToDevelopers(ns),
		phase: mirror.Cut(string(ns.Status.Phase), maxText),
	}
}

// followed returns what is known of the cluster of a workspace. It wraps
// resource.ErrNotReady while that is nothing.
func (c *Controller) followed(key string) (live, error) {
	r, err := c.serving(key)
	if err != nil {
		return live{}, err
	}
	now := r.now()
	if !now.followed() {
		return live{}, fmt.Errorf("workspace %s: %w: its nodes and namespaces are being read", key, resource.ErrNotReady)
	}
	return now, nil
}

// tooMany says what of the cluster is left out because there is so much of it; "" is
// nothing.
func (l live) tooMany() string {
	const remedy = "or they are very large; the platform leaves some out: delete those that nobody needs"
	switch {
	case l.namespaces != nil && !l.namespaces.Whole():
		return fmt.Sprintf("the cluster has more than %d namespaces, %s", maxNamespaces, remedy)
	case l.nodes != nil && !l.nodes.Whole():
		return fmt.Sprintf("the cluster has more than %d nodes that are no machines, %s", maxNodes, remedy)
	}
	return ""
}
