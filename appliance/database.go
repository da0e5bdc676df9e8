package appliance

import (
	"cmp"
	"context"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/lifecycle"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/embed/etcd"
	"github.com/multipaas/multipaas/embed/plane"
	"github.com/multipaas/multipaas/modules/balancer"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// database is the server's etcd, and the store in it.
type database struct {
	ca     *pki.CA // of etcd alone
	etcd   *etcd.Server
	client *clientv3.Client
	store  *store.Store
}

// database makes it. Nobody may rely on it before addDatabase has started it,
// but for the balancer.
func (s *server) database() (*database, error) {
	ca, err := pki.LoadOrCreateCA(filepath.Join(s.cfg.Paths.PKI(), "etcd"), "MultiPaaS etcd")
	if err != nil {
		return nil, err
	}
	d := &database{ca: ca, etcd: etcd.New(etcd.Config{
		Dir:    s.cfg.Paths.Etcd(),
		Name:   s.cfg.Name,
		Socket: s.cfg.Paths.EtcdSocket(),
		CA:     ca,
		// What a plane keeps to by itself is kept here too.
		PlaneBytes: cmp.Or(s.cfg.DatastoreLimit, plane.MaxEtcdBytes),
		Log:        s.part("etcd"),
	})}
	if d.client, err = d.etcd.Client(); err != nil {
		return nil, err
	}
	d.store = store.New(d.client)
	s.answers = &databaseAnswers{log: s.log, etcd: d.etcd, client: d.client, store: d.store}
	return d, nil
}

// addDatabase adds etcd and its client, which is closed before etcd stops: that
// would wait seven seconds for connections to end.
func (s *server) addDatabase(d *database, balancer part[*balancer.Balancer]) part[*store.Store] {
	n := &needs{}
	balancer.of(n)
	server := add(s.graph, "etcd", n, d.etcd)
	n = &needs{}
	server.of(n)
	client := add(s.graph, "etcd-client", n, lifecycle.Func(func(ctx context.Context, ready func()) error {
		ready()
		<-ctx.Done()
		return d.client.Close()
	}))
	return part[*store.Store]{d.store, client.nodes}
}

// cacheOf is a cache of one kind, as others are made from it.
type cacheOf[P resource.Object] = part[*store.Cache[P]]

// addCache adds a cache of a kind, called as the kind is.
func addCache[V any, P interface {
	*V
	resource.Object
}](s *server, from part[*store.Store]) cacheOf[P] {
	n := &needs{}
	kind := store.Of[V, P](from.of(n))
	return add(s.graph, kind.Name(), n, kind.Cache(s.part(kind.Name())))
}

func (s *server) checkDatabase(d *database) func(context.Context) {
	return func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, healthEvery/2)
		defer cancel()
		tight, err := d.etcd.GuardDisk(ctx)
		if err != nil && ctx.Err() == nil {
			s.part("health").Error("guard etcd's disk", "err", err)
		}
		if err == nil {
			d.store.Tighten(tight)
			if tight {
				err = etcd.ErrTight
			}
			s.problems.Update(etcd.Tight, "", err)
		}
		if err := d.etcd.Health(ctx); context.Cause(ctx) != context.Canceled {
			s.problems.Update(etcd.Unwell, "", err)
		}
	}
}
