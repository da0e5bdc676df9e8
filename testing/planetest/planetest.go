// Package planetest runs real control planes for tests of modules: the payload's program,
// with a datastore of its own, in a network namespace of its own.
package planetest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/appliance/child"
	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/testpki"
)

// Start runs a plane until the test ends, and returns how to reach it with every right. It
// serves when it returns. The test's package is two folders below the project's.
func Start(t testing.TB) *rest.Config {
	t.Helper()
	kube := os.Getenv("MULTIPAAS_KUBE")
	if kube == "" {
		kube = filepath.Join("..", "..", "dist", "payload", "kube", "1.36", "kube")
	}
	kube, err := filepath.Abs(kube)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kube); err != nil {
		t.Fatalf("no kube binary: run `make` or set MULTIPAAS_KUBE: %v", err)
	}
	var random [4]byte
	_, _ = rand.Read(random[:])
	name := "mpt-plane-" + hex.EncodeToString(random[:])
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ns.Close()
		if err := netns.Remove(name); err != nil {
			t.Error(err)
		}
	})

	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(in(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca := testpki.New(t)
	write("ca.crt", ca.CertPEM())
	issue := func(file string, r pki.Request) (certPEM, keyPEM []byte) {
		t.Helper()
		certPEM, keyPEM, err := ca.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		write(file+".crt", certPEM)
		write(file+".key", keyPEM)
		return certPEM, keyPEM
	}
	issue("apiserver", pki.Request{CommonName: "kube-apiserver", Server: true,
		Hosts: []string{"127.0.0.1", "kubernetes.default.svc"}})
	certPEM, keyPEM := issue("admin", pki.Request{CommonName: "multipaas:platform",
		Organizations: []string{"system:masters"}, Client: true})
	issue("usage", pki.Request{CommonName: "multipaas:usage", Client: true})
	saKey, err := pki.NewServiceAccountKey()
	if err != nil {
		t.Fatal(err)
	}
	write("sa.key", saKey)
	write("level", []byte("baseline\n"))
	toJSON := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	type object = map[string]any
	const url = "https://127.0.0.1:6443"
	for _, part := range []string{"controller-manager", "scheduler"} {
		issue(part, pki.Request{CommonName: "system:kube-" + part, Client: true})
		write(part+".kubeconfig", toJSON(object{
			"apiVersion": "v1", "kind": "Config", "current-context": "c",
			"clusters": []object{{"name": "c", "cluster": object{"server": url, "certificate-authority": in("ca.crt")}}},
			"users":    []object{{"name": "u", "user": object{"client-certificate": in(part + ".crt"), "client-key": in(part + ".key")}}},
			"contexts": []object{{"name": "c", "context": object{"cluster": "c", "user": "u"}}},
		}))
	}
	flags := func(part string) []string {
		return []string{"--kubeconfig=" + in(part+".kubeconfig"), "--secure-port=0", "--leader-elect=false",
			"--kube-api-qps=500", "--kube-api-burst=1000"}
	}
	write("plane.json", toJSON(object{
		"kine": object{"socket": in("kine"),
			"endpoint": "sqlite://" + in("db") +
				"?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&cache=shared"},
		"apiserver": []string{"--bind-address=127.0.0.1", "--secure-port=6443", "--advertise-address=127.0.0.1",
			"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.43.0.0/16",
			"--tls-cert-file=" + in("apiserver.crt"), "--tls-private-key-file=" + in("apiserver.key"),
			"--client-ca-file=" + in("ca.crt"), "--authorization-mode=Node,RBAC", "--feature-gates=MutablePVNodeAffinity=true",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + in("sa.key"), "--service-account-signing-key-file=" + in("sa.key"),
			"--etcd-servers=unix://" + in("kine")},
		"controllerManager": append(flags("controller-manager"), "--use-service-account-credentials=true",
			"--service-account-private-key-file="+in("sa.key"), "--root-ca-file="+in("ca.crt"), "--controller-shutdown-timeout=4s"),
		"scheduler": flags("scheduler"),
		"readyURL":  url + "/readyz", "readyCA": in("ca.crt"),
		"usage": object{"caFile": in("ca.crt"), "certFile": in("usage.crt"), "keyFile": in("usage.key"), "machines": "172.30.0.0/20"},
		"guard": object{"levelFile": in("level"), "machinesFile": in("machines"), "platformUser": "multipaas:platform"},
	}))

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca.CertPEM())
	check := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: ns.DialContext, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool},
	}}
	process := child.New(child.Config{
		Name: name, Path: kube, Args: []string{"plane", "--config", in("plane.json")},
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Dir: dir, Netns: ns.Path(), LogFile: in("log"), StopTimeout: 22 * time.Second,
		Ready: func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
			if err != nil {
				return err
			}
			resp, err := check.Do(req)
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			return nil
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ready, over := make(chan struct{}), make(chan error, 1)
	go func() { over <- process.Run(ctx, sync.OnceFunc(func() { close(ready) }), nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			data, _ := os.ReadFile(in("log"))
			t.Logf("%s", data[max(0, len(data)-4000):])
		}
	})
	select {
	case <-ready:
	case <-time.After(time.Minute):
		t.Fatal("the plane isn't ready after a minute")
	}
	return &rest.Config{Host: url, Dial: ns.DialContext, QPS: 500, Burst: 500,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.CertPEM(), CertData: certPEM, KeyData: keyPEM}}
}
