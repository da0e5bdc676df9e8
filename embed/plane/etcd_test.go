package plane

import (
	"cmp"
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/wait"
)

// startEtcd starts a member that takes clients of its authority on a unix
// socket, as the platform's does.
func startEtcd(t *testing.T) (*embed.Etcd, EtcdDatastore) {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.LoadOrCreateCA(filepath.Join(dir, "ca"), "etcd")
	if err != nil {
		t.Fatal(err)
	}
	files := func(name string, r pki.Request) (cert, key string) {
		certPEM, keyPEM, err := ca.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
		if err := pki.WriteFiles(cert, key, certPEM, keyPEM); err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	c := embed.NewConfig()
	c.Dir, c.LogLevel, c.UnsafeNoFsync = filepath.Join(dir, "data"), "error", true
	peer := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.ListenPeerUrls, c.AdvertisePeerUrls = peer, peer
	socket := filepath.Join(dir, "etcd.sock")
	clients := []url.URL{{Scheme: "unixs", Path: socket}}
	c.ListenClientUrls, c.AdvertiseClientUrls = clients, clients
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	// The client asks for the last element of the path as the server's name.
	cert, key := files("server", pki.Request{CommonName: "etcd", Server: true, Client: true, Hosts: []string{"etcd.sock"}})
	c.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: filepath.Join(dir, "ca", "ca.crt"), ClientCertAuth: true}
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(20 * time.Second):
		t.Fatal("etcd not ready")
	}
	cert, key = files("plane", pki.Request{CommonName: "plane", Client: true})
	// The plane, another user, comes by here.
	if err := cmp.Or(os.Chmod(filepath.Dir(dir), 0o711), os.Chmod(dir, 0o711), os.Chmod(filepath.Join(dir, "ca"), 0o711),
		os.Chmod(key, 0o644), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	return e, EtcdDatastore{
		Endpoints: []string{"unixs://" + socket},
		CAFile:    filepath.Join(dir, "ca", "ca.crt"), CertFile: cert, KeyFile: key,
		Prefix: "/planes/00002a",
	}
}

func TestPlaneOnEtcd(t *testing.T) {
	e, datastore := startEtcd(t)
	cfg := newConfig(t, newNamespace(t))
	const limit = 32 << 20
	cfg.Datastore = Datastore{Kind: Etcd, Etcd: datastore, MaxBytes: limit}
	began := time.Now()
	p, stop := start(t, cfg)
	platform := clientFor(t, p.RESTConfig())
	wait.For(t, wait.Patience, "default service account", func(ctx context.Context) error {
		_, err := platform.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	t.Logf("default service account after %s", time.Since(began).Round(time.Millisecond))
	anon, file := memory(t, p.PID())
	t.Logf("memory: %s anonymous, %s files", anon, file)
	wait.For(t, wait.Patience, "an object", func(ctx context.Context) error { return createNamed(ctx, platform, "small") })
	wantBounded(t, p, platform, limit)
	stop()

	client := v3client.New(e.Server)
	defer client.Close()
	got, err := client.Get(t.Context(), "/planes/00002a/serviceaccounts/default/default")
	if err != nil || len(got.Kvs) != 1 {
		t.Errorf("service account below the prefix: %v, %v; want it", got, err)
	}
	all, err := client.Get(t.Context(), "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range all.Kvs {
		if key := string(kv.Key); !strings.HasPrefix(key, datastore.Prefix+"/") && key != "compact_rev_key" {
			t.Errorf("key %q outside the plane's prefix", key)
		}
	}
}
