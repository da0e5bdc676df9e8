package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/failpoint"
)

// Kubernetes' API server watches this key for its peers' compactions, outside
// its own prefix, and would complain about it for ever. Nobody writes it here:
// planes are told to leave compaction to the member.
const kubeCompactionKey = "compact_rev_key"

// requireUsers makes every client be somebody. From then on a certificate
// whose common name is no user is good for nothing.
func (s *Server) requireUsers(ctx context.Context) error {
	return s.withClient(func(c *clientv3.Client) error {
		status, err := c.AuthStatus(ctx)
		if err != nil {
			return fmt.Errorf("etcd: authentication status: %w", err)
		}
		if status.Enabled {
			return nil
		}
		if err := addUser(ctx, c, Root); err != nil {
			return err
		}
		if _, err := c.UserGrantRole(ctx, Root, Root); err != nil {
			return fmt.Errorf("etcd: make %s root: %w", Root, err)
		}
		failpoint.Reach("bootstrap/etcd-root-made")
		if _, err := c.AuthEnable(ctx); err != nil {
			return fmt.Errorf("etcd: enable authentication: %w", err)
		}
		failpoint.Reach("bootstrap/etcd-closed")
		return nil
	})
}

// EnsureUser lets the client whose certificate has the common name name read
// and write the keys below prefix, which ends in "/", and nothing else. It may
// be called again, also with another prefix, which then replaces the first.
func (s *Server) EnsureUser(ctx context.Context, name, prefix string) error {
	if err := checkUser(name, prefix); err != nil {
		return err
	}
	s.prefixes.Store(name, prefix)
	want := []permission{
		{prefix, clientv3.GetPrefixRangeEnd(prefix), authpb.READWRITE},
		{kubeCompactionKey, "", authpb.READ},
	}
	return s.withClient(func(c *clientv3.Client) error {
		if _, err := c.RoleAdd(ctx, name); err != nil && !errors.Is(err, rpctypes.ErrRoleAlreadyExist) {
			return fmt.Errorf("etcd: add role %s: %w", name, err)
		}
		role, err := c.RoleGet(ctx, name)
		if err != nil {
			return fmt.Errorf("etcd: role %s: %w", name, err)
		}
		has := map[permission]bool{}
		for _, p := range role.Perm {
			has[permission{string(p.Key), string(p.RangeEnd), p.PermType}] = true
		}
		for _, p := range want {
			if has[p] {
				delete(has, p)
				continue
			}
			if _, err := c.RoleGrantPermission(ctx, name, p.key, p.end, clientv3.PermissionType(p.kind)); err != nil {
				return fmt.Errorf("etcd: grant %s to role %s: %w", p.key, name, err)
			}
		}
		for p := range has {
			if _, err := c.RoleRevokePermission(ctx, name, p.key, p.end); err != nil {
				return fmt.Errorf("etcd: revoke %s from role %s: %w", p.key, name, err)
			}
		}
		if err := addUser(ctx, c, name); err != nil {
			return err
		}
		if _, err := c.UserGrantRole(ctx, name, name); err != nil {
			return fmt.Errorf("etcd: give user %s his role: %w", name, err)
		}
		return nil
	})
}

// RemoveUser takes away the user, his role and every key below prefix. It is
// no error if there is none.
func (s *Server) RemoveUser(ctx context.Context, name, prefix string) error {
	if err := checkUser(name, prefix); err != nil {
		return err
	}
	return s.withClient(func(c *clientv3.Client) error {
		// The user first: nobody may write behind the deletion.
		if _, err := c.UserDelete(ctx, name); err != nil && !errors.Is(err, rpctypes.ErrUserNotFound) {
			return fmt.Errorf("etcd: delete user %s: %w", name, err)
		}
		if _, err := c.RoleDelete(ctx, name); err != nil && !errors.Is(err, rpctypes.ErrRoleNotFound) {
			return fmt.Errorf("etcd: delete role %s: %w", name, err)
		}
		if _, err := c.Delete(ctx, prefix, clientv3.WithPrefix()); err != nil {
			return fmt.Errorf("etcd: delete keys below %s: %w", prefix, err)
		}
		return nil
	})
}

type permission struct {
	key, end string
	kind     authpb.Permission_Type
}

func addUser(ctx context.Context, c *clientv3.Client, name string) error {
	_, err := c.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true})
	if err != nil && !errors.Is(err, rpctypes.ErrUserAlreadyExist) {
		return fmt.Errorf("etcd: add user %s: %w", name, err)
	}
	return nil
}

func checkUser(name, prefix string) error {
	switch {
	case name == "" || name == Root || name == peerName:
		return fmt.Errorf("etcd: user %q: this name is not free", name)
	case len(prefix) < 2 || !strings.HasSuffix(prefix, "/"):
		return fmt.Errorf("etcd: user %s: prefix %q: must be a path that ends in /", name, prefix)
	}
	return nil
}
