package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/embed/etcd"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// datastoreTimeout is for looking at all keys: 10,000 workspaces have 50,000, and
// a busy etcd takes seconds for them.
const datastoreTimeout = 30 * time.Second

// databaseAnswers say what the datastore wants on this host.
type databaseAnswers struct {
	log    *slog.Logger
	etcd   *etcd.Server
	client *clientv3.Client
	store  *store.Store
}

// answer: what the datastore says.
func (s *databaseAnswers) answer(ctx context.Context, a *inventory.Answer) error {
	a.Role = "server"
	ctx, cancel := context.WithTimeout(ctx, datastoreTimeout)
	defer cancel()
	k, err := s.keep(ctx)
	if err != nil {
		a.Unknown = "the datastore does not answer: " + err.Error()
		return nil
	}
	a.Workspaces = slices.Sorted(maps.Keys(k.ids))
	a.Orphans = k.orphans
	maps.Copy(a.Numbers, k.numbers)
	total, used, err := s.etcd.DBSize(ctx)
	if err != nil {
		return err
	}
	a.Gauges["bytes of etcd"], a.Gauges["bytes of etcd in use"] = total, used
	return nil
}

// kept is what the datastore holds.
type kept struct {
	ids     map[string]bool // of workspaces
	numbers map[string]int64
	orphans []inventory.Item
	// removals are how each orphan is removed, by its name.
	removals map[string]func(context.Context) error
}

const (
	resources  = "/multipaas/" // of modules/store
	planesKeys = "/planes/"
	userPrefix = "plane-"
)

// keep looks at all keys, at one revision, and at the users. Users are listed
// first: one is made after its workspace has its id.
func (s *databaseAnswers) keep(ctx context.Context) (*kept, error) {
	k := &kept{ids: map[string]bool{}, numbers: map[string]int64{}, removals: map[string]func(context.Context) error{}}
	users, err := s.client.UserList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd's users: %w", err)
	}
	roles, err := s.client.RoleList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd's roles: %w", err)
	}
	// Workspaces by their own reader; what is older than its answer and has no
	// workspace in it has none.
	keys, revision, err := s.listKeys(ctx)
	if err != nil {
		return nil, err
	}
	paths, err := s.workspacesAt(ctx, revision, k)
	if err != nil {
		return nil, err
	}
	planes := map[string]int{}
	// Written in one commit with the workspace's id.
	vni := func(key string) (id string, ok bool) {
		number, ok := strings.CutPrefix(key, resources+"vnis/")
		n, err := strconv.ParseUint(number, 10, 32)
		return fmt.Sprintf("%06x", n), ok && err == nil
	}
	for _, kv := range keys {
		key := string(kv.key)
		k.numbers["etcd keys below "+firstParts(key)]++
		if id, ok := planeOf(key); ok {
			if !k.ids[id] {
				planes[id]++
			}
			continue
		}
		if id, ok := vni(key); ok && !k.ids[id] {
			k.orphan(inventory.Item{Kind: inventory.EtcdKey, Name: key, Detail: "no workspace has this network identifier"}, func(ctx context.Context) error {
				return s.removeKey(ctx, key, kv.revision, "")
			})
		}
		if workspace, ok := workspaceOf(key); ok && !paths[workspace] {
			k.orphan(inventory.Item{Kind: inventory.EtcdKey, Name: key, Detail: "workspace " + workspace + " is no more"}, func(ctx context.Context) error {
				return s.removeKey(ctx, key, kv.revision, resources+"workspaces/"+workspace)
			})
		}
	}
	for id, n := range planes {
		k.orphan(inventory.Item{Kind: inventory.EtcdKey, Name: planesKeys + id + "/", Detail: fmt.Sprintf("%d keys of a plane whose workspace is no more", n)},
			func(ctx context.Context) error { return s.etcd.RemoveUser(ctx, etcdUser(id), etcdPrefix(id)+"/") })
	}
	k.numbers["etcd users"], k.numbers["etcd roles"] = int64(len(users.Users)), int64(len(roles.Roles))
	names := append(slices.Clone(users.Users), roles.Roles...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		id, ok := strings.CutPrefix(name, userPrefix)
		if ok && !k.ids[id] {
			k.orphan(inventory.Item{Kind: inventory.User, Name: name, Detail: "user of a plane whose workspace is no more"},
				func(ctx context.Context) error { return s.etcd.RemoveUser(ctx, name, etcdPrefix(id)+"/") })
		}
	}
	return k, nil
}

func (k *kept) orphan(i inventory.Item, remove func(context.Context) error) {
	k.orphans = append(k.orphans, i)
	k.removals[i.Name] = remove
}

type etcdKey struct {
	key      []byte
	revision int64 // of its last change
}

// listKeys lists every key, without values, as it was at one revision.
func (s *databaseAnswers) listKeys(ctx context.Context) (all []etcdKey, revision int64, err error) {
	from := "\x00"
	for {
		opts := []clientv3.OpOption{clientv3.WithFromKey(), clientv3.WithKeysOnly(), clientv3.WithLimit(5000)}
		if revision > 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		resp, err := s.client.Get(ctx, from, opts...)
		if err != nil {
			return nil, 0, fmt.Errorf("list etcd's keys: %w", err)
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			all = append(all, etcdKey{kv.Key, kv.ModRevision})
		}
		if !resp.More {
			return all, revision, nil
		}
		from = string(all[len(all)-1].key) + "\x00"
	}
}

// workspacesAt reads the workspaces as they were at a revision.
func (s *databaseAnswers) workspacesAt(ctx context.Context, revision int64, k *kept) (paths map[string]bool, err error) {
	prefix := resources + "workspaces/"
	resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	if err != nil {
		return nil, fmt.Errorf("read workspaces: %w", err)
	}
	paths = map[string]bool{}
	for _, kv := range resp.Kvs {
		var w resource.Workspace
		if err := json.Unmarshal(kv.Value, &w); err != nil {
			return nil, fmt.Errorf("read workspace %s: %w", kv.Key, err)
		}
		paths[strings.TrimPrefix(string(kv.Key), prefix)] = true
		if w.Status.ID != "" {
			k.ids[w.Status.ID] = true
		}
	}
	return paths, nil
}

// removeKey removes a key that is as it was, if what it belongs to is not there.
func (s *databaseAnswers) removeKey(ctx context.Context, key string, revision int64, owner string) error {
	if owner == "" {
		owner = key + "/" // nobody's key
	}
	resp, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision), clientv3.Compare(clientv3.CreateRevision(owner), "=", 0)).
		Then(clientv3.OpDelete(key)).Commit()
	if err == nil && !resp.Succeeded {
		err = errors.New("it was changed meanwhile")
	}
	return err
}

// removeOrphans looks again and removes those of orphans that are orphans still.
func (s *databaseAnswers) removeOrphans(ctx context.Context, orphans []inventory.Item) (removed []inventory.Item, err error) {
	k, err := s.keep(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, o := range k.orphans {
		if !slices.ContainsFunc(orphans, func(i inventory.Item) bool { return i.Kind == o.Kind && i.Name == o.Name }) {
			continue
		}
		if err := k.removals[o.Name](ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove %s %s: %w", o.Kind, o.Name, err))
			continue
		}
		s.log.Info("orphan removed", "kind", o.Kind, "name", o.Name, "why", o.Detail)
		removed = append(removed, o)
	}
	return removed, errors.Join(errs...)
}

// planeOf is the id of the workspace whose plane a key belongs to.
func planeOf(key string) (string, bool) {
	rest, ok := strings.CutPrefix(key, planesKeys)
	if !ok {
		return "", false
	}
	id, _, _ := strings.Cut(rest, "/")
	return id, true
}

// workspaceOf is the workspace that a resource belongs to: the first three names
// of its key, for kinds that workspaces have.
func workspaceOf(key string) (string, bool) {
	for kind, names := range map[string]int{"machines/": 4, "apps/": 4, "workspacekeys/": 3} {
		if rest, ok := strings.CutPrefix(key, resources+kind); ok {
			if parts := strings.Split(rest, "/"); len(parts) == names {
				return strings.Join(parts[:3], "/"), true
			}
		}
	}
	return "", false
}

// firstParts is /multipaas/KIND of a resource's key, else the first part.
func firstParts(key string) string {
	parts := strings.SplitN(strings.TrimPrefix(key, "/"), "/", 3)
	if len(parts) == 3 && parts[0] == "multipaas" {
		return "/multipaas/" + parts[1]
	}
	return "/" + parts[0]
}
