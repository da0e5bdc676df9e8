package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/planetest"
	"github.com/multipaas/multipaas/testing/wait"
)

// cut is a server that is killed at one of its requests, before that reaches the cluster
// or before the answer comes.
type cut struct {
	mu    sync.Mutex
	at    int // counts down; 0: none
	after bool
	seen  []string
}

var errCut = errors.New("killed here")

func (c *cut) over(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		c.mu.Lock()
		c.at--
		now := c.at == 0
		c.seen = append(c.seen, r.Method+" "+r.URL.Path)
		c.mu.Unlock()
		if now && !c.after {
			return nil, errCut
		}
		resp, err := next.RoundTrip(r)
		if now && err == nil {
			_ = resp.Body.Close()
			return nil, errCut
		}
		return resp, err
	})
}

func (c *cut) set(at int, after bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.after, c.seen = at, after, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// oneCluster is the cluster of all workspaces.
type oneCluster struct{ cfg *rest.Config }

func (o oneCluster) Client(context.Context, string) (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(o.cfg)
}

func (o oneCluster) ClientAs(_ context.Context, _ string, as resource.KubeUser) (kubernetes.Interface, error) {
	cfg := rest.CopyConfig(o.cfg)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: as.Name, Groups: as.Groups}
	return kubernetes.NewForConfig(cfg)
}

// TestClaims gives volumes to claims and takes them back, in a real control plane, as a
// developer who may work in one namespace.
func TestClaims(t *testing.T) {
	cfg := planetest.Start(t)
	client, err := kubernetes.NewForConfig(cfg)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(err)
	ctx := t.Context()
	knife := &cut{}
	cfg = rest.CopyConfig(cfg)
	cfg.Wrap(knife.over)
	claims := Claims{Clusters: oneCluster{cfg}}

	dev := resource.KubeUser{Name: "multipaas:dev@acme.example", Groups: []string{"multipaas:org-developer"}}
	_, err = client.RbacV1().Roles("default").Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "dev"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"persistentvolumeclaims"}, Verbs: []string{"get", "list", "create", "delete"}}}}, metav1.CreateOptions{})
	must(err)
	_, err = client.RbacV1().RoleBindings("default").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "dev"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "dev"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: dev.Groups[0]}},
	}, metav1.CreateOptions{})
	must(err)
	_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "closed"}}, metav1.CreateOptions{})
	must(err)

	wait.For(t, wait.Patience, "the developer may work in default", func(context.Context) error {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: dev.Name, Groups: dev.Groups,
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "default", Verb: "delete", Resource: "persistentvolumeclaims"}}}
		got, err := client.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err == nil && !got.Status.Allowed {
			err = errors.New("not yet")
		}
		return err
	})

	ws := &resource.Workspace{InOrganization: resource.NewInOrganization("acme/web", "shop")}
	ws.UID = "uid-shop"
	volume := func(name, claim string) *resource.Volume {
		v := &resource.Volume{InWorkspace: resource.NewInWorkspace(ws.Key(), name),
			Spec:   resource.VolumeSpec{Class: resource.LocalVolume, SizeBytes: 1 << 30, Claim: claim},
			Status: resource.VolumeStatus{Node: "host1", NodeUID: "uid-host1"}}
		v.UID = "uid-" + name
		return v
	}
	pvc := func(namespace, name string) *corev1.PersistentVolumeClaim {
		t.Helper()
		got, err := client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		must(err)
		return got
	}
	pv := func(name string) *corev1.PersistentVolume {
		t.Helper()
		got, err := client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		must(err)
		return got
	}
	bound := func(name string) {
		t.Helper()
		wait.For(t, wait.Patience, "claim "+name+" is bound", func(context.Context) error {
			if c := pvc("default", name); c == nil || c.Status.Phase != corev1.ClaimBound {
				return fmt.Errorf("it is %+v", c)
			}
			return nil
		})
	}
	refused := func(err error, says string) {
		t.Helper()
		var no *access.Refusal
		if !errors.As(err, &no) || !strings.Contains(no.Text, says) || no.Remedy == "" {
			t.Errorf("got %v, want a refusal with %q", err, says)
		}
	}

	// Killed at any request, before it or behind it, the same again does it.
	db := volume("db", "default/files")
	for _, after := range []bool{false, true} {
		for _, step := range []struct {
			name string
			do   func() error
			done func()
		}{
			{"bind", func() error { return claims.Bind(ctx, ws, dev, db) }, func() { bound("files") }},
			{"release", func() error { return claims.Release(ctx, ws, dev, db) }, func() {
				if pvc("default", "files") != nil || pv("db") != nil {
					t.Fatal("something is left")
				}
			}},
		} {
			for n := 1; ; n++ {
				knife.set(n, after)
				err := step.do()
				knife.set(0, false)
				if err != nil && !errors.Is(err, errCut) {
					t.Fatalf("%s cut at %d: %v", step.name, n, err)
				}
				if step.name == "release" && err == nil {
					step.done()
					break
				}
				must(step.do())
				step.done()
				if step.name == "bind" && err == nil {
					break
				}
				other := claims.Release
				if step.name == "release" {
					other = claims.Bind
				}
				must(other(ctx, ws, dev, db))
				if step.name == "release" {
					bound("files")
				}
			}
		}
	}

	// Given twice at once, it is done once.
	twice := make(chan error)
	for range 2 {
		go func() { twice <- claims.Bind(ctx, ws, dev, db) }()
	}
	must(<-twice)
	must(<-twice)
	bound("files")
	must(claims.Release(ctx, ws, dev, db))
	if pvc("default", "files") != nil || pv("db") != nil {
		t.Fatal("something is left")
	}

	// What it looks like there.
	must(claims.Bind(ctx, ws, dev, db))
	bound("files")
	got := pv("db")
	terms := got.Spec.NodeAffinity.Required.NodeSelectorTerms
	if !isOf(got, db.UID) || got.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain ||
		terms[0].MatchExpressions[0].Key != PlaceKey || terms[0].MatchExpressions[0].Values[0] != wire.Place("uid-shop", "uid-host1") {
		t.Errorf("the PersistentVolume: %+v", got.Spec)
	}
	// On its way to another host pods wait for it there; its claim keeps it.
	for _, place := range []string{wire.Place("uid-shop", "uid-host2"), wire.Place("uid-shop", "uid-host1")} {
		must(moveAffinity(ctx, client.CoreV1().PersistentVolumes(), db, place))
		if at := pv("db").Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0]; at != place {
			t.Errorf("its PersistentVolume names %s, want %s", at, place)
		}
	}
	bound("files")
	must(claims.Unused(ctx, ws, db))
	list, err := claims.List(ctx, ws, dev, "default")
	must(err)
	if len(list) != 1 || list[0].Name != "files" || list[0].Volume != "db" || list[0].Phase != "Bound" || list[0].SizeBytes != 1<<30 || list[0].Class != "local" {
		t.Errorf("listed: %+v", list)
	}

	// While a pod uses it, it stays, and nothing is changed.
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "writer"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "c", Image: "hello:1"}},
		Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "files"}}}}}}
	wait.For(t, wait.Patience, "a pod is made", func(context.Context) error {
		_, err := client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
		return err // its service account takes a moment
	})
	refused(claims.Release(ctx, ws, dev, db), "in use by pod writer in namespace default")
	refused(claims.Unused(ctx, ws, db), "in use by pod writer in namespace default")
	if c := pvc("default", "files"); c == nil || c.DeletionTimestamp != nil {
		t.Errorf("refused, and the claim is %+v", c)
	}
	must(client.CoreV1().Pods("default").Delete(ctx, "writer", *metav1.NewDeleteOptions(0)))

	// A claim that somebody has deleted is made again, and finds the same.
	must(client.CoreV1().PersistentVolumeClaims("default").Delete(ctx, "files", metav1.DeleteOptions{}))
	wait.For(t, wait.Patience, "the claim is gone", func(context.Context) error {
		if pvc("default", "files") != nil {
			return errors.New("it is there")
		}
		return nil
	})
	must(claims.Bind(ctx, ws, dev, db))
	bound("files")

	// A claim of another's name is not taken, nor a PersistentVolume; and none is made of a class that isn't there.
	_, _, err = claims.Create(ctx, ws, dev, resource.Claim{Namespace: "default", Name: "mine", SizeBytes: 1 << 30, Class: "gold"})
	refused(err, `no StorageClass "gold"`)
	if _, err := client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "local"}, Provisioner: Driver}, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		must(err)
	}
	_, made, err := claims.Create(ctx, ws, dev, resource.Claim{Namespace: "default", Name: "mine", SizeBytes: 1 << 30, Class: "local"})
	if err != nil || !made {
		t.Errorf("create: %v, %v", made, err)
	}
	_, made, err = claims.Create(ctx, ws, dev, resource.Claim{Namespace: "default", Name: "mine", SizeBytes: 1 << 30})
	if err != nil || made {
		t.Errorf("create again: %v, %v", made, err)
	}
	must(client.StorageV1().StorageClasses().Delete(ctx, "local", metav1.DeleteOptions{}))
	_, made, err = claims.Create(ctx, ws, dev, resource.Claim{Namespace: "default", Name: "mine", SizeBytes: 1 << 30, Class: "local"})
	if err != nil || made {
		t.Errorf("create again, of a class that is gone: %v, %v", made, err)
	}
	_, _, err = claims.Create(ctx, ws, dev, resource.Claim{Namespace: "kube-system", Name: "mine", SizeBytes: 1 << 30, Class: "gold"})
	if err == nil || strings.Contains(err.Error(), "StorageClass") {
		t.Errorf("who may make none there is told of classes: %v", err)
	}
	refused(claims.CheckBind(ctx, ws, dev, volume("other", "default/mine")), "There is a claim default/mine")
	refused(claims.Bind(ctx, ws, dev, volume("other", "default/mine")), "There is a claim default/mine")
	must(claims.CheckBind(ctx, ws, dev, db)) // it was begun
	must(claims.CheckBind(ctx, ws, dev, volume("other", "default/fresh")))
	if pvc("default", "fresh") != nil || pv("other") != nil {
		t.Error("to ask has made something")
	}
	foreign := persistentVolume(ws, volume("taken", ""))
	foreign.Spec.CSI.VolumeHandle = "another"
	_, err = client.CoreV1().PersistentVolumes().Create(ctx, foreign, metav1.CreateOptions{})
	must(err)
	refused(claims.Bind(ctx, ws, dev, volume("taken", "default/fresh")), "another volume's")
	must(claims.Release(ctx, ws, dev, volume("taken", "default/fresh")))
	if c := pvc("default", "fresh"); c != nil && c.DeletionTimestamp == nil || pv("taken") == nil {
		t.Errorf("the claim is %+v, the PersistentVolume %v", c, pv("taken"))
	}

	// What is not open to the user is the cluster's to refuse.
	closed := volume("closed", "closed/files")
	if err := claims.CheckBind(ctx, ws, dev, closed); !errors.Is(err, access.ErrDenied) {
		t.Errorf("bound where he may not: %v", err)
	}
	if _, err := claims.List(ctx, ws, dev, "closed"); !errors.Is(err, access.ErrDenied) {
		t.Errorf("listed where he may not: %v", err)
	}
	admin := resource.KubeUser{Name: "multipaas:admin@acme.example", Groups: []string{"system:masters"}}
	must(claims.Bind(ctx, ws, admin, closed))
	if err := claims.Release(ctx, ws, dev, closed); !errors.Is(err, access.ErrDenied) || pv("closed") == nil || pvc("closed", "files") == nil {
		t.Errorf("released where he may not: %v", err)
	}
	must(client.CoreV1().PersistentVolumeClaims("closed").Delete(ctx, "files", metav1.DeleteOptions{}))
	wait.For(t, wait.Patience, "the claim is gone", func(context.Context) error {
		if pvc("closed", "files") != nil {
			return errors.New("it is there")
		}
		return nil
	})
	if err := claims.Release(ctx, ws, dev, closed); !errors.Is(err, access.ErrDenied) || pv("closed") == nil {
		t.Errorf("released where he may not, and the claim is gone: %v", err)
	}
	must(claims.Release(ctx, ws, admin, closed))

	// One that was made for its claim is kept: it is not to go with the claim any more,
	// before that goes.
	old := pv("db")
	old.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	_, err = client.CoreV1().PersistentVolumes().Update(ctx, old, metav1.UpdateOptions{})
	must(err)
	knife.set(0, false)
	must(claims.Release(ctx, ws, dev, db))
	retained := slices.Index(knife.seen, "PUT /api/v1/persistentvolumes/db")
	deleted := len(knife.seen) - 1
	for deleted > 0 && !strings.HasPrefix(knife.seen[deleted], "DELETE /api/v1/namespaces/default/persistentvolumeclaims/files") {
		deleted--
	}
	if retained < 0 || retained > deleted || pv("db") != nil || pvc("default", "files") != nil {
		t.Errorf("retained at %d, deleted at %d of %v", retained, deleted, knife.seen)
	}
	must(claims.Delete(ctx, ws, dev, "default", "mine"))
	if err := claims.Delete(ctx, ws, dev, "default", "mine2"); !errors.Is(err, access.ErrNotFound) {
		t.Errorf("deleted what is not there: %v", err)
	}
}
