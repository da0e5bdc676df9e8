// Package policy makes NetworkPolicies hold for the pods of one machine, by
// nftables. A machine's kube-proxy runs it beside the Services' rules.
//
// It promises: a pod that a policy selects sends and gets nothing that no policy
// allows, from its first packet on. A pod's network is not ready before its rules
// are in the kernel: the CNI plugin embed/runtime/policy notes the pod in a folder,
// asks here and waits. Rules outlive this process: what replaces it writes the same in one
// transaction, or leaves them. What can't be enforced is shut, and an event on
// the policy says so. DESIGN.md has what was decided, and why.
//
// Parties: the API server's objects; the CNI plugin; nft. While a workspace has no
// policy, this is one watch that shows nothing, and a short list for each pod that
// starts. Only command kube imports it.
package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/knftables"
)

// Config says where things are.
type Config struct {
	// Kubeconfig is of a user who may list and watch pods, nodes, namespaces and
	// NetworkPolicies, and make events.
	Kubeconfig string
	// Dir is what the CNI plugin knows too: pods/ID is a pod of this machine, and
	// policy.sock is asked. It goes when the machine stops, like its pods.
	Dir string
}

// Run serves until ctx is done. It returns an error if it can't begin.
func Run(ctx context.Context, cfg Config) error {
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return err
	}
	rc.QPS, rc.Burst = 50, 110 // each pod that starts asks once, and a machine runs 110
	rc.ContentType = runtime.ContentTypeProtobuf
	rc.AcceptContentTypes = runtime.ContentTypeProtobuf
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rc, "multipaas-policy"))
	if err != nil {
		return err
	}
	nft, err := knftables.New(knftables.IPv4Family, tableName)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	k := newKeeper(cfg, client, nft)
	k.list = k.listPolicies
	close, err := k.listen(ctx)
	if err != nil {
		return err
	}
	defer close()
	go k.tell(ctx)
	go k.watchPolicies(ctx)
	k.serve(ctx)
	return nil
}

// keeper keeps the kernel's rules what the cluster's objects say.
type keeper struct {
	cfg    Config
	client kubernetes.Interface
	kernel kernel
	wake   chan struct{} // something has changed
	asks   chan *ask
	told   chan trouble
	list   func(ctx context.Context, namespace string) (revisions map[string]string, err error) // nil: tests without an API server

	mu       sync.Mutex
	world    *world
	policies bool  // they are known
	pods     bool  // they, the nodes and the namespaces are
	watching bool  // pods, nodes and namespaces
	err      error // why something isn't known
}

func newKeeper(cfg Config, client kubernetes.Interface, nft knftables.Interface) *keeper {
	return &keeper{
		cfg: cfg, client: client, kernel: kernel{nft: nft}, world: newWorld(),
		wake: make(chan struct{}, 1), asks: make(chan *ask), told: make(chan trouble, 64),
	}
}

// changed makes serve look again, soon.
func (k *keeper) changed() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// change changes what is known of the cluster.
func (k *keeper) change(f func(*world)) {
	k.mu.Lock()
	f(k.world)
	k.mu.Unlock()
	k.changed()
}

// handlers are how a watch becomes changes. An object that comes twice with the same
// meaning is no change: pods' status is written often.
func handlers[T any](k *keeper, set, remove func(*world, T), same func(a, b T) bool) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { k.change(func(w *world) { set(w, o.(T)) }) },
		UpdateFunc: func(before, now any) {
			if same == nil || !same(before.(T), now.(T)) {
				k.change(func(w *world) { set(w, now.(T)) })
			}
		},
		DeleteFunc: func(o any) {
			if last, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = last.Obj
			}
			k.change(func(w *world) { remove(w, o.(T)) })
		},
	}
}

// watch begins to watch a kind, and returns once all there are have been seen.
func watch[T any](
	ctx context.Context, k *keeper, client cache.Getter, resource string, example runtime.Object, only string,
	set, remove func(*world, T), same func(a, b T) bool,
) {
	lw := cache.NewFilteredListWatchFromClient(client, resource, metav1.NamespaceAll,
		func(o *metav1.ListOptions) { o.FieldSelector = only })
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(lw, k.client), example, 0, nil)
	// Both fail only if it runs already.
	_ = informer.SetTransform(slim)
	_ = informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		k.doubt(fmt.Errorf("watch %s: %w", resource, err))
		cache.DefaultWatchErrorHandler(ctx, r, err)
	})
	synced, err := informer.AddEventHandler(handlers(k, set, remove, same))
	if err != nil {
		k.doubt(err)
		return
	}
	go informer.RunWithContext(ctx)
	select {
	case <-synced.HasSyncedChecker().Done():
	case <-ctx.Done():
	}
}

func (k *keeper) doubt(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

// watchPolicies watches the policies. On a new machine the right to do so may come
// after the machine: what fails at first is tried again without an informer's long waits.
func (k *keeper) watchPolicies(ctx context.Context) {
	for began := time.Now(); ; {
		_, err := k.client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{Limit: 1})
		if err == nil {
			break
		}
		k.doubt(fmt.Errorf("list NetworkPolicies: %w", err))
		pause := 100 * time.Millisecond
		if time.Since(began) > 20*time.Second {
			pause = 5 * time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
	watch(ctx, k, k.client.NetworkingV1().RESTClient(), "networkpolicies", &networking.NetworkPolicy{}, "", (*world).setPolicy,
		func(w *world, p *policy) { w.deletePolicy(p.Namespace, p.Name) }, nil)
	k.mu.Lock()
	k.policies, k.err = true, nil
	k.mu.Unlock()
	k.changed()
}

// others leaves out the pods that have no address of their own, or no machine.
var others = fields.AndSelectors(
	fields.OneTermNotEqualSelector("spec.nodeName", ""),
	fields.OneTermNotEqualSelector("spec.hostNetwork", "true"),
	fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
	fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed)),
).String()

// watchPods watches what policies select.
func (k *keeper) watchPods(ctx context.Context) {
	core := k.client.CoreV1().RESTClient()
	watch(ctx, k, core, "namespaces", &corev1.Namespace{}, "", func(w *world, n *namespace) { w.setNamespace(n.Name, n) },
		func(w *world, n *namespace) { w.setNamespace(n.Name, nil) }, sameLabels)
	watch(ctx, k, core, "nodes", &corev1.Node{}, "", func(w *world, n *node) { w.setNode(n.Name, n) },
		func(w *world, n *node) { w.setNode(n.Name, nil) }, sameRanges)
	watch(ctx, k, core, "pods", &corev1.Pod{}, others, (*world).setPod,
		func(w *world, p *pod) { w.deletePod(string(p.UID)) }, samePod)
	k.mu.Lock()
	k.pods, k.err = true, nil
	k.mu.Unlock()
	k.changed()
}

// serve writes the rules whenever something has changed, and answers who asked
// once they hold. What can wait is collected for twice as long as the last time
// took, so that a large cluster doesn't keep a machine busy.
func (k *keeper) serve(ctx context.Context) {
	const soonest, latest = 10 * time.Millisecond, 5 * time.Second
	var waiting []*ask
	var again <-chan time.Time
	pause := soonest
	for ctx.Err() == nil {
		var urgent *ask
		select {
		case <-ctx.Done():
			return
		case urgent = <-k.asks:
		case <-again:
		case <-k.wake:
			select {
			case <-ctx.Done():
				return
			case urgent = <-k.asks:
			case <-time.After(pause):
			}
		}
		if urgent != nil {
			waiting = append(waiting, urgent)
		}
		waiting = append(waiting, k.asked()...)
		began := time.Now()
		residents, err := k.sync(ctx)
		pause = min(max(2*time.Since(began), soonest), latest)
		again = nil
		if err != nil && !errors.Is(err, errUnknown) {
			klog.FromContext(ctx).Error(err, "NetworkPolicies: what held before holds on")
			k.doubt(err)
			again = time.After(time.Second)
		}
		waiting = k.answer(waiting, residents)
	}
}

// errUnknown is returned while the cluster's objects are not known yet.
var errUnknown = errors.New("not known yet")

// sync writes the rules as the cluster is now, and returns which pods of this
// machine they are for, by the container runtime's id.
func (k *keeper) sync(ctx context.Context) (map[string]resident, error) {
	residents, local, err := readResidents(filepath.Join(k.cfg.Dir, podsDir))
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.policies {
		return nil, errUnknown
	}
	if len(k.world.policies) > 0 && !k.pods {
		if !k.watching {
			k.watching = true
			go k.watchPods(ctx)
		}
		return nil, errUnknown
	}
	k.world.setLocal(local)
	rules := k.world.rules()
	// The lock is held while nft runs: watches wait for the kernel.
	if err := k.kernel.write(ctx, rules); err != nil {
		return nil, err
	}
	k.err = nil
	for p, text := range rules.troubles {
		select {
		case k.told <- trouble{key(&p.ObjectMeta), p.UID, text}:
		default: // the next time
		}
	}
	return residents, nil
}

// podsDir holds a file for each pod of the machine, written by the CNI plugin.
const podsDir = "pods"

// readResidents reads who the CNI plugin has noted, by id and by address.
func readResidents(dir string) (map[string]resident, map[netip.Addr]resident, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	byID, byAddress := map[string]resident{}, map[netip.Addr]resident{}
	for _, e := range entries {
		r, err := readResident(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errHalf) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		byID[e.Name()], byAddress[r.Address] = r.resident, r.resident
	}
	return byID, byAddress, nil
}

// noted is a pod as the CNI plugin writes it down.
type noted struct {
	resident
	Address netip.Addr `json:"address"`
}

// errHalf is of one that is being written: it is asked about when it is whole.
var errHalf = errors.New("not whole yet")

func readResident(file string) (r noted, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return r, err
	}
	if json.Unmarshal(data, &r) != nil || !r.Address.Is4() {
		return r, errHalf
	}
	return r, nil
}

// trouble is what of a policy can't be enforced.
type trouble struct {
	policy types.NamespacedName
	uid    types.UID
	text   string
}

// tell makes an event of each trouble, once.
func (k *keeper) tell(ctx context.Context) {
	told := map[types.UID]string{}
	for {
		var t trouble
		select {
		case <-ctx.Done():
			return
		case t = <-k.told:
		}
		if told[t.uid] == t.text {
			continue
		}
		now := metav1.Now()
		_, err := k.client.CoreV1().Events(t.policy.Namespace).Create(ctx, &corev1.Event{
			// The same on all machines that have such pods.
			ObjectMeta: metav1.ObjectMeta{Namespace: t.policy.Namespace, Name: "multipaas-policy." + hash(string(t.uid), t.text)},
			InvolvedObject: corev1.ObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy",
				Namespace: t.policy.Namespace, Name: t.policy.Name, UID: t.uid},
			Reason: "NotEnforced", Message: t.text, Type: corev1.EventTypeWarning, Count: 1,
			FirstTimestamp: now, LastTimestamp: now, Source: corev1.EventSource{Component: "multipaas-policy"},
		}, metav1.CreateOptions{})
		if err == nil || isThere(err) {
			if len(told) > 4096 {
				clear(told)
			}
			told[t.uid] = t.text
		}
	}
}
