package task

import (
	"context"
	"errors"
	"fmt"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// kindsOf are the kinds of resources that have tasks. A further kind is one
// more line here.
func kindsOf(st *store.Store) []kind {
	return []kind{
		kindOf(st.Workspaces(), func(w *resource.Workspace) view {
			return view{w.Meta, w.Status.ObservedGeneration, w.Status.Phase, w.Status.Conditions}
		}),
		kindOf(st.Apps(), func(a *resource.App) view {
			return view{a.Meta, a.Status.ObservedGeneration, a.Status.Phase, a.Status.Conditions}
		}),
		kindOf(st.Nodes(), func(n *resource.Node) view {
			// What an operator sets about a node needs no work.
			return view{n.Meta, n.Generation, n.Status.Phase, n.Status.Conditions}
		}),
	}
}

// view is what a task wants to know about its resource.
type view struct {
	meta       resource.Meta
	observed   int64
	phase      resource.Phase
	conditions resource.Conditions
}

// kind is one kind of resource without its type.
type kind struct {
	name string
	has  func(resource.Object) bool
	// load returns nil if there is none.
	load func(ctx context.Context, key string) (*view, error)
	// watch calls changed with the key of each resource that changes, and of
	// each that is there at first, until ctx is done.
	watch func(ctx context.Context, changed func(key string))
}

func kindOf[T resource.Object](k store.Kind[T], look func(T) view) kind {
	return kind{
		name: k.Name(),
		has: func(obj resource.Object) bool {
			_, ok := obj.(T)
			return ok
		},
		load: func(ctx context.Context, key string) (*view, error) {
			obj, err := k.Get(ctx, key)
			if errors.Is(err, store.ErrNotFound) {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			v := look(obj)
			return &v, nil
		},
		watch: func(ctx context.Context, changed func(key string)) {
			for e := range k.Watch(ctx, "", 0) {
				if e.Key != "" {
					changed(e.Key)
				}
			}
		},
	}
}

func (ts *Tasks) kindFor(obj resource.Object) kind {
	for _, k := range ts.kinds {
		if k.has(obj) {
			return k
		}
	}
	panic(fmt.Sprintf("task: %T has no tasks", obj))
}
