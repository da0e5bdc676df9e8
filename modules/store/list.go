package store

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// List returns the resources below prefix, sorted by key: "acme/web" lists
// "acme/web/shop" and not "acme/web2/shop"; "" lists all.
//
// limit is the size of a page, 0 is no limit. If there are more, next is what
// to pass as after to get the next page; it is "" on the last one. The pages of
// one walk show one state of the store, as long as etcd remembers it (minutes);
// then the walk goes on with what is there. after may also be the key of a
// resource: the list then starts behind it, with what is there now.
func (k Kind[T]) List(ctx context.Context, prefix, after string, limit int) (items []T, next string, err error) {
	var rev int64
	from, to := k.span(prefix)
	if after != "" {
		key := after
		if i := strings.LastIndexByte(after, ','); i >= 0 {
			key = after[:i]
			if rev, err = strconv.ParseInt(after[i+1:], 10, 64); err != nil || rev < 1 {
				return nil, "", k.wrap("list", prefix, ErrInvalidPage)
			}
		}
		if err := checkKey(key); err != nil {
			return nil, "", k.wrap("list", prefix, ErrInvalidPage)
		}
		// What is before the range starts at the range's beginning.
		from = max(from, k.path(key)+"\x00")
	}
	for {
		page := pageLimit
		if limit > 0 {
			page = min(page, limit-len(items))
		}
		resp, err := retried(ctx, func() (*clientv3.GetResponse, error) {
			return k.store.client.Get(ctx, from, clientv3.WithRange(to), clientv3.WithLimit(int64(page)), clientv3.WithRev(rev))
		})
		if errors.Is(err, rpctypes.ErrCompacted) || errors.Is(err, rpctypes.ErrFutureRev) {
			// Forgotten, or the store was restored from an older backup.
			rev = 0
			continue
		}
		if err != nil {
			return nil, "", k.wrap("list", prefix, err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		last := ""
		for _, kv := range resp.Kvs {
			obj, err := k.decode(kv.Value, kv.ModRevision)
			if err != nil {
				return nil, "", k.wrap("list", prefix, err)
			}
			items = append(items, obj)
			last = string(kv.Key)
		}
		switch {
		case !resp.More:
			return items, "", nil
		case limit > 0 && len(items) >= limit:
			return items, k.key(last) + "," + strconv.FormatInt(rev, 10), nil
		}
		from = last + "\x00"
	}
}

// Keys returns the keys below prefix, sorted. No value is read.
func (k Kind[T]) Keys(ctx context.Context, prefix string) ([]string, error) {
	from, to := k.span(prefix)
	all, _, err := k.store.walk(ctx, from, to, clientv3.WithKeysOnly())
	if err != nil {
		return nil, k.wrap("list", prefix, err)
	}
	keys := make([]string, len(all))
	for i, kv := range all {
		keys[i] = k.key(string(kv.Key))
	}
	return keys, nil
}

// ErrInvalidPage says that the text for the next page isn't one that List gave.
var ErrInvalidPage = errors.New("not the beginning of a page: pass what the page before said, or leave it out")

// walk reads all that is from from to to, at one revision.
func (s *Store) walk(
	ctx context.Context, from, to string, more ...clientv3.OpOption,
) (all []*mvccpb.KeyValue, rev int64, err error) {
	for {
		options := append([]clientv3.OpOption{clientv3.WithRange(to), clientv3.WithLimit(pageLimit), clientv3.WithRev(rev)}, more...)
		resp, err := s.client.Get(ctx, from, options...)
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		all = append(all, resp.Kvs...)
		if !resp.More {
			return all, rev, nil
		}
		from = string(all[len(all)-1].Key) + "\x00"
	}
}
