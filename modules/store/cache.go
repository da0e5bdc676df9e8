package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/multipaas/multipaas/modules/resource"
)

// Cache is a complete mirror of one kind, a few milliseconds behind the store.
// Its methods are safe for concurrent use, and what they return is the
// caller's own.
type Cache[T resource.Object] struct {
	kind Kind[T]
	log  *slog.Logger

	mu       sync.RWMutex
	items    map[string]cached
	onChange []func(key string)
}

type cached struct {
	value    []byte
	revision int64
}

// Cache returns a cache that is filled while its Run runs.
func (k Kind[T]) Cache(log *slog.Logger) *Cache[T] {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Cache[T]{kind: k, log: log, items: map[string]cached{}}
}

// OnChange has fn called with the key of each resource that came, changed or
// went, when the cache shows that. What is there already is told before OnChange
// returns; a change meanwhile may be told twice. fn must not block, and may be
// called concurrently.
func (c *Cache[T]) OnChange(fn func(key string)) {
	c.mu.Lock()
	c.onChange = append(c.onChange, fn)
	there := slices.Collect(maps.Keys(c.items))
	c.mu.Unlock()
	for _, key := range there {
		fn(key)
	}
}

// OnChangeOf is OnChange for who looks at a part of resources: fn is called when one came or went,
// or when view's answer, as JSON, is another. view gets a copy, without a Revision, and may return it.
func (c *Cache[T]) OnChangeOf(view func(T) any, fn func(key string)) {
	var mu sync.Mutex // also held while the cache is read, or an older answer could replace a newer
	seen := map[string][sha256.Size]byte{}
	c.OnChange(func(key string) {
		mu.Lock()
		was, known := seen[key]
		obj, there := c.Get(key)
		if there {
			obj.Metadata().Revision = 0
			text, _ := json.Marshal([]any{obj.Metadata().UID, view(obj)}) // a part of what was decoded can be encoded
			seen[key] = sha256.Sum256(text)
		} else {
			delete(seen, key)
		}
		news := there != known || seen[key] != was
		mu.Unlock()
		if news {
			fn(key)
		}
	})
}

// Run keeps the cache until ctx is done. It is ready once the cache is
// complete.
func (c *Cache[T]) Run(ctx context.Context, ready func()) error {
	for e := range c.kind.Watch(ctx, "") {
		switch e.Type {
		case Put:
			value, err := encode(e.Object)
			if err != nil { // what was decoded can be encoded
				c.log.Error("cache resource", "kind", c.kind.name, "key", e.Key, "err", err)
				continue
			}
			c.set(e.Key, &cached{value, e.Object.Metadata().Revision})
		case Deleted:
			c.set(e.Key, nil)
		case Synced:
			c.log.Debug("cache is complete", "kind", c.kind.name, "resources", c.Len())
			ready()
		}
	}
	return nil
}

func (c *Cache[T]) set(key string, item *cached) {
	c.mu.Lock()
	if item == nil {
		delete(c.items, key)
	} else {
		c.items[key] = *item
	}
	tell := c.onChange
	c.mu.Unlock()
	for _, fn := range tell {
		fn(key)
	}
}

// Get returns the resource called key, if there is one.
func (c *Cache[T]) Get(key string) (T, bool) {
	c.mu.RLock()
	item, ok := c.items[key]
	c.mu.RUnlock()
	if !ok {
		var none T
		return none, false
	}
	return c.decode(key, item)
}

// List returns the resources below prefix (see Kind.List), sorted by key.
func (c *Cache[T]) List(prefix string) []T {
	prefix = strings.Trim(prefix, "/")
	c.mu.RLock()
	found := map[string]cached{}
	for key, item := range c.items {
		if prefix == "" || len(key) > len(prefix) && key[len(prefix)] == '/' && key[:len(prefix)] == prefix {
			found[key] = item
		}
	}
	c.mu.RUnlock()
	list := make([]T, 0, len(found))
	for _, key := range slices.Sorted(maps.Keys(found)) {
		if obj, ok := c.decode(key, found[key]); ok {
			list = append(list, obj)
		}
	}
	return list
}

// Len is the number of resources.
func (c *Cache[T]) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.items)
}

// decode makes a copy: handing out the one object was tried in thought only,
// and its first user who changes a status in place would change everybody's.
func (c *Cache[T]) decode(key string, item cached) (T, bool) {
	obj, err := c.kind.decode(item.value, item.revision)
	if err != nil {
		c.log.Error("read cached resource", "kind", c.kind.name, "key", key, "err", err)
		return obj, false
	}
	return obj, true
}
