package mirror

import (
	"context"
	"errors"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// pageTimeout bounds the wait for one page.
	pageTimeout = 15 * time.Second
	// manyPerPage is how many objects a page has if they are small.
	manyPerPage = 500
	// maxListed is the most that is read of one list. What is followed are some
	// hundred objects of some KiB, some thousand at most.
	maxListed = 128 << 20
)

// Source is one kind of object of a cluster.
type Source interface {
	list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// Of is a Source of what a typed client offers for a kind, such as
// client.CoreV1().Nodes(). The client's configuration is of Bounds.Config.
func Of[L runtime.Object](kind interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}) Source {
	return source[L]{kind.List, kind}
}

type source[L runtime.Object] struct {
	lists func(ctx context.Context, o metav1.ListOptions) (L, error)
	watcher
}

type watcher interface {
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

func (s source[L]) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	return s.lists(ctx, o)
}

// Each calls look for the objects of a list, page by page, until it returns false. It
// reports whether they were all. look must keep nothing of an object, and ask the
// cluster nothing: the page is in memory, and counted, as long as it runs. One call
// reads 128 MiB at most.
func Each(ctx context.Context, s Source, o metav1.ListOptions, look func(runtime.Object) bool) (all bool, err error) {
	_, all, err = each(ctx, s, o, new(int64), maxListed, look)
	return all, err
}

// each is Each, with the most that it reads. perPage is how many objects a page has, 0 at
// first, and is kept for the next list. The revision is the list's.
func each(
	ctx context.Context, s Source, o metav1.ListOptions, perPage *int64, most int64, look func(runtime.Object) bool,
) (revision string, all bool, err error) {
	if *perPage == 0 {
		*perPage = manyPerPage
	}
	for read := int64(0); ; {
		o.Limit = *perPage
		p := &page{}
		next, rev, more, err := p.look(ctx, s, o, look)
		read += p.read
		switch {
		case errors.Is(err, errTooLarge) && *perPage > 1:
			// Not by halves: what was read of it is for nothing.
			*perPage = max(1, *perPage/4)
			if read > most {
				return revision, false, nil
			}
			continue
		case err != nil:
			return "", false, err
		}
		if revision == "" {
			revision = rev
		}
		if next == "" || !more {
			return revision, more, nil
		}
		if read > most {
			return revision, false, nil
		}
		if p.read < maxPage/8 {
			*perPage = min(manyPerPage, 2**perPage)
		}
		o.Continue = next
	}
}

// look reads one page and looks at its objects.
func (p *page) look(
	ctx context.Context, s Source, o metav1.ListOptions, look func(runtime.Object) bool,
) (next, revision string, more bool, err error) {
	ctx, cancel := context.WithTimeout(p.in(ctx), pageTimeout)
	defer cancel()
	defer p.done()
	list, err := s.list(ctx, o)
	if err != nil {
		return "", "", false, err
	}
	about, err := meta.ListAccessor(list)
	if err != nil {
		return "", "", false, err
	}
	more = true
	err = meta.EachListItem(list, func(o runtime.Object) error {
		more = more && look(o)
		return nil
	})
	return about.GetContinue(), about.GetResourceVersion(), more, err
}
