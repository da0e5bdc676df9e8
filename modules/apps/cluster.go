package apps

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/multipaas/multipaas/modules/resource"
)

// syncTimeout bounds the first lists of a cluster: they hold a few hundred
// objects at most.
const syncTimeout = 10 * time.Second

// cluster is one workspace's cluster as long as it has apps: mirrors of their
// objects, kept by watches.
type cluster struct {
	client      kubernetes.Interface
	deployments appslisters.DeploymentLister
	services    corelisters.ServiceLister
	pods        corelisters.PodLister
	synced      []cache.InformerSynced
	stop        context.CancelFunc
}

// cluster returns the cluster of workspace, watched and complete.
func (c *Controller) cluster(ctx context.Context, workspace string) (*cluster, error) {
	client, err := c.cfg.Clusters.Client(ctx, workspace)
	if err != nil {
		return nil, err
	}
	k, err := c.watched(workspace, client)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), k.synced...) {
		return nil, fmt.Errorf("the cluster of workspace %s doesn't answer", workspace)
	}
	return k, nil
}

// watched starts to watch, if that is not done yet with this client.
func (c *Controller) watched(workspace string, client kubernetes.Interface) (*cluster, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.clusters[workspace]; k != nil {
		if k.client == client {
			return k, nil
		}
		k.stop()
	}
	ctx, stop := context.WithCancel(c.scope)
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = labelManager + "=" + manager }),
		informers.WithTransform(lean))
	k := &cluster{
		client:      client,
		deployments: factory.Apps().V1().Deployments().Lister(),
		services:    factory.Core().V1().Services().Lister(),
		pods:        factory.Core().V1().Pods().Lister(),
		stop:        stop,
	}
	changed := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if m, ok := obj.(metav1.Object); ok {
			if name := m.GetLabels()[labelName]; name != "" {
				c.loop.Add(workspace + "/" + name)
			}
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc:    changed,
		UpdateFunc: func(_, now any) { changed(now) },
		DeleteFunc: changed,
	}
	for _, informer := range []cache.SharedIndexInformer{
		factory.Apps().V1().Deployments().Informer(),
		factory.Core().V1().Services().Informer(),
		factory.Core().V1().Pods().Informer(),
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			stop()
			return nil, err
		}
		k.synced = append(k.synced, informer.HasSynced)
		c.watching.Go(func() { informer.RunWithContext(ctx) })
	}
	c.clusters[workspace] = k
	return k, nil
}

// lean drops what nobody here reads and what makes up most of an object.
func lean(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return obj, nil
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

func (k *cluster) find(app *resource.App) (f found, err error) {
	match, namespace := k8slabels.SelectorFromSet(labels(app)), namespaceOf(app)
	deployments, err1 := k.deployments.List(match)
	services, err2 := k.services.List(match)
	f.deployments = in(namespace, deployments, &f.elsewhere)
	f.services = in(namespace, services, &f.elsewhere)
	f.pods, err = k.pods.Pods(namespace).List(match)
	return f, errors.Join(err1, err2, err)
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
