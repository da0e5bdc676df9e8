package apps

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/modules/internal/mirror"
	"github.com/multipaas/multipaas/modules/resource"
)

// syncTimeout bounds the first lists of a cluster: they hold a few hundred
// objects at most.
const syncTimeout = 10 * time.Second

const (
	// maxObjects is how many Deployments, and how many Services, of apps are followed in
	// one cluster, and maxPods how many pods in trouble. A tenant may put our labels on
	// whatever he likes; slim these are 10 MiB.
	maxObjects, maxPods = 2000, 1000
	// maxMessage is what is kept of a message; sentence shows less.
	maxMessage = 500
)

// cluster is one workspace's cluster as long as it has apps: mirrors of their
// objects, kept by watches.
type cluster struct {
	client      kubernetes.Interface
	deployments *mirror.Mirror[appsv1.Deployment]
	services    *mirror.Mirror[corev1.Service]
	pods        *mirror.Mirror[corev1.Pod] // those that may be in trouble
	stop        context.CancelFunc
}

// cluster returns the cluster of workspace, watched and complete.
func (c *Controller) cluster(ctx context.Context, workspace string) (*cluster, error) {
	client, err := c.cfg.Clusters.Client(ctx, workspace)
	if err != nil {
		return nil, err
	}
	k := c.watched(workspace, client)
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	for _, synced := range []<-chan struct{}{k.deployments.Synced(), k.services.Synced(), k.pods.Synced()} {
		select {
		case <-synced:
		case <-ctx.Done():
			return nil, fmt.Errorf("the cluster of workspace %s doesn't answer", workspace)
		}
	}
	return k, nil
}

// watched starts to watch, if that is not done yet with this client.
func (c *Controller) watched(workspace string, client kubernetes.Interface) *cluster {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.clusters[workspace]; k != nil {
		if k.client == client {
			return k
		}
		k.stop()
	}
	ctx, stop := context.WithCancel(c.scope)
	k := &cluster{
		client:      client,
		deployments: follow(c, workspace, "Deployments", mirror.Of(client.AppsV1().Deployments("")), slimDeployment, maxObjects),
		services:    follow(c, workspace, "Services", mirror.Of(client.CoreV1().Services("")), slimService, maxObjects),
		pods:        follow(c, workspace, "Pods", mirror.Of(client.CoreV1().Pods("")), slimPod, maxPods),
		stop:        stop,
	}
	for _, run := range []func(context.Context){k.deployments.Run, k.services.Run, k.pods.Run} {
		c.watching.Go(func() { run(ctx) })
	}
	c.clusters[workspace] = k
	return k
}

// follow makes a mirror of one kind of object that looks like apps'. What changes has
// its app looked at.
func follow[K any, P interface {
	*K
	metav1.Object
}](c *Controller, workspace, kind string, from mirror.Source, slim func(runtime.Object) P, most int) *mirror.Mirror[K] {
	changed := func(o P) {
		if o != nil {
			c.changed(workspace, o.GetLabels()[labelName])
		}
	}
	return mirror.New(mirror.Config[K]{
		What:    kind + " of " + workspace,
		Log:     c.cfg.Log,
		Open:    func(context.Context) (mirror.Source, error) { return from, nil },
		Options: metav1.ListOptions{LabelSelector: labelManager + "=" + manager},
		Slim:    func(o runtime.Object) *K { return slim(o) },
		Max:     most,
		Changed: func(old, now *K) {
			changed(old)
			changed(now)
		},
		Listed: func() {
			for _, app := range c.cfg.Apps.List(workspace) {
				c.loop.Add(app.Key())
			}
		},
	})
}

// changed has an app looked at, if there is one: the label is the tenant's to write.
func (c *Controller) changed(workspace, name string) {
	key := workspace + "/" + name
	if _, ok := c.cfg.Apps.Get(key); ok {
		c.loop.Add(key)
	}
}

// slimMeta is what is kept of what all objects have.
func slimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	var finalizers []string // of what goes, for holders
	if m.DeletionTimestamp != nil {
		for _, f := range m.Finalizers[:min(len(m.Finalizers), 5)] {
			finalizers = append(finalizers, mirror.Cut(f, maxMessage))
		}
	}
	return metav1.ObjectMeta{
		Finalizers:        finalizers,
		Name:              m.Name,
		Namespace:         m.Namespace,
		UID:               m.UID,
		ResourceVersion:   m.ResourceVersion,
		Generation:        m.Generation,
		CreationTimestamp: m.CreationTimestamp,
		DeletionTimestamp: m.DeletionTimestamp,
		Labels:            map[string]string{labelName: m.Labels[labelName], labelManager: m.Labels[labelManager]},
	}
}

func slimDeployment(o runtime.Object) *appsv1.Deployment {
	d, ok := o.(*appsv1.Deployment)
	if !ok {
		return nil
	}
	kept := &appsv1.Deployment{ObjectMeta: slimMeta(&d.ObjectMeta)}
	kept.Spec.Replicas = d.Spec.Replicas
	s := &d.Status
	kept.Status = appsv1.DeploymentStatus{
		ObservedGeneration: s.ObservedGeneration,
		Replicas:           s.Replicas,
		UpdatedReplicas:    s.UpdatedReplicas,
		ReadyReplicas:      s.ReadyReplicas,
		AvailableReplicas:  s.AvailableReplicas,
	}
	for _, c := range s.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure || c.Type == appsv1.DeploymentProgressing {
			kept.Status.Conditions = append(kept.Status.Conditions,
				appsv1.DeploymentCondition{Type: c.Type, Status: c.Status, Message: mirror.Cut(c.Message, maxMessage)})
		}
	}
	return kept
}

func slimService(o runtime.Object) *corev1.Service {
	s, ok := o.(*corev1.Service)
	if !ok {
		return nil
	}
	return &corev1.Service{ObjectMeta: slimMeta(&s.ObjectMeta)}
}

// slimPod keeps what troubleOf reads, and nothing of pods that are well or leave.
func slimPod(o runtime.Object) *corev1.Pod {
	p, ok := o.(*corev1.Pod)
	if !ok || p.DeletionTimestamp != nil {
		return nil
	}
	kept := &corev1.Pod{ObjectMeta: slimMeta(&p.ObjectMeta)}
	kept.Status.Phase = p.Status.Phase
	kept.Status.Reason, kept.Status.Message = mirror.Cut(p.Status.Reason, maxMessage), mirror.Cut(p.Status.Message, maxMessage)
	troubled := p.Status.Phase == corev1.PodFailed
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			c = corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: mirror.Cut(c.Reason, maxMessage),
				Message: mirror.Cut(c.Message, maxMessage)}
			kept.Status.Conditions = []corev1.PodCondition{c}
			troubled = true
		}
	}
	for i := range p.Status.ContainerStatuses {
		if s := &p.Status.ContainerStatuses[i]; s.Name == container && !s.Ready {
			kept.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: container, RestartCount: s.RestartCount,
				State: slimState(&s.State), LastTerminationState: slimState(&s.LastTerminationState)}}
			troubled = true
		}
	}
	if !troubled {
		return nil
	}
	return kept
}

func slimState(s *corev1.ContainerState) (kept corev1.ContainerState) {
	if s.Running != nil {
		kept.Running = &corev1.ContainerStateRunning{}
	}
	if w := s.Waiting; w != nil {
		kept.Waiting = &corev1.ContainerStateWaiting{Reason: mirror.Cut(w.Reason, maxMessage),
			Message: mirror.Cut(w.Message, maxMessage)}
	}
	if t := s.Terminated; t != nil {
		kept.Terminated = &corev1.ContainerStateTerminated{ExitCode: t.ExitCode, Reason: mirror.Cut(t.Reason, maxMessage),
			Message: mirror.Cut(t.Message, maxMessage)}
	}
	return kept
}

// tooMany refuses to go on with an app that isn't among what there was room for.
func (k *cluster) tooMany(there found) error {
	for kind, missing := range map[string]bool{
		"Deployments": len(there.deployments) == 0 && !k.deployments.Whole(),
		"Services":    len(there.services) == 0 && !k.services.Whole(),
	} {
		if missing {
			message := fmt.Sprintf("The cluster has more than %d %s labelled %s=%s, or very large ones. "+
				"Delete those that are no app's.", maxObjects, kind, labelManager, manager)
			return &refusedError{not(resource.AppDeployed, reasonTooMany, message)}
		}
	}
	return nil
}

// forget drops what is remembered about an app that is gone, and the watches
// of its cluster if it was the last one there.
func (c *Controller) forget(key, workspace string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.applied, key)
	if len(c.cfg.Apps.List(workspace)) > 0 {
		return
	}
	if k := c.clusters[workspace]; k != nil {
		k.stop()
		delete(c.clusters, workspace)
	}
}

// found are the objects of one app.
type found struct {
	deployments []*appsv1.Deployment
	services    []*corev1.Service
	pods        []*corev1.Pod
	elsewhere   []metav1.Object // Deployments and Services of a namespace that it was in before
}

func (k *cluster) find(app *resource.App) (f found) {
	namespace := namespaceOf(app)
	f.deployments = in(namespace, labelled(k.deployments.All(), app), &f.elsewhere)
	f.services = in(namespace, labelled(k.services.All(), app), &f.elsewhere)
	f.pods = in(namespace, labelled(k.pods.All(), app), new([]metav1.Object))
	return f
}

// labelled returns the objects with the labels of an app.
func labelled[T metav1.Object](objects []T, app *resource.App) []T {
	match := k8slabels.SelectorFromSet(labels(app))
	return slices.DeleteFunc(objects, func(o T) bool { return !match.Matches(k8slabels.Set(o.GetLabels())) })
}

// in returns the objects in namespace, and adds the others to elsewhere.
func in[T metav1.Object](namespace string, objects []T, elsewhere *[]metav1.Object) (here []T) {
	for _, o := range objects {
		if o.GetNamespace() == namespace {
			here = append(here, o)
		} else {
			*elsewhere = append(*elsewhere, o)
		}
	}
	return here
}
