package store

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Rehome moves the resources of k that are at keys as an earlier version had them, which
// old tells by the key: settle changes of each what its key needs now, and one that it
// doesn't keep is removed. Killed at any point, or done by several servers at once,
// it moves each of them once. One that can't be moved keeps none of the others: the
// error is of all those.
func (k Kind[T]) Rehome(ctx context.Context, old func(key string) bool, settle func(T) (keep bool)) error {
	from, to := k.span("")
	all, _, err := k.store.walk(ctx, from, to, clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("list %s: %w", k.name, err)
	}
	var errs []error
	for _, kv := range all {
		if old(k.key(string(kv.Key))) {
			errs = append(errs, k.rehome(ctx, string(kv.Key), settle))
		}
	}
	return errors.Join(errs...)
}

// rehome moves one.
func (k Kind[T]) rehome(ctx context.Context, was string, settle func(T) (keep bool)) error {
	obj, err := k.Get(ctx, k.key(was))
	if errors.Is(err, ErrNotFound) {
		return nil // somebody else was faster
	}
	if err != nil {
		return err
	}
	ifs := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(was), "=", obj.Metadata().Revision)}
	then := []clientv3.Op{clientv3.OpDelete(was)}
	if settle(obj) {
		value, err := encode(obj)
		if err != nil {
			return k.wrap("move", k.key(was), err)
		}
		now := k.path(obj.Key())
		ifs = append(ifs, clientv3.Compare(clientv3.CreateRevision(now), "=", 0))
		then = append(then, clientv3.OpPut(now, string(value)))
	}
	if _, err := k.store.client.Txn(ctx).If(ifs...).Then(then...).Commit(); err != nil {
		return k.wrap("move", k.key(was), err)
	}
	return nil
}
