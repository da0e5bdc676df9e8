package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/multipaas/multipaas/modules/resource"
)

// FuzzStored reads any bytes as each kind of resource, as they may lie in etcd
// after a restore, an upgrade or a mistake: refused, or read, and what is read is
// written the same way for ever, changes nothing by being written again, and keeps
// its identity whatever a writer says.
func FuzzStored(f *testing.F) {
	for _, s := range []string{
		`{"name":"shop","uid":"u","generation":3,"account":"acme","organization":"web","spec":{"machines":2,"machineSize":{"milliCPU":1000}},"status":{"id":"0000aa","vni":4096,"conditions":[{"type":"A","status":"True"}]}}`,
		`{"name":"a@b.c","spec":null,"status":{"phase":7}}`, `{"name":"x","deletedAt":"2026-01-02T03:04:05Z","createdAt":"0000-01-01T00:00:00Z"}`,
		`null`, `[]`, `{`, `{"revision":99,"name":"\ud800"}`, `{"NAME":"a","name":"b"}`, `{"spec":{"env":{"":""},"nodeSlots":{"a":-1}}}`, "\xff",
	} {
		f.Add([]byte(s))
	}
	s := &Store{}
	var checks []func(*testing.T, []byte)
	for _, k := range resource.Kinds() {
		checks = append(checks, stored(Any(s, k)))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, check := range checks {
			check(t, value)
		}
	})
}

func stored[T resource.Object](k Kind[T]) func(*testing.T, []byte) {
	return func(t *testing.T, value []byte) {
		t.Helper()
		obj, err := k.decode(value, 7)
		if err != nil {
			return
		}
		if obj.Metadata().Revision != 7 {
			t.Errorf("%s %q: revision %d", k.name, value, obj.Metadata().Revision)
		}
		_ = checkKey(obj.Key())
		once, err := encode(obj)
		if errors.Is(err, ErrTooLarge) {
			return
		} else if err != nil {
			t.Errorf("%s %q was read and can't be written: %v", k.name, value, err)
			return
		}
		again, err := k.decode(once, 7)
		if err != nil {
			t.Errorf("%s %q: what was written, %q, can't be read: %v", k.name, value, once, err)
			return
		}
		if twice, err := encode(again); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s %q is written as %q and then as %q, %v", k.name, value, once, twice, err)
		}
		kv := &mvccpb.KeyValue{Value: value, ModRevision: 7}
		if w, err := k.change(again, kv); err != nil || !w.skip {
			t.Errorf("%s %q: written again without a change, it is one: %v", k.name, value, err)
		}
		was := *obj.Metadata()
		forged := again.Metadata()
		forged.UID, forged.Generation, forged.DeletedAt = "forged", was.Generation+100, nil
		if _, err := k.change(again, kv); err != nil {
			t.Errorf("%s %q: %v", k.name, value, err)
		} else if forged.UID != was.UID || forged.Generation != was.Generation || was.Deleting() != forged.Deleting() {
			t.Errorf("%s %q: a writer made %+v of %+v", k.name, value, forged, was)
		}
		if !json.Valid(once) {
			t.Errorf("%s %q is written as %q", k.name, value, once)
		}
	}
}

// FuzzKeys takes any text for a key or a page: a key that is taken leads to one
// resource of its kind, and no page out of its range.
func FuzzKeys(f *testing.F) {
	for _, s := range []string{"acme/web/shop", "", "/", "a//b", "a\x00", "a,7", "acme/web/shop,9999999999999999999", "../x", "\xff", "a/"} {
		f.Add(s)
	}
	apps := Of[resource.App](&Store{})
	f.Fuzz(func(t *testing.T, key string) {
		if checkKey(key) != nil {
			return
		}
		path := apps.path(key)
		if got := apps.key(path); got != key {
			t.Errorf("key %q is read as %q", key, got)
		}
		from, to := apps.span("")
		if path < from || path >= to {
			t.Errorf("key %q lies outside of its kind", key)
		}
		if from, to := apps.span(key); path >= from && path < to {
			t.Errorf("key %q lies below itself", key)
		} else if below := apps.path(key + "/x"); below < from || below >= to {
			t.Errorf("%q does not lie below %q", key+"/x", key)
		}
	})
}
