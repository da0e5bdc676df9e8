package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/embed/etcd"
	"github.com/multipaas/multipaas/modules/store"
)

// datastoreTimeout is for looking at all keys: 10,000 workspaces have 50,000, and
// a busy etcd takes seconds for them.
const datastoreTimeout = 30 * time.Second

// databaseAnswers says for `multipaas doctor` which workspaces there are, and what
// in etcd belongs to none.
type databaseAnswers struct {
	log    *slog.Logger
	etcd   *etcd.Server
	client *clientv3.Client
	store  *store.Store
}

func (d *databaseAnswers) answer(ctx context.Context, a *inventory.Answer) error {
	a.Role = "server"
	ctx, cancel := context.WithTimeout(ctx, datastoreTimeout)
	defer cancel()
	c, err := d.contents(ctx)
	if err != nil {
		a.Unknown = "the datastore does not answer: " + err.Error()
		return nil
	}
	a.Workspaces = slices.Sorted(maps.Keys(c.ids))
	a.Orphans = c.orphans
	maps.Copy(a.Numbers, c.numbers)
	total, used, err := d.etcd.DBSize(ctx)
	if err != nil {
		return err
	}
	a.Gauges["bytes of etcd"], a.Gauges["bytes of etcd in use"] = total, used
	return nil
}

// contents is what etcd holds.
type contents struct {
	ids     map[string]bool // of workspaces
	numbers map[string]int64
	orphans []inventory.Item
	// removals are how each orphan is removed, by its name.
	removals map[string]func(context.Context) error
}

func (c *contents) orphan(kind inventory.Kind, name, why string, remove func(context.Context) error) {
	c.orphans = append(c.orphans, inventory.Item{Kind: kind, Name: name, Detail: why})
	c.removals[name] = remove
}

// contents looks at the users, the store and the planes' keys, in this order: a
// user is made after its workspace has its id.
func (d *databaseAnswers) contents(ctx context.Context) (*contents, error) {
	c := &contents{ids: map[string]bool{}, numbers: map[string]int64{}, removals: map[string]func(context.Context) error{}}
	users, err := d.client.UserList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd's users: %w", err)
	}
	roles, err := d.client.RoleList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd's roles: %w", err)
	}
	survey, err := d.store.Survey(ctx)
	if err != nil {
		return nil, err
	}
	for _, w := range survey.Workspaces {
		if w.Status.ID != "" {
			c.ids[w.Status.ID] = true
		}
	}
	for kind, n := range survey.Counts {
		c.numbers["etcd keys below "+store.Root+kind] = n
	}
	for _, stray := range survey.Strays {
		c.orphan(inventory.EtcdKey, stray.Path, stray.Why, func(ctx context.Context) error {
			return d.store.RemoveStray(ctx, stray)
		})
	}
	planes := map[string]int{}
	for _, span := range [][2]string{{"\x00", store.Root}, {clientv3.GetPrefixRangeEnd(store.Root), "\x00"}} {
		err := d.eachKey(ctx, span[0], span[1], survey.Revision, func(key string) {
			first, _, _ := strings.Cut(strings.TrimPrefix(key, "/"), "/")
			c.numbers["etcd keys below /"+first]++
			if rest, ok := strings.CutPrefix(key, etcdPrefix("")); ok {
				if id, _, _ := strings.Cut(rest, "/"); !c.ids[id] {
					planes[id]++
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	for id, n := range planes {
		c.orphan(inventory.EtcdKey, etcdPrefix(id)+"/", fmt.Sprintf("%d keys of a plane whose workspace is no more", n),
			func(ctx context.Context) error { return d.etcd.RemoveUser(ctx, etcdUser(id), etcdPrefix(id)+"/") })
	}
	c.numbers["etcd users"], c.numbers["etcd roles"] = int64(len(users.Users)), int64(len(roles.Roles))
	names := append(slices.Clone(users.Users), roles.Roles...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		id, ok := strings.CutPrefix(name, etcdUser(""))
		if ok && !c.ids[id] {
			c.orphan(inventory.User, name, "user of a plane whose workspace is no more",
				func(ctx context.Context) error { return d.etcd.RemoveUser(ctx, name, etcdPrefix(id)+"/") })
		}
	}
	return c, nil
}

// eachKey calls do with each key of a range, as it was at a revision.
func (d *databaseAnswers) eachKey(ctx context.Context, from, end string, revision int64, do func(key string)) error {
	for {
		resp, err := d.client.Get(ctx, from,
			clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(5000), clientv3.WithRev(revision))
		if err != nil {
			return fmt.Errorf("list etcd's keys: %w", err)
		}
		for _, kv := range resp.Kvs {
			do(string(kv.Key))
		}
		if !resp.More {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// removeOrphans looks again and removes those of orphans that are orphans still.
func (d *databaseAnswers) removeOrphans(ctx context.Context, orphans []inventory.Item) (removed []inventory.Item, err error) {
	c, err := d.contents(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, o := range c.orphans {
		if !slices.ContainsFunc(orphans, func(i inventory.Item) bool { return i.Kind == o.Kind && i.Name == o.Name }) {
			continue
		}
		if err := c.removals[o.Name](ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove %s %s: %w", o.Kind, o.Name, err))
			continue
		}
		d.log.Info("orphan removed", "kind", o.Kind, "name", o.Name, "why", o.Detail)
		removed = append(removed, o)
	}
	return removed, errors.Join(errs...)
}
