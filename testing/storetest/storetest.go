// Package storetest gives tests of modules a real store: an etcd member in this
// process, on a unix socket in a temporary directory, without TLS and fsync.
// Only tests of modules import it; the member that the platform runs is
// embed/etcd, which modules don't know.
package storetest

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/multipaas/multipaas/modules/store"
)

// Etcd is a member that a test may stop and start again.
type Etcd struct {
	t      testing.TB
	dir    string
	etcd   *embed.Etcd
	Client *clientv3.Client
}

// New returns a store of its own for this test.
func New(t testing.TB) *store.Store {
	t.Helper()
	return store.New(Start(t).Client)
}

// Start runs a member until the test ends.
func Start(t testing.TB) *Etcd {
	t.Helper()
	// Not t.TempDir: with the test's name in it the path is too long for a socket.
	dir, err := os.MkdirTemp("", "mp-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	e := &Etcd{t: t, dir: dir}
	t.Cleanup(func() {
		e.Stop()
		_ = os.RemoveAll(dir)
	})
	e.Start()
	e.Client, err = clientv3.New(clientv3.Config{
		Endpoints: []string{"unix://" + e.socket()},
		Logger:    zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Client.Close() })
	return e
}

// Start starts the member again after Stop, with the same data.
func (e *Etcd) Start() {
	e.t.Helper()
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	client := url.URL{Scheme: "unix", Path: e.socket()}
	c := embed.NewConfig()
	c.Name = "test"
	c.Dir = filepath.Join(e.dir, "data")
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenClientHttpUrls = []url.URL{{Scheme: "unix", Path: e.socket() + "-http"}}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.EnableGRPCGateway = false
	c.UnsafeNoFsync = true
	// A member alone needs no second to find out that it leads.
	c.TickMs, c.ElectionMs = 10, 50
	server, err := embed.StartEtcd(c)
	if err != nil {
		e.t.Fatalf("start etcd: %v", err)
	}
	e.etcd = server
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		e.t.Fatalf("etcd: %v", err)
	case <-time.After(20 * time.Second):
		e.t.Fatal("etcd isn't ready after 20 s")
	}
}

// Stop ends the member; its data stays.
func (e *Etcd) Stop() {
	if e.etcd != nil {
		e.etcd.Close()
		e.etcd = nil
	}
}

func (e *Etcd) socket() string { return filepath.Join(e.dir, "s") }
