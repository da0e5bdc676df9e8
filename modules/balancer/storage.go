package balancer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/multipaas/multipaas/appliance/failpoint"
)

const (
	storageTimeout = 5 * time.Second // a request to etcd takes milliseconds; a handshake may wait for it
	lockTTL        = 15              // seconds until the lock of a server that died is free
)

// storage keeps certificates in etcd for all servers. Keys are files below
// prefix; a value is 8 bytes with the time of its last change in nanoseconds,
// and then the content.
type storage struct {
	client *clientv3.Client
	prefix string // ends with "/"

	mu    sync.Mutex
	locks map[string]func(context.Context) error // those that this process holds: free it
}

var (
	_ certmagic.Storage   = (*storage)(nil)
	_ certmagic.TryLocker = (*storage)(nil)
)

func newStorage(client *clientv3.Client, prefix string) *storage {
	return &storage{client: client, prefix: strings.TrimSuffix(prefix, "/") + "/", locks: map[string]func(context.Context) error{}}
}

func (s *storage) file(key string) string { return s.prefix + "files/" + clean(key) }

func clean(key string) string { return strings.Trim(path.Clean("/"+key), "/") }

// get reads one key, or what lies below a prefix. Unlike a transaction, etcd's client
// repeats it when the server is away for a moment.
func (s *storage) get(ctx context.Context, key string, opts ...clientv3.OpOption) ([]*mvccpb.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	resp, err := s.client.Get(ctx, key, opts...)
	if err != nil {
		return nil, err
	}
	return resp.Kvs, nil
}

// do has etcd do all or nothing of ops.
func (s *storage) do(ctx context.Context, ops ...clientv3.Op) ([]*etcdserverpb.ResponseOp, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	resp, err := s.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, err
	}
	return resp.Responses, nil
}

// Store puts value at key.
func (s *storage) Store(ctx context.Context, key string, value []byte) error {
	data := binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))
	if _, err := s.do(ctx, clientv3.OpPut(s.file(key), string(append(data, value...)))); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	failpoint.Reach("certificate/stored")
	return nil
}

// Load returns the value at key. fs.ErrNotExist: there is none.
func (s *storage) Load(ctx context.Context, key string) ([]byte, error) {
	kvs, err := s.get(ctx, s.file(key))
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", key, err)
	}
	if len(kvs) == 0 || len(kvs[0].Value) < 8 {
		return nil, fmt.Errorf("load %s: %w", key, fs.ErrNotExist)
	}
	return kvs[0].Value[8:], nil
}

// Delete removes key and everything below it. None there is no error.
func (s *storage) Delete(ctx context.Context, key string) error {
	file := s.file(key)
	if _, err := s.do(ctx, clientv3.OpDelete(file), clientv3.OpDelete(file+"/", clientv3.WithPrefix())); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// Exists says whether key is there, as a file or as a folder.
func (s *storage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// Stat describes key. fs.ErrNotExist: there is neither a file nor a folder.
func (s *storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	file := s.file(key)
	resp, err := s.do(ctx, clientv3.OpGet(file),
		clientv3.OpGet(file+"/", clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly()))
	if err != nil {
		return certmagic.KeyInfo{}, fmt.Errorf("stat %s: %w", key, err)
	}
	info := certmagic.KeyInfo{Key: key}
	if kvs := resp[0].GetResponseRange().Kvs; len(kvs) > 0 && len(kvs[0].Value) >= 8 {
		info.IsTerminal = true
		info.Size = int64(len(kvs[0].Value) - 8)
		info.Modified = time.Unix(0, int64(binary.BigEndian.Uint64(kvs[0].Value)))
		return info, nil
	}
	if len(resp[1].GetResponseRange().Kvs) > 0 {
		return info, nil
	}
	return certmagic.KeyInfo{}, fmt.Errorf("stat %s: %w", key, fs.ErrNotExist)
}

// List returns what is in the folder dir, sorted: its files and folders, or with
// recursive all below it. fs.ErrNotExist: there is no such folder.
func (s *storage) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	below := s.prefix + "files/"
	if dir = clean(dir); dir != "" {
		below += dir + "/"
	}
	kvs, err := s.get(ctx, below, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	found := map[string]bool{}
	for _, kv := range kvs {
		parts := strings.Split(strings.TrimPrefix(string(kv.Key), below), "/")
		for i := range parts {
			found[path.Join(dir, path.Join(parts[:i+1]...))] = true
			if !recursive {
				break
			}
		}
	}
	if len(found) == 0 && dir != "" {
		return nil, fmt.Errorf("list %s: %w", dir, fs.ErrNotExist)
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// Lock waits for the lock called name. It is freed by Unlock, or lockTTL after
// this process died. Each lock has a lease of its own, so that one that is lost
// takes no other with it.
func (s *storage) Lock(ctx context.Context, name string) error {
	_, err := s.lock(ctx, name, (*concurrency.Mutex).Lock)
	return err
}

// TryLock is Lock, but false if somebody else has it.
func (s *storage) TryLock(ctx context.Context, name string) (bool, error) {
	return s.lock(ctx, name, (*concurrency.Mutex).TryLock)
}

func (s *storage) lock(ctx context.Context, name string, take func(*concurrency.Mutex, context.Context) error) (bool, error) {
	// A lease that outlives ctx but is not waited for longer.
	grantCtx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	lease, err := s.client.Grant(grantCtx, lockTTL)
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", name, err)
	}
	session, err := concurrency.NewSession(s.client, concurrency.WithLease(lease.ID))
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", name, err)
	}
	mutex := concurrency.NewMutex(session, s.prefix+"locks/"+clean(name))
	if err := take(mutex, ctx); err != nil {
		session.Close()
		if errors.Is(err, concurrency.ErrLocked) {
			return false, nil
		}
		return false, fmt.Errorf("lock %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locks[name] = func(ctx context.Context) error {
		err := mutex.Unlock(ctx)
		// Revokes the lease: even if Unlock failed, the lock is then free.
		if cerr := session.Close(); cerr != nil && err != nil {
			return fmt.Errorf("unlock %s: %w", name, errors.Join(err, cerr))
		}
		return nil
	}
	failpoint.Reach("certificate/locked")
	return true, nil
}

// Unlock frees a lock that Lock has returned for.
func (s *storage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	free, ok := s.locks[name]
	delete(s.locks, name)
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("unlock %s: not locked", name)
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return free(ctx)
}
