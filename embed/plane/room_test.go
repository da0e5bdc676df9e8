package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/testing/wait"
)

// ballast is a ConfigMap of half a MiB.
func ballast(n int) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("ballast-", n), Labels: map[string]string{"is": "ballast"}},
		Data: map[string]string{"x": strings.Repeat(fmt.Sprint(n), 512<<10)[:512<<10]}}
}

// fill creates ballast until there is no more room, and returns how many.
func fill(t *testing.T, c kubernetes.Interface, limit int64) int {
	t.Helper()
	for n := 0; n < int(limit>>19)+10; n++ {
		_, err := c.CoreV1().ConfigMaps("default").Create(t.Context(), ballast(n), metav1.CreateOptions{})
		if err == nil {
			continue
		}
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "datastore is full") || !strings.Contains(err.Error(), "delete objects") {
			t.Fatalf("refused with %v, want that the datastore is full and what to do", err)
		}
		return n
	}
	t.Fatalf("a datastore of %d MiB took more than that", limit>>20)
	return 0
}

func wantBounded(t *testing.T, p *Plane, c kubernetes.Interface, limit int64) {
	t.Helper()
	n := fill(t, c, limit)
	t.Logf("took %d objects of 512 KiB for a limit of %d MiB", n, limit>>20)
	if min := int(limit >> 19 / 2); n < min {
		t.Errorf("took %d objects, want at least %d", n, min)
	}
	wait.For(t, wait.Patience, "the plane says it is full", func(context.Context) error {
		if used, l, err := p.Room(); err != nil || l != limit || used < limit/10*9 {
			return fmt.Errorf("%d of %d bytes, %v", used, l, err)
		}
		return nil
	})
	// What is small and lives goes on: an update of an object that was there.
	patch := []byte(`{"data":{"a":"b"}}`)
	if _, err := c.CoreV1().ConfigMaps("default").Patch(t.Context(), "small", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Errorf("update of a small object: %v", err)
	}
	all := metav1.ListOptions{LabelSelector: "is=ballast"}
	if err := c.CoreV1().ConfigMaps("default").DeleteCollection(t.Context(), metav1.DeleteOptions{}, all); err != nil {
		t.Errorf("deleting while full: %v", err)
	}
}

func TestDatastoreIsBounded(t *testing.T) {
	const limit = 32 << 20
	ns := newNamespace(t)
	cfg := newConfig(t, ns)
	cfg.Datastore.MaxBytes = limit
	p, _ := start(t, cfg)
	c := clientFor(t, p.RESTConfig())
	wait.For(t, wait.Patience, "an object", func(ctx context.Context) error { return createNamed(ctx, c, "small") })

	wantBounded(t, p, c, limit)
	// Room comes back without anybody's doing, on the disk too.
	wait.For(t, wait.Patience, "room for new objects", func(ctx context.Context) error {
		_, err := c.CoreV1().ConfigMaps("default").Create(ctx, ballast(1), metav1.CreateOptions{})
		return err
	})
	wait.For(t, wait.Patience, "a small file", func(context.Context) error {
		info, err := os.Stat(p.path(databaseFile))
		if err == nil && info.Size() > limit*3/4 {
			err = fmt.Errorf("%d MiB", info.Size()>>20)
		}
		return err
	})

	// History counts: the same object written again and again.
	for n := 0; ; n++ {
		o := ballast(1)
		o.Data["y"] = fmt.Sprint(n)
		_, err := c.CoreV1().ConfigMaps("default").Update(t.Context(), o, metav1.UpdateOptions{})
		if info, serr := os.Stat(p.path(databaseFile)); serr != nil || info.Size() > 2*limit {
			t.Fatalf("after %d writes of one object the database has %v, %v", n, info, serr)
		}
		if err != nil || n > 3*int(limit>>19) {
			t.Logf("%d updates, then %v", n, err)
			break
		}
	}
}

func createNamed(ctx context.Context, c kubernetes.Interface, name string) error {
	_, err := c.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

// testShare: what others need of the room is taken at once, and given back.
func testShare(t *testing.T, p *Plane, c kubernetes.Interface) {
	if err := p.SetShare(64<<10, "others have the rest"); err != nil {
		t.Fatal(err)
	}
	n := 0
	wait.For(t, wait.Patience, "the share is heard of", func(ctx context.Context) error {
		n++
		err := createNamed(ctx, c, fmt.Sprint("share-", n))
		if err == nil {
			return errors.New("it takes new objects")
		}
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "as others have the rest") {
			return fmt.Errorf("refused with %w, want why", err)
		}
		return nil
	})
	if err := c.CoreV1().ConfigMaps("default").Delete(t.Context(), "share-1", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Errorf("deleting: %v", err)
	}
	if err := p.SetShare(0, ""); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "room again", func(ctx context.Context) error { return createNamed(ctx, c, "share-again") })
}
