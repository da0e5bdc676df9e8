package plane

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/multipaas/multipaas/embed/kube/volumes"
)

// unserved says of objects that nobody serves in this cluster that they wait for
// somebody, by an event each: Services of type LoadBalancer, Ingresses, and claims
// of no class or of one that isn't there. What a tenant installed himself to serve them gets served time
// first.
//
// It watches nothing and remembers nothing: the API server tells it which kinds are written,
// and it reads through those. An idle cluster costs it a look each half hour.
type unserved struct {
	mu    sync.Mutex
	dirty map[schema.GroupResource]bool
	woken chan struct{}

	storage        bool // the platform serves claims of its classes
	client         kubernetes.Interface
	now            func() time.Time
	patience, rest time.Duration
}

const (
	// unservedPatience is how long an object may wait before it is told so: who
	// serves it, mostly does so within a second or two.
	unservedPatience = 10 * time.Second
	// unservedRest is the least time between two looks at a kind that is written to.
	unservedRest = 30 * time.Second
	// unservedAgain is when an event is renewed: the API server drops it after an hour.
	unservedAgain = 30 * time.Minute
	// A look reads so many objects of a kind, in pages, and writes so many
	// events: a tenant who makes more of them knows why by then.
	unservedPage    = 100
	unservedObjects = 2000
	unservedEvents  = 50
)

var (
	servicesKind  = corev1.Resource("services")
	claimsKind    = corev1.Resource("persistentvolumeclaims")
	ingressesKind = networkingv1.Resource("ingresses")
)

func newUnserved(storage bool) *unserved {
	return &unserved{storage: storage, dirty: map[schema.GroupResource]bool{}, woken: make(chan struct{}, 1),
		now: time.Now, patience: unservedPatience, rest: unservedRest}
}

// wrote notes that an object of a kind is made or changed. It never blocks.
func (u *unserved) wrote(kind schema.GroupResource) {
	if kind != servicesKind && kind != claimsKind && kind != ingressesKind {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dirty[kind] = true
	select {
	case u.woken <- struct{}{}:
	default:
	}
}

// take returns the kinds that were written to since, and forgets them.
func (u *unserved) take() map[schema.GroupResource]bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	taken := u.dirty
	u.dirty = map[schema.GroupResource]bool{}
	return taken
}

// run asks as the controller manager does, whose flags name its kubeconfig: it may
// list everything and write events, and no more.
func (u *unserved) run(ctx context.Context, flags []string) error {
	const flag = "--kubeconfig="
	i := slices.IndexFunc(flags, func(f string) bool { return strings.HasPrefix(f, flag) })
	if i < 0 {
		<-ctx.Done()
		return nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", strings.TrimPrefix(flags[i], flag))
	if err != nil {
		return err
	}
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.Timeout = 30 * time.Second
	if u.client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	u.loop(ctx)
	return nil
}

// loop looks when something was written, and at everything from time to time: at
// once first, since what was noted before the process ended is forgotten.
func (u *unserved) loop(ctx context.Context) {
	all := map[schema.GroupResource]bool{servicesKind: true, claimsKind: true, ingressesKind: true}
	kinds, renew := all, false
	again := time.NewTicker(unservedAgain)
	defer again.Stop()
	for {
		// What was written before now has waited for patience when it is looked at,
		// and what is written from now on wakes the next look.
		if !sleep(ctx, u.patience) {
			return
		}
		u.look(ctx, kinds, renew)
		if !sleep(ctx, u.rest) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-u.woken:
			kinds, renew = u.take(), false
		case <-again.C:
			kinds, renew = all, true
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// look writes the events of kinds. What goes wrong is gone through at the next look.
func (u *unserved) look(ctx context.Context, kinds map[schema.GroupResource]bool, renew bool) {
	left := unservedEvents
	tell := func(o metav1.Object, kind, version, why string) error {
		if why == "" || o.GetDeletionTimestamp() != nil || u.now().Sub(o.GetCreationTimestamp().Time) < u.patience || left == 0 {
			return nil
		}
		told, err := u.tell(ctx, o, kind, version, why, renew)
		if told {
			left--
		}
		return err
	}
	for kind := range kinds {
		if err := u.lookAt(ctx, kind, tell); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Look for what nobody serves", "kind", kind.Resource)
		}
	}
}

// What to do, for people. They hold also where the tenant has something that
// serves the kind, and it has not yet.
const (
	adviseService = "Nobody has given this Service an address: the platform serves none of type LoadBalancer. " +
		"To be reached from outside by HTTP(S), let `mp apps deploy` run the app; within the cluster its cluster IP works. " +
		"Or install something that serves load balancers."
	adviseIngress = "Nobody serves this Ingress: the cluster has no controller for it. Apps that `mp apps deploy` runs " +
		"have an address at the platform's balancer without one. Or install an ingress controller, and name its class " +
		"in spec.ingressClassName."
	adviseNoVolumes = "Nobody provides a volume for this claim: the platform gives out no volumes. " +
		"Use an emptyDir for what need not last, or install a provisioner and name its class in spec.storageClassName."
	adviseClaim = "Only a PersistentVolume would do that somebody makes for this claim. For one that the platform makes, " +
		"name its class in spec.storageClassName: local."
)

type teller func(o metav1.Object, kind, version, why string) error

func (u *unserved) lookAt(ctx context.Context, kind schema.GroupResource, tell teller) error {
	switch kind {
	case servicesKind:
		options := metav1.ListOptions{FieldSelector: "spec.type=LoadBalancer"}
		return pages(options, func(o metav1.ListOptions) (metav1.ListInterface, int, error) {
			list, err := u.client.CoreV1().Services("").List(ctx, o)
			if err != nil {
				return nil, 0, err
			}
			for i := range list.Items {
				s := &list.Items[i]
				if err := tell(s, "Service", "v1", whyService(s)); err != nil {
					return nil, 0, err
				}
			}
			return list, len(list.Items), nil
		})
	case claimsKind:
		provisioners := map[string]string{}
		err := pages(metav1.ListOptions{}, func(o metav1.ListOptions) (metav1.ListInterface, int, error) {
			list, err := u.client.StorageV1().StorageClasses().List(ctx, o)
			if err != nil {
				return nil, 0, err
			}
			for i := range list.Items {
				provisioners[list.Items[i].Name] = list.Items[i].Provisioner
			}
			return list, len(list.Items), nil
		})
		if err != nil {
			return err
		}
		return pages(metav1.ListOptions{}, func(o metav1.ListOptions) (metav1.ListInterface, int, error) {
			list, err := u.client.CoreV1().PersistentVolumeClaims("").List(ctx, o)
			if err != nil {
				return nil, 0, err
			}
			for i := range list.Items {
				c := &list.Items[i]
				if err := tell(c, "PersistentVolumeClaim", "v1", u.whyClaim(c, provisioners)); err != nil {
					return nil, 0, err
				}
			}
			return list, len(list.Items), nil
		})
	case ingressesKind:
		classes := map[string]bool{}
		err := pages(metav1.ListOptions{}, func(o metav1.ListOptions) (metav1.ListInterface, int, error) {
			list, err := u.client.NetworkingV1().IngressClasses().List(ctx, o)
			if err != nil {
				return nil, 0, err
			}
			for i := range list.Items {
				classes[list.Items[i].Name] = true
			}
			return list, len(list.Items), nil
		})
		if err != nil {
			return err
		}
		return pages(metav1.ListOptions{}, func(o metav1.ListOptions) (metav1.ListInterface, int, error) {
			list, err := u.client.NetworkingV1().Ingresses("").List(ctx, o)
			if err != nil {
				return nil, 0, err
			}
			for i := range list.Items {
				ing := &list.Items[i]
				if err := tell(ing, "Ingress", "networking.k8s.io/v1", whyIngress(ing, classes)); err != nil {
					return nil, 0, err
				}
			}
			return list, len(list.Items), nil
		})
	}
	return nil
}

// pages lists until the end, or until unservedObjects have been read.
func pages(o metav1.ListOptions, page func(metav1.ListOptions) (metav1.ListInterface, int, error)) error {
	o.Limit = unservedPage
	for read := 0; read < unservedObjects; {
		list, n, err := page(o)
		if err != nil {
			return err
		}
		if o.Continue = list.GetContinue(); o.Continue == "" {
			return nil
		}
		read += n
	}
	return nil
}

func whyService(s *corev1.Service) string {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Spec.LoadBalancerClass != nil || len(s.Status.LoadBalancer.Ingress) > 0 {
		return ""
	}
	return adviseService
}

// whyIngress takes an Ingress for served whose class there is: not every
// controller says so in the status.
func whyIngress(i *networkingv1.Ingress, classes map[string]bool) string {
	_, old := i.Annotations["kubernetes.io/ingress.class"]
	if old || len(i.Status.LoadBalancer.Ingress) > 0 {
		return ""
	}
	if class := i.Spec.IngressClassName; class != nil && *class != "" {
		if classes[*class] {
			return ""
		}
		return fmt.Sprintf("There is no IngressClass %s. %s", *class, adviseIngress)
	}
	return adviseIngress
}

// whyClaim takes a claim for served that has a class of somebody else's, who says so
// himself if he can't. provisioners has the classes that there are.
func (u *unserved) whyClaim(c *corev1.PersistentVolumeClaim, provisioners map[string]string) string {
	if c.Status.Phase != corev1.ClaimPending && c.Status.Phase != "" || c.Spec.VolumeName != "" {
		return ""
	}
	advise := adviseNoVolumes
	if u.storage {
		advise = adviseClaim
	}
	class := ""
	if c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	provisioner, there := provisioners[class]
	switch {
	case class == "":
		return "This claim names no class. " + advise
	case !there:
		return fmt.Sprintf("There is no StorageClass %s. %s", class, advise)
	case provisioner == volumes.Driver && !u.storage:
		return advise
	}
	return ""
}

// tell writes the event of an object, one for its life, and says whether it wrote
// something. One that is there is written again only to keep it.
func (u *unserved) tell(ctx context.Context, o metav1.Object, kind, version, why string, renew bool) (bool, error) {
	now := metav1.NewTime(u.now())
	events := u.client.CoreV1().Events(o.GetNamespace())
	hash := fnv.New64a()
	hash.Write([]byte(o.GetUID()))
	name := fmt.Sprintf("%s.%x", o.GetName()[:min(len(o.GetName()), 200)], hash.Sum64())
	_, err := events.Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: o.GetNamespace()},
		InvolvedObject: corev1.ObjectReference{Kind: kind, APIVersion: version, Namespace: o.GetNamespace(),
			Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion()},
		Reason:              "NotServed",
		Message:             why,
		Type:                corev1.EventTypeWarning,
		Source:              corev1.EventSource{Component: "multipaas"},
		ReportingController: "multipaas",
		FirstTimestamp:      now,
		LastTimestamp:       now,
		Count:               1,
	}, metav1.CreateOptions{})
	switch {
	case err == nil:
		return true, nil
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err): // the namespace goes, or is full
		return false, nil
	case !apierrors.IsAlreadyExists(err):
		return false, err
	case !renew:
		return false, nil
	}
	patch, err := json.Marshal(map[string]any{"lastTimestamp": now, "message": why})
	if err != nil {
		return false, err
	}
	_, err = events.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		err = nil // it has just expired: at the next look
	}
	return true, err
}
