package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/modules/resource"
)

// Survey is all that the store holds at one revision.
type Survey struct {
	Revision   int64
	Counts     map[string]int64 // resources by kind
	Workspaces []*resource.Workspace
	Strays     []Stray
}

// Stray is a key that belongs to a workspace that is no more.
type Stray struct {
	Path string // in etcd
	Why  string

	revision int64  // of its last change
	owner    string // path of what must not be there when it is removed
}

// Survey looks at all keys. Workspaces are read at the same revision: a key that
// is older than the answer and has no workspace in it has none.
func (s *Store) Survey(ctx context.Context) (*Survey, error) {
	keys, revision, err := s.walk(ctx, Root, clientv3.GetPrefixRangeEnd(Root), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("list the store's keys: %w", err)
	}
	v := &Survey{Revision: revision, Counts: map[string]int64{}}
	workspaces := Of[resource.Workspace](s)
	from, end := workspaces.span("")
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(v.Revision))
	if err != nil {
		return nil, fmt.Errorf("read workspaces: %w", err)
	}
	there, claims := map[string]bool{}, map[string]bool{}
	for _, kv := range resp.Kvs {
		w, err := workspaces.decode(kv.Value, kv.ModRevision)
		if err != nil {
			return nil, err
		}
		v.Workspaces = append(v.Workspaces, w)
		there[w.Key()] = true
		for _, name := range w.Status.Claims() {
			claims[name] = true
		}
	}
	vnis := Of[resource.VNI](s)
	from, end = vnis.span("")
	if resp, err = s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(v.Revision)); err != nil {
		return nil, fmt.Errorf("read claims: %w", err)
	}
	for _, kv := range resp.Kvs {
		if claim, err := vnis.decode(kv.Value, kv.ModRevision); err == nil && claim.Retired {
			claims[claim.Name] = true // it waits for disks that may come back
		}
	}
	for _, kv := range keys {
		k := Stray{Path: string(kv.Key), revision: kv.ModRevision}
		name, key, _ := strings.Cut(strings.TrimPrefix(k.Path, Root), "/")
		v.Counts[name]++
		if name == (*resource.VNI)(nil).Kind() && !claims[key] { // written in one commit with the workspace's
			k.Why, k.owner = "no workspace has this network identifier", k.Path+"/" // nobody's key
			v.Strays = append(v.Strays, k)
		}
		if workspace := workspaceOf(name, key); workspace != "" && !there[workspace] {
			k.Why, k.owner = "workspace "+workspace+" is no more", workspaces.path(workspace)
			v.Strays = append(v.Strays, k)
		}
	}
	return v, nil
}

// workspaceOf is the key of the workspace that a resource belongs to; "" if it
// belongs to none.
func workspaceOf(name, key string) string {
	if name == (*resource.WorkspaceKeys)(nil).Kind() {
		return key // beside the workspace, not in it
	}
	for _, k := range resource.Kinds() {
		if k.Name == name && k.Scope == resource.OfWorkspace {
			return k.Scope.Parent(key)
		}
	}
	return ""
}

// RemoveStray removes a key that is as it was, if what it belongs to is still
// not there.
func (s *Store) RemoveStray(ctx context.Context, k Stray) error {
	resp, err := s.client.Txn(ctx).If(
		clientv3.Compare(clientv3.ModRevision(k.Path), "=", k.revision),
		clientv3.Compare(clientv3.CreateRevision(k.owner), "=", 0),
	).Then(clientv3.OpDelete(k.Path)).Commit()
	if err == nil && !resp.Succeeded {
		err = errors.New("it was changed meanwhile")
	}
	return err
}
