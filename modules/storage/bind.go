package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/internal/mirror"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// Clusters reaches workspaces' clusters; modules/workspace. Errors are resource.ErrNotReady
// while a plane does not serve.
type Clusters interface {
	// Client returns a client with every right.
	Client(ctx context.Context, workspace string) (kubernetes.Interface, error)
	// ClientAs returns one with the rights of a user there.
	ClientAs(ctx context.Context, workspace string, as resource.KubeUser) (kubernetes.Interface, error)
}

// Claims works on the claims of workspaces' clusters, as their users do: what a user may do
// to a claim is what he may do in the cluster. What claims are bound to is the platform's.
// Its methods are safe for concurrent use, and block until the cluster has answered.
type Claims struct{ Clusters Clusters }

const (
	maxClaims = 5000
	maxTries  = 5
	// How long it is waited for the cluster's controllers, which take a tenth of a second:
	// to see what is new, without which all comes true a little later, and to let go.
	availableWait = 3 * time.Second
	goingWait     = 10 * time.Second
	lookEvery     = 50 * time.Millisecond
)

// List returns the claims of a namespace, 5000 at most.
func (c Claims) List(
	ctx context.Context, ws *resource.Workspace, as resource.KubeUser, namespace string,
) (list []resource.Claim, err error) {
	defer func() { err = said(err) }()
	client, err := c.Clusters.ClientAs(ctx, ws.Key(), as)
	if err != nil {
		return nil, err
	}
	list = []resource.Claim{}
	all := mirror.Of(client.CoreV1().PersistentVolumeClaims(namespace))
	_, err = mirror.Each(ctx, all, metav1.ListOptions{}, func(o runtime.Object) bool {
		if pvc, ok := o.(*corev1.PersistentVolumeClaim); ok {
			list = append(list, claimOf(pvc))
		}
		return len(list) < maxClaims
	})
	slices.SortFunc(list, func(a, b resource.Claim) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

// claimOf keeps little of a tenant's object.
func claimOf(pvc *corev1.PersistentVolumeClaim) resource.Claim {
	const maxText = 253
	cut := func(s string) string { return mirror.Cut(s, maxText) }
	out := resource.Claim{
		Name: cut(pvc.Name), Namespace: cut(pvc.Namespace), Phase: cut(string(pvc.Status.Phase)), Volume: cut(pvc.Spec.VolumeName),
		Block:  pvc.Spec.VolumeMode != nil && *pvc.Spec.VolumeMode == corev1.PersistentVolumeBlock,
		Shared: slices.Contains(pvc.Spec.AccessModes, corev1.ReadWriteMany), CreatedAt: pvc.CreationTimestamp.Time,
	}
	if pvc.Spec.StorageClassName != nil {
		out.Class = cut(*pvc.Spec.StorageClassName)
	}
	size, has := pvc.Status.Capacity[corev1.ResourceStorage]
	if !has {
		size = pvc.Spec.Resources.Requests[corev1.ResourceStorage]
	}
	out.SizeBytes = size.Value()
	switch {
	case pvc.DeletionTimestamp != nil:
		out.Phase, out.Message = "Terminating", "it goes once no pod uses it"
	case pvc.Status.Phase != corev1.ClaimPending:
	case out.Class == "":
		out.Message = "it has no class, and the cluster no default one"
	case out.Volume == "" && out.Class != resource.SharedVolume && pvc.Annotations[selectedNode] == "":
		out.Message = "its volume is made where the first pod that uses it runs"
	default:
		out.Message = "kubectl describe pvc says what it waits for"
	}
	return out
}

// selectedNode is what the scheduler writes on a claim once it has chosen for its first pod.
const selectedNode = "volume.kubernetes.io/selected-node"

// Create makes a claim. If there is one, it returns that, and made is false. An *access.Refusal says that there is no such class,
// for which the claim would wait.
func (c Claims) Create(
	ctx context.Context, ws *resource.Workspace, as resource.KubeUser, want resource.Claim,
) (now resource.Claim, made bool, err error) {
	defer func() { err = said(err) }()
	client, err := c.Clusters.ClientAs(ctx, ws.Key(), as)
	if err != nil {
		return now, false, err
	}
	claims := client.CoreV1().PersistentVolumeClaims(want.Namespace)
	pvc := newClaim(want)
	if want.Class != "" {
		// Who may not make it, or has it already, is told that: what classes there are is asked after that.
		if _, err := claims.Create(ctx, pvc, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err == nil {
			all, err := c.Clusters.Client(ctx, ws.Key()) // not all who may make claims may look at classes
			if err == nil {
				err = hasClass(ctx, all, want.Class)
			}
			if err != nil {
				return now, false, err
			}
		}
	}
	got, err := claims.Create(ctx, pvc, metav1.CreateOptions{})
	switch {
	case err == nil:
		return claimOf(got), true, nil
	case !apierrors.IsAlreadyExists(err):
		return now, false, err
	}
	if got, err = claims.Get(ctx, want.Name, metav1.GetOptions{}); err != nil {
		return now, false, err
	}
	return claimOf(got), false, nil
}

func hasClass(ctx context.Context, client kubernetes.Interface, class string) error {
	all, err := client.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{Limit: maxClasses})
	if err != nil {
		return err
	}
	var names []string
	for _, c := range all.Items {
		if c.Name == class {
			return nil
		}
		names = append(names, c.Name)
	}
	if all.Continue != "" {
		return nil
	}
	return &access.Refusal{Reason: access.ErrInvalid, Text: fmt.Sprintf("The cluster has no StorageClass %q.", class),
		Remedy: "It has: " + cmp.Or(strings.Join(names, ", "), "none") + "."}
}

// maxClasses is up to how many classes of a cluster are looked at.
const maxClasses = 50

func newClaim(want resource.Claim) *corev1.PersistentVolumeClaim {
	pvc := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: want.Namespace, Name: want.Name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: modesOf(want.Class)[:1],
			Resources:   corev1.VolumeResourceRequirements{Requests: storage(want.SizeBytes)},
			VolumeName:  want.Volume,
			VolumeMode:  modeOf(want.Block),
		},
	}
	if want.Class != "" {
		pvc.Spec.StorageClassName = &want.Class
	}
	return pvc
}

// modesOf are the ways in which volumes of a class can be had, the one that claims of people ask for first.
func modesOf(class string) []corev1.PersistentVolumeAccessMode {
	if class == resource.SharedVolume {
		return []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadOnlyMany}
	}
	return []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
}

// modeOf is how pods have a volume; nil is as a file system.
func modeOf(block bool) *corev1.PersistentVolumeMode {
	if block {
		return new(corev1.PersistentVolumeBlock)
	}
	return nil
}

func storage(bytes int64) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: *quantity.NewQuantity(bytes, quantity.BinarySI)}
}

// Delete deletes a claim. The cluster goes on with it after the call.
func (c Claims) Delete(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, namespace, name string) (err error) {
	defer func() { err = said(err) }()
	client, err := c.Clusters.ClientAs(ctx, ws.Key(), as)
	if err != nil {
		return err
	}
	return client.CoreV1().PersistentVolumeClaims(namespace).Delete(ctx, name, metav1.DeleteOptions{})
}

// CheckBind says why the cluster refuses the user the claim that a volume's spec names, by rights, by a quota or by a
// webhook. It makes nothing.
func (c Claims) CheckBind(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) error {
	platform, user, err := c.both(ctx, ws, as)
	if err != nil {
		return err
	}
	claim, dry := claimFor(v), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	_, err = user.CoreV1().PersistentVolumeClaims(claim.Namespace).Create(ctx, claim, dry)
	if apierrors.IsAlreadyExists(err) {
		_, err = begun(ctx, platform, v)
	}
	return said(err)
}

// Bind gives a volume to the claim that its spec names: it makes the PersistentVolume, which
// is called as the volume is, and then the claim, as the user. A call that was cut off can be
// repeated, and so can one that the cluster refused after CheckBind: to undo that could hit another that
// asks for the same and was not refused.
func (c Claims) Bind(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) error {
	return again(func() error { return c.bind(ctx, ws, as, v) })
}

func (c Claims) bind(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) error {
	platform, user, err := c.both(ctx, ws, as)
	if err != nil {
		return err
	}
	volumes := platform.CoreV1().PersistentVolumes()
	pvc, err := begun(ctx, platform, v)
	if err != nil {
		return err
	}
	want, claim := persistentVolume(ws, v), claimFor(v)
	want.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1",
		Namespace: claim.Namespace, Name: claim.Name}
	if pvc != nil {
		want.Spec.ClaimRef.UID = pvc.UID
	}
	if err := reserve(ctx, volumes, want); err != nil || pvc != nil {
		return err
	}
	// The cluster's controller looks for what a claim names when that is made, and then each
	// 15 s: it has to know the PersistentVolume before, which its phase shows.
	_ = until(ctx, availableWait, func() (bool, error) {
		pv, err := volumes.Get(ctx, v.Name, metav1.GetOptions{})
		return err == nil && pv.Status.Phase == corev1.VolumeAvailable, err
	})
	made, err := user.CoreV1().PersistentVolumeClaims(claim.Namespace).Create(ctx, claim, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // the same command may have been given twice
		if made, err = begun(ctx, platform, v); err == nil && made == nil {
			return taken(v) // it went again
		}
	}
	if err != nil {
		return err
	}
	want.Spec.ClaimRef.UID = made.UID
	return reserve(ctx, volumes, want)
}

// begun is the claim that a volume's spec names, if it is there and for the volume; nil if there is none.
func begun(ctx context.Context, platform kubernetes.Interface, v *resource.Volume) (*corev1.PersistentVolumeClaim, error) {
	namespace, name, _ := strings.Cut(v.Spec.Claim, "/")
	pvc, err := platform.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case pvc.Spec.VolumeName != v.Name || pvc.DeletionTimestamp != nil:
		return nil, taken(v)
	}
	return pvc, nil
}

func taken(v *resource.Volume) error {
	return &access.Refusal{Reason: access.ErrExists,
		Text:   fmt.Sprintf("There is a claim %s in the cluster already.", v.Spec.Claim),
		Remedy: "Choose another name with --claim, or delete that one."}
}

// claimFor is the claim that a volume's spec names.
func claimFor(v *resource.Volume) *corev1.PersistentVolumeClaim {
	namespace, name, _ := strings.Cut(v.Spec.Claim, "/")
	return newClaim(resource.Claim{
		Namespace: namespace, Name: name, Class: v.Spec.Class, SizeBytes: v.Spec.SizeBytes, Volume: v.Name, Block: v.Spec.Block})
}

// again does what can be repeated anew while others write to the same objects: the cluster's
// controllers do.
func again(do func() error) error {
	for n := 0; ; n++ {
		if err := do(); !apierrors.IsConflict(err) || n == maxTries {
			return said(err)
		}
	}
}

// reserve makes a PersistentVolume, or gives one of the same volume to another claim.
func reserve(ctx context.Context, volumes persistentVolumes, want *corev1.PersistentVolume) error {
	_, err := volumes.Create(ctx, want, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	now, err := volumes.Get(ctx, want.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	ref, of := now.Spec.ClaimRef, want.Spec.ClaimRef
	switch {
	case !isOf(now, want.Spec.CSI.VolumeHandle):
		return &access.Refusal{Reason: access.ErrExists,
			Text:   fmt.Sprintf("There is a PersistentVolume %s in the cluster, which is another volume's.", want.Name),
			Remedy: "Delete it if nobody needs it, then try again: kubectl delete pv " + want.Name}
	case now.DeletionTimestamp != nil:
		return letsGo("PersistentVolume " + want.Name)
	case ref != nil && ref.Namespace == of.Namespace && ref.Name == of.Name && ref.UID == of.UID:
		return nil
	}
	now.Spec.ClaimRef, now.Spec.Capacity = of, want.Spec.Capacity
	now.Spec.PersistentVolumeReclaimPolicy = want.Spec.PersistentVolumeReclaimPolicy
	_, err = volumes.Update(ctx, now, metav1.UpdateOptions{})
	return err
}

// said is an error in words for who asked: what a cluster answers is his to read. What is
// no refusal after it says that nobody knows what was done.
func said(err error) error {
	var no *access.Refusal
	var status apierrors.APIStatus
	switch {
	case err == nil, errors.As(err, &no), errors.Is(err, resource.ErrNotReady):
		return err
	case !errors.As(err, &status):
		return fmt.Errorf("%w: %w", resource.ErrNotReady, err)
	}
	const maxText = 500
	no = &access.Refusal{Text: "The cluster refuses it: " + mirror.Cut(status.Status().Message, maxText) + "."}
	switch status.Status().Code {
	case http.StatusForbidden:
		no.Reason = access.ErrDenied
		no.Remedy = "Ask an admin of the workspace; developers work in namespaces that are open to them (`mp ns create --help`)."
	case http.StatusNotFound:
		no.Reason, no.Remedy = access.ErrNotFound, "Check the names."
	case http.StatusConflict:
		no.Reason, no.Remedy = access.ErrExists, "Look at it again, then repeat what you did."
	case http.StatusUnprocessableEntity, http.StatusBadRequest:
		no.Reason, no.Remedy = access.ErrInvalid, "Correct what it says."
	default:
		return fmt.Errorf("%w: %w", resource.ErrNotReady, err)
	}
	return no
}

type persistentVolumes = corev1client.PersistentVolumeInterface

// persistentVolume is what a volume looks like in its workspace's cluster.
func persistentVolume(ws *resource.Workspace, v *resource.Volume) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: v.Name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      storage(v.Spec.SizeBytes),
			AccessModes:                   modesOf(v.Spec.Class),
			VolumeMode:                    modeOf(v.Spec.Block),
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			StorageClassName:              v.Spec.Class,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: Driver, VolumeHandle: v.UID},
			},
		},
	}
	if v.Status.NodeUID != "" {
		pv.Spec.NodeAffinity = affinityOf(wire.Place(ws.UID, v.Status.Home()))
	}
	return pv
}

// affinityOf has pods run where machines have that place.
func affinityOf(place string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{
			Key: PlaceKey, Operator: corev1.NodeSelectorOpIn, Values: []string{place},
		}},
	}}}}
}

// isOf says whether a PersistentVolume, which a tenant may have made, is a volume's.
func isOf(pv *corev1.PersistentVolume, uid string) bool {
	return pv.Spec.CSI != nil && pv.Spec.CSI.Driver == Driver && pv.Spec.CSI.VolumeHandle == uid
}

func preconditions(uid types.UID) metav1.DeleteOptions {
	return metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}
}

func letsGo(what string) error {
	return &access.Refusal{Reason: access.ErrExists, Text: fmt.Sprintf("The cluster is still letting go of %s.", what),
		Remedy: "Wait a moment, then type the same again."}
}

// Release takes a volume from its claim, be it that the claim was made for it or it for the
// claim, and keeps what is in it. It refuses while a pod uses the claim. A call that was
// cut off can be repeated.
func (c Claims) Release(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) error {
	return again(func() error { return c.release(ctx, ws, as, v) })
}

func (c Claims) release(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) error {
	platform, user, err := c.both(ctx, ws, as)
	if err != nil {
		return err
	}
	namespace, name, _ := strings.Cut(v.Spec.Claim, "/")
	claims, volumes := user.CoreV1().PersistentVolumeClaims(namespace), platform.CoreV1().PersistentVolumes()
	// What is another's is left alone: a name may be used again.
	pvc, err := platform.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
	there := err == nil && pvc.Spec.VolumeName == v.Name
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	// Whether he may, before anything is changed, also if there is no such claim (any more).
	may := metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
	if there {
		may.Preconditions = &metav1.Preconditions{UID: &pvc.UID}
	}
	switch err := claims.Delete(ctx, name, may); {
	case apierrors.IsNotFound(err):
		there = false
	case err != nil:
		return err
	}
	if there {
		if err := unused(ctx, platform, namespace, name); err != nil {
			return err
		}
	}
	pv, err := volumes.Get(ctx, v.Name, metav1.GetOptions{})
	ours := err == nil && isOf(pv, v.UID)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if ours && pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		// Of a volume that was made for the claim: it would go with that.
		if pv.DeletionTimestamp != nil || there && pvc.DeletionTimestamp != nil {
			return &access.Refusal{Reason: access.ErrExists,
				Text:   fmt.Sprintf("The claim %s is being deleted, and the volume with it.", v.Spec.Claim),
				Remedy: "Look whether it is still there in a moment: `mp volumes list`."}
		}
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		if pv, err = volumes.Update(ctx, pv, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	if there {
		if err := claims.Delete(ctx, name, preconditions(pvc.UID)); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err := gone(ctx, "the claim "+v.Spec.Claim+", which a pod may have begun to use", func() error {
			now, err := platform.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
			return another(now, pvc.UID, err)
		}); err != nil {
			return err
		}
	}
	if !ours {
		return nil
	}
	if err := volumes.Delete(ctx, pv.Name, preconditions(pv.UID)); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return gone(ctx, "the volume, which a machine has", func() error {
		now, err := volumes.Get(ctx, v.Name, metav1.GetOptions{})
		return another(now, pv.UID, err)
	})
}

// another is NotFound if an object isn't the one with that UID.
func another(now metav1.Object, uid types.UID, err error) error {
	if err == nil && now.GetUID() != uid {
		return apierrors.NewNotFound(corev1.Resource("objects"), now.GetName())
	}
	return err
}

// gone waits until get finds nothing.
func gone(ctx context.Context, what string, get func() error) error {
	err := until(ctx, goingWait, func() (bool, error) {
		err := get()
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return letsGo(what)
	}
	return err
}

// until asks until done says so, or for a time. The error is done's, or ctx's.
func until(ctx context.Context, most time.Duration, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unused refuses, naming the pods, while some use a claim.
func unused(ctx context.Context, client kubernetes.Interface, namespace, claim string) error {
	pods, all, err := usersOf(ctx, client, namespace, claim)
	if err != nil {
		return err
	}
	if len(pods) == 0 {
		if !all {
			return errors.New("the namespace has too many pods to be looked at")
		}
		return nil
	}
	what := "pod"
	if len(pods) > 1 {
		what = "pods"
	}
	return &access.Refusal{Reason: access.ErrExists,
		Text:   fmt.Sprintf("The claim is in use by %s %s in namespace %s.", what, strings.Join(pods, ", "), namespace),
		Remedy: "Delete them, or scale down what makes them, then try again."}
}

// Users are names of pods that use a volume's claim, a few of them, as far as the user may see them.
func (c Claims) Users(ctx context.Context, ws *resource.Workspace, as resource.KubeUser, v *resource.Volume) ([]string, error) {
	client, err := c.Clusters.ClientAs(ctx, ws.Key(), as)
	if err != nil {
		return nil, err
	}
	namespace, claim, _ := strings.Cut(v.Spec.Claim, "/")
	pods, _, err := usersOf(ctx, client, namespace, claim)
	return pods, said(err)
}

// usersOf are names of pods that use a claim, a few of them. all says that no other pod is there.
func usersOf(ctx context.Context, client kubernetes.Interface, namespace, claim string) (pods []string, all bool, err error) {
	const most = 5
	all, err = mirror.Each(ctx, mirror.Of(client.CoreV1().Pods(namespace)), metav1.ListOptions{}, func(o runtime.Object) bool {
		pod, ok := o.(*corev1.Pod)
		if ok && pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed && uses(pod, claim) {
			pods = append(pods, mirror.Cut(pod.Name, 253))
		}
		return len(pods) < most
	})
	return pods, all, err
}

func uses(pod *corev1.Pod, claim string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		switch {
		case v.PersistentVolumeClaim != nil:
			return v.PersistentVolumeClaim.ClaimName == claim
		case v.Ephemeral != nil:
			return pod.Name+"-"+v.Name == claim
		}
		return false
	})
}

// both returns clients with the platform's rights and with the user's.
func (c Claims) both(
	ctx context.Context, ws *resource.Workspace, as resource.KubeUser,
) (platform, user kubernetes.Interface, err error) {
	platform, err = c.Clusters.Client(ctx, ws.Key())
	user, err2 := c.Clusters.ClientAs(ctx, ws.Key(), as)
	return platform, user, cmp.Or(err, err2)
}
