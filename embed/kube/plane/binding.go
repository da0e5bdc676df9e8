package plane

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/storage"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/component-helpers/storage/volume"
	fwk "k8s.io/kube-scheduler/framework"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	schedulerconfig "k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
)

// Upstream's scheduler looks each second whether a pod's new claims are bound, the first time after a second, and no flag
// says otherwise: with a local volume, which is there after 0.2 s, a pod's start took 0.8 s longer for it. So its plugin of
// volumes has a binder here that looks oftener, in the scheduler's own memory; all else of it is upstream's.
const (
	bindingPlugin = "MultiPaaSVolumeBinding"
	boundEvery    = 100 * time.Millisecond
)

// binding has the scheduler of opts use the plugin in the place of upstream's. It is to be called after the options are
// defaulted, which Setup does before it asks for plugins.
func binding(opts *scheduleroptions.Options) scheduler.Option {
	return func(registry frameworkruntime.Registry) error {
		replaced := 0
		for _, p := range opts.ComponentConfig.Profiles {
			for i := range p.Plugins.MultiPoint.Enabled {
				if e := &p.Plugins.MultiPoint.Enabled[i]; e.Name == volumebinding.Name {
					e.Name = bindingPlugin
					replaced++
				}
			}
			for i := range p.PluginConfig {
				if c := &p.PluginConfig[i]; c.Name == volumebinding.Name {
					c.Name = bindingPlugin
				}
			}
		}
		if replaced != 1 {
			return fmt.Errorf("scheduler: %d plugins %s in its profiles, want one", replaced, volumebinding.Name)
		}
		return registry.Register(bindingPlugin, newBinding)
	}
}

func newBinding(ctx context.Context, args runtime.Object, h fwk.Handle) (fwk.Plugin, error) {
	made, err := volumebinding.New(ctx, args, h, feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate))
	if err != nil {
		return nil, err
	}
	p := made.(*volumebinding.VolumeBinding)
	core := h.SharedInformerFactory().Core().V1()
	p.Binder = &binder{
		SchedulerVolumeBinder: p.Binder,
		client:                h.ClientSet(),
		pods:                  core.Pods().Lister(),
		nodes:                 core.Nodes().Lister(),
		claims:                core.PersistentVolumeClaims().Lister(),
		volumes:               core.PersistentVolumes().Lister(),
		patience:              time.Duration(args.(*schedulerconfig.VolumeBindingArgs).BindTimeoutSeconds) * time.Second,
	}
	return bindingOf{p}, nil
}

// bindingOf is the plugin by the name that it is configured by: the scheduler knows weights by what a plugin calls itself.
type bindingOf struct{ *volumebinding.VolumeBinding }

func (bindingOf) Name() string { return bindingPlugin }

// binder is upstream's, but for how it waits for claims that volumes are made for.
type binder struct {
	volumebinding.SchedulerVolumeBinder

	client   kubernetes.Interface
	pods     corelisters.PodLister
	nodes    corelisters.NodeLister
	claims   corelisters.PersistentVolumeClaimLister
	volumes  corelisters.PersistentVolumeLister
	patience time.Duration
}

// BindPodVolumes writes the chosen node into claims, and blocks until all are bound, a volume can't be made for that node,
// the pod is gone, or there is no more patience. After an error the scheduler forgets what it assumed, and tries anew.
// Claims that take a volume which is there already are left to upstream's, and those beside them.
func (b *binder) BindPodVolumes(ctx context.Context, pod *corev1.Pod, of *volumebinding.PodVolumes) error {
	if len(of.StaticBindings) > 0 {
		return b.SchedulerVolumeBinder.BindPodVolumes(ctx, pod, of)
	}
	var written []*corev1.PersistentVolumeClaim
	for _, d := range of.DynamicProvisions {
		claim, err := b.client.CoreV1().PersistentVolumeClaims(d.PVC.Namespace).Update(ctx, d.PVC, metav1.UpdateOptions{})
		if err != nil {
			return err
		}
		written = append(written, claim)
	}
	err := wait.PollUntilContextTimeout(ctx, boundEvery, b.patience, false, func(context.Context) (bool, error) {
		return b.bound(pod, written)
	})
	if err != nil {
		return fmt.Errorf("binding volumes: %w", err)
	}
	return nil
}

// bound says whether claims are bound to volumes that the pod's node can have. The error says that they won't be.
func (b *binder) bound(pod *corev1.Pod, written []*corev1.PersistentVolumeClaim) (bool, error) {
	if _, err := b.pods.Pods(pod.Namespace).Get(pod.Name); apierrors.IsNotFound(err) {
		return false, fmt.Errorf("pod does not exist any more: %w", err)
	}
	node, err := b.nodes.Get(pod.Spec.NodeName)
	if err != nil {
		return false, fmt.Errorf("get node %q: %w", pod.Spec.NodeName, err)
	}
	for _, was := range written {
		claim, err := b.claims.PersistentVolumeClaims(was.Namespace).Get(was.Name)
		if err != nil {
			return false, fmt.Errorf("look at claim %q: %w", was.Name, err)
		}
		if (storage.APIObjectVersioner{}).CompareResourceVersion(was, claim) > 0 {
			return false, nil // what was written has not come yet
		}
		if claim.Annotations[volume.AnnSelectedNode] != pod.Spec.NodeName { // that is how who makes volumes says no
			return false, fmt.Errorf("provisioning failed for PVC %q", claim.Name)
		}
		if claim.Spec.VolumeName == "" {
			return false, nil
		}
		v, err := b.volumes.Get(claim.Spec.VolumeName)
		if apierrors.IsNotFound(err) {
			return false, nil // nor has this
		}
		if err != nil {
			return false, fmt.Errorf("look at volume %q: %w", claim.Spec.VolumeName, err)
		}
		if err := volume.CheckNodeAffinity(v, node.Labels); err != nil {
			return false, fmt.Errorf("pv %q node affinity doesn't match node %q: %w", v.Name, node.Name, err)
		}
		if !metav1.HasAnnotation(claim.ObjectMeta, volume.AnnBindCompleted) {
			return false, nil
		}
	}
	return true, nil
}
