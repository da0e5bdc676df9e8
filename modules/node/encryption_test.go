package node

import (
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// TestVolumeKey: the host that has an encrypted volume, or a brick of it, is told the key, as long as there is one;
// nobody else is.
func TestVolumeKey(t *testing.T) {
	p := start(t)
	mine, other := p.join(t, "n1"), p.join(t, "n2")
	node, err := store.Of[resource.Node](p.store).Get(t.Context(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	volume := func(name string, encrypted bool) *resource.Volume {
		v := &resource.Volume{InWorkspace: resource.NewInWorkspace("acme/web/shop", name), Spec: resource.VolumeSpec{Encrypted: encrypted}}
		v.UID = store.NewUID()
		k := &resource.VolumeKey{InOrganization: resource.NewInOrganization("acme/web", v.UID), Sealed: p.cfg.Seal.Seal([]byte("the key"), "acme/web")}
		if name == "shared" {
			v.Status.Bricks = []resource.VolumeBrick{{UID: "brick", Node: "n1", NodeUID: node.UID}}
		} else {
			v.Status.Node, v.Status.NodeUID = "n1", node.UID
		}
		if err := p.store.Commit(t.Context(), store.Of[resource.Volume](p.store).CreateOp(v), store.Of[resource.VolumeKey](p.store).CreateOp(k)); err != nil {
			t.Fatal(err)
		}
		return v
	}
	data, plain, shared := volume("data", true), volume("plain", false), volume("shared", true)
	ask := func(h *host, key, uid string) (string, error) {
		var res wire.VolumeKey
		err := h.call(t.Context(), wire.VolumeKeyPath, wire.VolumeKeyRequest{Key: key, UID: uid}, &res)
		return string(res.Key), err
	}
	for _, c := range []struct {
		by       *host
		key, uid string
		ok       bool
	}{
		{mine, data.Key(), data.UID, true},
		{mine, shared.Key(), "brick", true},
		{other, data.Key(), data.UID, false},
		{other, shared.Key(), "brick", false},
		{mine, data.Key(), shared.UID, false},
		{mine, plain.Key(), plain.UID, false},
		{mine, "acme/web/shop/none", data.UID, false},
		{mine, "../data", data.UID, false},
	} {
		got, err := ask(c.by, c.key, c.uid)
		if c.ok && (err != nil || got != "the key") || !c.ok && (err == nil || got != "" || !strings.Contains(err.Error(), "no encrypted volume")) {
			t.Errorf("%s of %s: told %q, %v; want it to be told: %v", c.uid, c.key, got, err, c.ok)
		}
	}
	if err := store.Of[resource.VolumeKey](p.store).Delete(t.Context(), &resource.VolumeKey{InOrganization: resource.NewInOrganization("acme/web", data.UID)}); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(mine, data.Key(), data.UID); err == nil {
		t.Errorf("destroyed, it is told: %q", got)
	}
}
