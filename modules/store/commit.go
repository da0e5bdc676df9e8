package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/modules/resource"
)

// Op is one write of a commit. The zero Op does nothing.
type Op struct {
	path string
	// reads says that prepare needs what is stored.
	reads bool
	// prepare decides from what is stored (nil: nothing) what to write. It is
	// called once per attempt.
	prepare func(stored *mvccpb.KeyValue) (write, error)
	wrap    func(error) error
	before  func()
}

// write is what one Op does in one attempt.
type write struct {
	skip   bool
	remove bool
	value  []byte
	// meta gets the new revision once value is written, and is old again once it is
	// clear that it won't be.
	meta *resource.Meta
	old  resource.Meta
}

// Before returns an Op that calls fn just before its resource is encoded, when
// the resources of the ops left of it have their final UID and Generation. fn
// may be called several times.
func (op Op) Before(fn func()) Op {
	op.before = fn
	return op
}

// CreateOp is Create as part of a commit.
func (k Kind[T]) CreateOp(obj T) Op {
	return k.op("create", obj.Key(), false, func(stored *mvccpb.KeyValue) (write, error) {
		if stored != nil {
			return write{}, ErrExists
		}
		return k.creation(obj)
	})
}

// UpdateOp is Update as part of a commit.
func (k Kind[T]) UpdateOp(obj T) Op {
	return k.op("update", obj.Key(), true, func(stored *mvccpb.KeyValue) (write, error) {
		switch {
		case stored == nil:
			return write{}, ErrNotFound
		case stored.ModRevision != obj.Metadata().Revision:
			return write{}, ErrConflict
		}
		return k.change(obj, stored)
	})
}

// ModifyOp is Modify as part of a commit. What change leaves is what is
// stored, and its Revision is filled after the commit.
func (k Kind[T]) ModifyOp(key string, change func(T) error) Op {
	return k.op("modify", key, true, func(stored *mvccpb.KeyValue) (write, error) {
		if stored == nil {
			return write{}, ErrNotFound
		}
		obj, err := k.decode(stored.Value, stored.ModRevision)
		if err != nil {
			return write{}, err
		}
		if err := change(obj); errors.Is(err, ErrSkip) {
			return write{skip: true}, nil
		} else if err != nil {
			return write{}, own{err}
		}
		if obj.Key() != key {
			return write{}, fmt.Errorf("%w: a resource keeps its key for life, this one became %q", ErrInvalidKey, obj.Key())
		}
		return k.change(obj, stored)
	})
}

// MarkDeletedOp is MarkDeleted as part of a commit.
func (k Kind[T]) MarkDeletedOp(key string) Op { return k.ModifyOp(key, markDeleted[T]) }

// DeleteOp is Delete as part of a commit.
func (k Kind[T]) DeleteOp(obj T) Op {
	return k.op("delete", obj.Key(), true, func(stored *mvccpb.KeyValue) (write, error) {
		revision := obj.Metadata().Revision
		switch {
		case stored == nil && revision == 0:
			return write{skip: true}, nil
		case stored == nil:
			return write{}, ErrNotFound
		case revision != 0 && revision != stored.ModRevision:
			return write{}, ErrConflict
		}
		return write{remove: true, meta: &resource.Meta{}}, nil
	})
}

// Commit does all of ops, or none if one of them can't be done; the error is
// that one's. The same key may be in it once.
func (s *Store) Commit(ctx context.Context, ops ...Op) error {
	for _, op := range ops {
		if op.prepare == nil {
			continue
		}
		if err := checkKey(op.path[len(Root):]); err != nil {
			return op.wrap(err)
		}
	}
	if len(ops) > maxTxnOps {
		return fmt.Errorf("commit of %d writes: %w: at most %d are possible at once", len(ops), ErrTooLarge, maxTxnOps)
	}
	stored := make([]*mvccpb.KeyValue, len(ops))
	if err := s.read(ctx, ops, stored, false); err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		done, err := s.try(ctx, ops, stored)
		if err != nil || done {
			return err
		}
		// Somebody was faster. What is there now decides whether to go on.
		if err := pause(ctx, attempt); err != nil {
			return err
		}
		if err := s.read(ctx, ops, stored, true); err != nil {
			return err
		}
	}
}

// read fills stored with what is there, for the ops that need it or for all,
// at one revision.
func (s *Store) read(ctx context.Context, ops []Op, stored []*mvccpb.KeyValue, all bool) error {
	var gets []clientv3.Op
	var index []int
	for i, op := range ops {
		if op.prepare != nil && (op.reads || all) {
			gets = append(gets, clientv3.OpGet(op.path))
			index = append(index, i)
		}
	}
	if len(gets) == 0 {
		return nil
	}
	resp, err := retried(ctx, func() (*clientv3.TxnResponse, error) { return s.client.Txn(ctx).Then(gets...).Commit() })
	if err != nil {
		return ops[index[0]].wrap(err)
	}
	for n, r := range resp.Responses {
		stored[index[n]] = nil
		if kvs := r.GetResponseRange().Kvs; len(kvs) > 0 {
			stored[index[n]] = kvs[0]
		}
	}
	return nil
}

// try writes once. It reports false if what is stored is no longer stored.
func (s *Store) try(ctx context.Context, ops []Op, stored []*mvccpb.KeyValue) (done bool, err error) {
	var ifs []clientv3.Cmp
	var thens []clientv3.Op
	var writes []write
	defer func() {
		if !done {
			for _, w := range writes {
				*w.meta = w.old
			}
		}
	}()
	var first *Op
	size := 0
	for i := range ops {
		op := &ops[i]
		if op.prepare == nil {
			continue
		}
		if op.before != nil {
			op.before()
		}
		w, err := op.prepare(stored[i])
		if err != nil {
			return false, op.wrap(err)
		}
		var revision int64
		if stored[i] != nil {
			revision = stored[i].ModRevision
		}
		ifs = append(ifs, clientv3.Compare(clientv3.ModRevision(op.path), "=", revision))
		switch {
		case w.skip:
			continue
		case w.remove:
			thens = append(thens, clientv3.OpDelete(op.path))
		case stored[i] == nil && s.full(ctx):
			*w.meta = w.old
			return false, op.wrap(ErrFull)
		default:
			thens = append(thens, clientv3.OpPut(op.path, string(w.value)))
		}
		writes = append(writes, w)
		if first == nil {
			first = op
		}
		if size += len(w.value); size > MaxBytes {
			return false, op.wrap(fmt.Errorf("%w: %d bytes, at most %d are possible", ErrTooLarge, size, MaxBytes))
		}
	}
	if len(thens) == 0 {
		return true, nil
	}
	resp, err := retried(ctx, func() (*clientv3.TxnResponse, error) { return s.client.Txn(ctx).If(ifs...).Then(thens...).Commit() })
	if err != nil {
		return false, first.wrap(err)
	}
	if !resp.Succeeded {
		return false, nil
	}
	failpoint.Reach("store/committed")
	for _, w := range writes {
		w.meta.Revision = resp.Header.Revision
	}
	return true, nil
}

func (k Kind[T]) op(verb, key string, reads bool, prepare func(*mvccpb.KeyValue) (write, error)) Op {
	return Op{path: k.path(key), reads: reads, prepare: prepare, wrap: func(err error) error {
		if o, ok := err.(own); ok { // made and unwrapped here only
			return o.error
		}
		return k.wrap(verb, key, err)
	}}
}

// own is an error of the caller's function, which goes back as it came.
type own struct{ error }

func (k Kind[T]) creation(obj T) (write, error) {
	meta := obj.Metadata()
	old := *meta
	if meta.UID == "" {
		meta.UID, meta.CreatedAt = NewUID(), time.Time{}
	}
	if meta.CreatedAt.IsZero() {
		meta.CreatedAt = time.Now().UTC()
	}
	meta.Generation = 1
	value, err := encode(obj)
	if err != nil {
		*meta = old
		return write{}, err
	}
	return write{value: value, meta: meta, old: old}, nil
}

func (k Kind[T]) change(obj T, kv *mvccpb.KeyValue) (w write, err error) {
	stored, err := k.decode(kv.Value, kv.ModRevision)
	if err != nil {
		return write{}, err
	}
	// Encoded anew, so that what an older version has left out or in doesn't
	// look like a change that somebody made.
	before, err := encode(stored)
	if err != nil {
		return write{}, err
	}
	meta, was := obj.Metadata(), stored.Metadata()
	old := *meta
	defer func() {
		if err != nil {
			*meta = old
		}
	}()
	meta.UID, meta.CreatedAt, meta.Generation = was.UID, was.CreatedAt, was.Generation
	if was.Deleting() {
		meta.DeletedAt = was.DeletedAt
	}
	after, err := encode(obj)
	if err == nil && !bytes.Equal(specOf(before), specOf(after)) {
		meta.Generation++
		after, err = encode(obj)
	}
	if err != nil {
		return write{}, err
	}
	if bytes.Equal(before, after) {
		meta.Revision = kv.ModRevision
		return write{skip: true}, nil
	}
	after, err = keepUnknown(kv.Value, before, after)
	return write{value: after, meta: meta, old: old}, err
}

// encode returns obj as it is stored: etcd knows the revision.
func encode(obj resource.Object) ([]byte, error) {
	meta := obj.Metadata()
	revision := meta.Revision
	meta.Revision = 0
	value, err := json.Marshal(obj)
	meta.Revision = revision
	if err == nil && len(value) > MaxBytes {
		err = fmt.Errorf("%w: %d bytes, at most %d are possible", ErrTooLarge, len(value), MaxBytes)
	}
	return value, err
}

func specOf(value []byte) json.RawMessage {
	var v struct {
		Spec json.RawMessage `json:"spec"`
	}
	_ = json.Unmarshal(value, &v) // it was marshalled just now
	return v.Spec
}

// pause waits a little before the next attempt, longer each time and by chance,
// so that those who compete spread: 0-2 ms first, 0-128 ms in the end.
func pause(ctx context.Context, attempt int) error {
	limit := 2 * time.Millisecond << min(attempt, 6)
	select {
	case <-time.After(rand.N(limit)):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("commit: %w", ctx.Err())
	}
}
