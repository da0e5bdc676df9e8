package dctest

import (
	"crypto/tls"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/multipaas/multipaas/appliance/pki"
)

// Etcd is root in the server's etcd, by a certificate of its authority.
func (d *Datacenter) Etcd(t testing.TB) *clientv3.Client {
	t.Helper()
	ca, err := pki.LoadOrCreateCA(d.Server.Data("pki", "etcd"), "")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.Request{CommonName: "root", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{"unixs://" + d.Server.Root("run", "multipaas", "etcd.sock")},
		DialTimeout: 10 * time.Second,
		TLS: &tls.Config{
			MinVersion:   tls.VersionTLS13,
			RootCAs:      ca.Pool(),
			Certificates: []tls.Certificate{pair},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}
