package plane

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/volume"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/volumebinding"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
)

// TestBindingTakesUpstreamsPlace: it is one of upstream's default plugins, with what that is told.
func TestBindingTakesUpstreamsPlace(t *testing.T) {
	opts := scheduleroptions.NewOptions()
	var err error
	if opts.ComponentConfig, err = latest.Default(); err != nil {
		t.Fatal(err)
	}
	var option scheduler.Option = binding(opts)
	registry := frameworkruntime.Registry{}
	if err := option(registry); err != nil || registry[bindingPlugin] == nil {
		t.Fatalf("it is not registered: %v", err)
	}
	p := opts.ComponentConfig.Profiles[0]
	names := map[string]int{}
	for _, e := range p.Plugins.MultiPoint.Enabled {
		names[e.Name]++
	}
	for _, c := range p.PluginConfig {
		names[c.Name] += 10
	}
	if names[bindingPlugin] != 11 || names[volumebinding.Name] != 0 {
		t.Errorf("plugins of the scheduler: %v", names)
	}
	if err := option(frameworkruntime.Registry{}); err == nil {
		t.Error("where upstream has no such plugin it says nothing")
	}
}

// TestBound: a claim is bound when all of it is, for the node that was chosen, and nobody waits for one that won't be.
func TestBound(t *testing.T) {
	type world struct {
		pod    *corev1.Pod
		claim  *corev1.PersistentVolumeClaim
		volume *corev1.PersistentVolume
	}
	for name, c := range map[string]struct {
		change func(*world)
		bound  bool
		fails  string
	}{
		"all is there":                       {func(*world) {}, true, ""},
		"no volume yet":                      {func(w *world) { w.claim.Spec.VolumeName = "" }, false, ""},
		"the volume has not come":            {func(w *world) { w.volume = nil }, false, ""},
		"bound by half":                      {func(w *world) { delete(w.claim.Annotations, volume.AnnBindCompleted) }, false, ""},
		"what was written has not come":      {func(w *world) { w.claim.ResourceVersion = "4" }, false, ""},
		"no volume can be made for the node": {func(w *world) { delete(w.claim.Annotations, volume.AnnSelectedNode) }, false, "provisioning failed"},
		"the claim is gone":                  {func(w *world) { w.claim = nil }, false, "claim"},
		"the pod is gone":                    {func(w *world) { w.pod = nil }, false, "does not exist"},
		"the volume is elsewhere": {func(w *world) {
			w.volume.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values = []string{"b"}
		}, false, "node affinity"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p"}, Spec: corev1.PodSpec{NodeName: "node"}}
			written := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "c", ResourceVersion: "5",
				Annotations: map[string]string{volume.AnnSelectedNode: "node"}}}
			w := &world{pod: pod, claim: written.DeepCopy(), volume: &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}}}
			w.claim.ResourceVersion, w.claim.Spec.VolumeName = "6", "v"
			w.claim.Annotations[volume.AnnBindCompleted] = "yes"
			w.volume.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "host", Operator: corev1.NodeSelectorOpIn, Values: []string{"a"}}}}}}}
			c.change(w)
			have := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
			add := func(there bool, o any) cache.Indexer {
				in := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
				if there {
					_ = in.Add(o)
				}
				return in
			}
			_ = have.Add(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{"host": "a"}}})
			b := &binder{
				nodes:   corelisters.NewNodeLister(have),
				pods:    corelisters.NewPodLister(add(w.pod != nil, w.pod)),
				claims:  corelisters.NewPersistentVolumeClaimLister(add(w.claim != nil, w.claim)),
				volumes: corelisters.NewPersistentVolumeLister(add(w.volume != nil, w.volume)),
			}
			bound, err := b.bound(pod, []*corev1.PersistentVolumeClaim{written})
			if bound != c.bound || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("bound %v, %v; want %v, an error with %q", bound, err, c.bound, c.fails)
			}
		})
	}
}
