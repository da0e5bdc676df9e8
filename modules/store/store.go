// Package store keeps the platform's resources: typed kinds over etcd, one
// JSON value per resource at /multipaas/KIND/KEY. It promises that a write
// that was based on something old is refused, that several writes committed
// together happen together or not at all, and that a watch or a cache never
// misses a state that lasts: it may skip over what was only passed through.
//
// Parties: the API writes what is wanted, controllers write what they see, both
// through Kind; caches follow. Every module and appliance may import it. It
// knows etcd's client and the types of modules/resource, and nothing else.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/modules/resource"
)

var (
	// ErrNotFound is returned when there is no resource with that key.
	ErrNotFound = errors.New("not found")
	// ErrExists is returned when a resource is created whose key is taken.
	ErrExists = errors.New("exists already")
	// ErrConflict is returned when the stored resource isn't the one that the
	// write was based on. Read it again, and decide again.
	ErrConflict = errors.New("was changed by somebody else meanwhile")
	// ErrTooLarge is returned when a resource is larger than MaxBytes.
	ErrTooLarge = errors.New("too large")
	// ErrFull is returned for a write when the datastore takes none, because its
	// disk or its database is full. What is there can
	// still be read.
	ErrFull = errors.New("the datastore takes no writes: its disk or its database is full")
	// ErrInvalidKey is returned for a key that can't be one: empty, or with an
	// empty element.
	ErrInvalidKey = errors.New("not a valid key")
	// ErrSkip is returned by the function given to Modify when there is nothing
	// to change. Modify then returns no error.
	ErrSkip = errors.New("nothing to change")
)

// MaxBytes is the largest resource, as JSON. etcd takes requests of 1.5 MiB,
// and a commit has a task beside the resource.
const MaxBytes = 1 << 20

const (
	// Root is the prefix of everything that the store keeps in etcd.
	Root      = "/multipaas/"
	maxKey    = 1024 // 4 DNS labels and three slashes are 255; e-mail addresses are 254 at most
	pageLimit = 500  // 500 resources of 2 KiB are 1 MiB per answer
	maxTxnOps = 64   // etcd's limit is 128, and each of ours is a comparison and a write
)

// Store gives access to every kind. Its methods and those of its kinds are
// safe for concurrent use.
type Store struct {
	client *clientv3.Client
	tight  atomic.Bool // see Tighten
}

// New returns the store that client reaches. The caller closes the client, when
// nobody uses the store any more.
func New(client *clientv3.Client) *Store { return &Store{client: client} }

// NewUID returns a UID for a resource that others shall refer to before it is
// stored.
func NewUID() string { return uuid.NewString() }

// object is a pointer to a resource type.
type object[V any] interface {
	*V
	resource.Object
}

// Of returns the kind of resource V:
//
//	ws, err := store.Of[resource.Workspace](s).Get(ctx, "acme/web/shop")
func Of[V any, P object[V]](s *Store) Kind[P] {
	return Kind[P]{store: s, name: P(new(V)).Kind(), fresh: func() P { return new(V) }}
}

// Any returns a kind for whoever does the same with each of resource.Kinds.
func Any(s *Store, k resource.Kind) Kind[resource.Object] {
	return Kind[resource.Object]{store: s, name: k.Name, fresh: k.New}
}

// Kind is the resources of one type. Make one with Of.
type Kind[T resource.Object] struct {
	store *Store
	name  string
	fresh func() T
}

// Name is the kind's name in keys and in tasks, such as "workspaces".
func (k Kind[T]) Name() string { return k.name }

// Get reads one resource; what a write has returned for is seen. ErrNotFound.
func (k Kind[T]) Get(ctx context.Context, key string) (T, error) {
	var none T
	if err := checkKey(key); err != nil {
		return none, k.wrap("get", key, err)
	}
	resp, err := retried(ctx, func() (*clientv3.GetResponse, error) { return k.store.client.Get(ctx, k.path(key)) })
	if err != nil {
		return none, k.wrap("get", key, err)
	}
	if len(resp.Kvs) == 0 {
		return none, k.wrap("get", key, ErrNotFound)
	}
	return k.decode(resp.Kvs[0].Value, resp.Kvs[0].ModRevision)
}

// Create stores a new resource and fills its UID and CreatedAt (unless the caller has: by NewUID, or of
// something that comes back), Revision and Generation. ErrExists.
func (k Kind[T]) Create(ctx context.Context, obj T) error {
	return k.store.Commit(ctx, k.CreateOp(obj))
}

// Update stores obj if the stored resource still has obj's Revision, and counts
// up its Generation if its spec changed. UID, CreatedAt and a deletion once
// asked for stay as they are stored. ErrConflict, ErrNotFound.
func (k Kind[T]) Update(ctx context.Context, obj T) error {
	return k.store.Commit(ctx, k.UpdateOp(obj))
}

// Modify reads the resource, lets change change it and stores it, again from
// the start if somebody else was faster; so change may be called several times
// and acts on nothing but its argument. If it changes nothing, or returns
// ErrSkip, nothing is written. An error of change is returned as it is.
// It returns the resource as it is stored now. ErrNotFound.
func (k Kind[T]) Modify(ctx context.Context, key string, change func(T) error) (T, error) {
	var result T
	err := k.store.Commit(ctx, k.ModifyOp(key, func(obj T) error {
		result = obj
		return change(obj)
	}))
	if err != nil {
		var none T
		return none, err
	}
	return result, nil
}

// Observe writes what a controller has seen of seen: look puts it into the
// status of the resource as it is stored now. Nothing is written, and that is no
// error, if the resource is gone or another one has its name, or if somebody has
// since changed what is wanted or asked for its deletion: he has caused the
// next look. Like the function given to Modify, look may be called several times.
func (k Kind[T]) Observe(ctx context.Context, seen T, look func(now T)) error {
	_, err := k.Modify(ctx, seen.Key(), func(now T) error {
		is, was := now.Metadata(), seen.Metadata()
		if is.UID != was.UID || is.Generation != was.Generation || is.Deleting() != was.Deleting() {
			return ErrSkip
		}
		look(now)
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// MarkDeleted notes that deletion was asked for; the kind's controller does the
// rest. Asking twice changes nothing. ErrNotFound.
func (k Kind[T]) MarkDeleted(ctx context.Context, key string) (T, error) {
	return k.Modify(ctx, key, markDeleted[T])
}

// Delete removes the resource for good. If obj has a Revision, it must be the
// stored one, else ErrConflict, or ErrNotFound if there is none any more. With
// Revision 0 whatever is there goes, and nothing there is no error.
func (k Kind[T]) Delete(ctx context.Context, obj T) error {
	return k.store.Commit(ctx, k.DeleteOp(obj))
}

func markDeleted[T resource.Object](obj T) error {
	if obj.Metadata().Deleting() {
		return ErrSkip
	}
	now := time.Now().UTC()
	obj.Metadata().DeletedAt = &now
	return nil
}

func (k Kind[T]) path(key string) string { return Root + k.name + "/" + key }

// span is the range of keys below prefix: "acme/web" has "acme/web/shop" in it
// and neither "acme/web" nor "acme/web2". The empty prefix has all.
func (k Kind[T]) span(prefix string) (from, to string) {
	from = k.path(strings.Trim(prefix, "/"))
	if !strings.HasSuffix(from, "/") {
		from += "/"
	}
	return from, clientv3.GetPrefixRangeEnd(from)
}

func (k Kind[T]) key(path string) string { return strings.TrimPrefix(path, Root+k.name+"/") }

func (k Kind[T]) decode(value []byte, revision int64) (T, error) {
	obj := k.fresh()
	if err := json.Unmarshal(value, obj); err != nil {
		var none T
		return none, fmt.Errorf("stored %s at revision %d: %w", k.name, revision, err)
	}
	obj.Metadata().Revision = revision
	return obj, nil
}

func (k Kind[T]) wrap(operation, key string, err error) error {
	return fmt.Errorf("%s %s %s: %w", operation, k.name, key, err)
}

func checkKey(key string) error {
	if len(key) > maxKey {
		return fmt.Errorf("%w: it has %d characters, at most %d are possible", ErrInvalidKey, len(key), maxKey)
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r == ',' }) {
			return ErrInvalidKey
		}
	}
	return nil
}

// retried repeats do while etcd says that a change of its users, which is
// somebody else's doing, got between. Such a request has done nothing.
func retried[R any](ctx context.Context, do func() (R, error)) (R, error) {
	for {
		resp, err := do()
		if errors.Is(err, rpctypes.ErrNoSpace) {
			return resp, ErrFull
		}
		if !errors.Is(err, rpctypes.ErrAuthOldRevision) || ctx.Err() != nil {
			return resp, err
		}
	}
}
