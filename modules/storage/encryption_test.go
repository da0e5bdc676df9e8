package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/multipaas/multipaas/appliance/seal"
	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
	"github.com/multipaas/multipaas/testing/wait"
)

func testSeal(t *testing.T) *seal.Key {
	t.Helper()
	k, err := seal.New(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestEncryption: an encrypted volume is where it can be and nowhere else, its key is there as long as it is, and
// copies of it have that too, and for longer.
func TestEncryption(t *testing.T) {
	w := newWorld(t)
	p, ctx := w.plane("acme/web/shop"), t.Context()
	volumes, snapshots := store.Of[resource.Volume](w.db), store.Of[resource.Snapshot](w.db)
	ask := func(name, is string) *csi.CreateVolumeRequest {
		r := claim(name, gib)
		r.Parameters[encryptedParameter] = is
		return r
	}
	asked := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", "early"), Spec: resource.VolumeSpec{Class: "local", SizeBytes: gib, Encrypted: true}}
	_, err := p.CreateVolume(ctx, ask("data", "true"))
	want(t, "where no kernel can", err, codes.ResourceExhausted, "dm-crypt")
	_, err = p.CreateVolume(ctx, ask("data", "yes"))
	want(t, "so written", err, codes.InvalidArgument, "true or false")
	if no := new(access.Refusal); !errors.As(w.CheckEncryption(asked), &no) {
		t.Error("people are not refused what no kernel can")
	}
	// One that people have asked for when there was such a host waits, and says for what.
	if err := volumes.Create(ctx, asked); err != nil {
		t.Fatal(err)
	}
	awaitVolume(t, w, asked.Key(), "it waits", func(v *resource.Volume) bool {
		c := v.Status.Conditions.Get(resource.VolumePlaced)
		return c != nil && c.Message == noEncryption && v.Status.Node == ""
	})
	n1, err := store.Of[resource.Node](w.db).Modify(ctx, "n1", func(n *resource.Node) error {
		n.Status.Drivers = []string{wire.EncryptionDriver}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	awaitNode(t, w, n1)
	if err := w.CheckEncryption(asked); err != nil {
		t.Error(err)
	}
	made, err := p.CreateVolume(ctx, ask("data", "true"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := volumes.Get(ctx, "acme/web/shop/pvc-data")
	if err != nil || v.Status.Node != "n1" || !v.Spec.Encrypted { // n2 has more room
		t.Fatalf("it is %+v, %v", v, err)
	}
	_, err = p.CreateVolume(ctx, ask("data", ""))
	want(t, "as one that isn't encrypted", err, codes.AlreadyExists, "encrypted is true")

	key := func(uid string) []byte {
		t.Helper()
		k, err := store.Of[resource.VolumeKey](w.db).Get(ctx, "acme/web/"+uid)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := w.cfg.Seal.Open(k.Sealed, "acme/web")
		if err != nil || len(text) != volumeKeyBytes || bytes.Contains(k.Sealed, text) {
			t.Fatalf("the key of %s is %d bytes, %v", uid, len(text), err)
		}
		return text
	}
	own := key(v.UID)
	if own == nil {
		t.Fatal("it has no key")
	}
	other := &Controller{cfg: w.cfg}
	if other.cfg.Seal, err = seal.New(bytes.Repeat([]byte{1}, 32)); err != nil {
		t.Fatal(err)
	}
	if err := other.CheckKeys(ctx); !errors.Is(err, seal.ErrOtherKey) {
		t.Errorf("with another file: %v", err)
	}
	if err := other.canSeal(ctx, v); !errors.As(err, new(*shortError)) {
		t.Errorf("sealed with another file: %v", err)
	}
	none, stop := context.WithCancel(ctx)
	stop()
	if err := other.canSeal(none, v); !errors.As(err, new(*shortError)) {
		t.Errorf("soon after that it reads all keys again: %v", err)
	}
	other.opens.last = time.Now().Add(-sealLook)
	if err := other.canSeal(none, v); !errors.Is(err, context.Canceled) {
		t.Errorf("later it does not: %v", err)
	}
	// Whoever places volumes isn't kept waiting by that.
	w.opens.mu.Lock()
	w.opens.all, w.opens.last = false, time.Now()
	w.opens.mu.Unlock()
	done, err := w.alone(ctx)
	if err != nil {
		t.Fatal(err)
	}
	soon, stop := context.WithTimeout(ctx, wait.Patience)
	_, err = p.CreateVolume(soon, ask("sealed", "true"))
	stop()
	done()
	want(t, "sealed with another file", err, codes.ResourceExhausted, "the operator is told")
	w.opens.mu.Lock()
	w.opens.last = time.Time{}
	w.opens.mu.Unlock()
	if err := w.CheckKeys(ctx); err != nil {
		t.Error(err)
	}
	s := &resource.Snapshot{InWorkspace: resource.NewInWorkspace("acme/web/shop", "before"),
		Spec: resource.SnapshotSpec{Volume: v.Name, VolumeUID: v.UID, SizeBytes: gib, Encrypted: true}}
	if err := w.Snapshot(ctx, s, func(more ...store.Op) error { return w.db.Commit(ctx, append(more, snapshots.CreateOp(s))...) }); err != nil {
		t.Fatal(err)
	}
	w.snapshotReported(s.Key(), func(s *resource.Snapshot) { s.Status.SizeBytes = gib })
	if _, err := p.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: made.Volume.VolumeId}); err != nil {
		t.Fatal(err)
	}
	if key(v.UID) != nil || !bytes.Equal(key(s.UID), own) {
		t.Error("the volume is gone: its key has to be too, and that of its snapshot to be there")
	}
	back := ask("back", "") // of a class that doesn't say so
	back.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.UID}}}
	restored, err := p.CreateVolume(ctx, back)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(key(restored.Volume.VolumeId), own) {
		t.Error("what was restored has another key")
	}
	plain, err := p.CreateVolume(ctx, claim("plain", gib))
	if err != nil || key(plain.Volume.VolumeId) != nil {
		t.Fatalf("one that isn't encrypted has a key; %v", err)
	}
	from := ask("from-plain", "true")
	from.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: plain.Volume.VolumeId}}}
	_, err = p.CreateVolume(ctx, from)
	want(t, "made from what is not encrypted", err, codes.InvalidArgument, "not encrypted")
	if _, err := snapshots.MarkDeleted(ctx, s.Key()); err != nil {
		t.Fatal(err)
	}
	wait.For(t, wait.Patience, "the snapshot's key is destroyed", func(context.Context) error {
		if key(s.UID) != nil {
			return fmt.Errorf("it is there")
		}
		return nil
	})
}
