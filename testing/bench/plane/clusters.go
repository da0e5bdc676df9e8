package plane

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/embed/plane"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

func quantity(s string) resource.Quantity { return resource.MustParse(s) }

const services = "10.43.0.0/16"

var address = netip.MustParseAddr("172.30.0.1")

// place is a folder and a network namespace for one cluster.
type place struct {
	dir string
	ns  *netns.NS
}

func newPlace(env *measure.Env, name string) (place, error) {
	var random [4]byte
	_, _ = rand.Read(random[:])
	id := name + "-" + hex.EncodeToString(random[:])
	p := place{dir: filepath.Join(env.Dir, id)}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return p, err
	}
	var err error
	p.ns, err = netns.Create("mpbench-" + id)
	return p, err
}

func (p place) Remove() error {
	return errors.Join(p.ns.Close(), netns.Remove(p.ns.Name()), os.RemoveAll(p.dir))
}

// ours is a plane as a server runs it.
type ours struct {
	place
	cfg   plane.Config
	plane *plane.Plane
	stop  func() error
}

func newOurs(env *measure.Env, kube, name string) (*ours, error) {
	p, err := newPlace(env, name)
	if err != nil {
		return nil, err
	}
	o := &ours{place: p, stop: func() error { return nil }}
	var keys plane.Keys
	var errs [4]error
	keys.CACert, keys.CAKey, errs[0] = pki.NewCA("workspace")
	keys.FrontProxyCACert, keys.FrontProxyCAKey, errs[1] = pki.NewCA("front proxy")
	keys.SigningCACert, keys.SigningCAKey, errs[2] = pki.NewCA("signing")
	keys.ServiceAccountKey, errs[3] = pki.NewServiceAccountKey()
	keys.EncryptionKey = make([]byte, 32)
	_, _ = rand.Read(keys.EncryptionKey)
	o.cfg = plane.Config{ID: filepath.Base(p.dir), Binary: kube, Dir: filepath.Join(p.dir, "plane"), Netns: p.ns.Path(), Dial: p.ns.DialContext,
		Plan: plane.Plan{Services: netip.MustParsePrefix(services), Machines: netip.PrefixFrom(address, 20), Plane: address},
		Keys: keys}
	o.plane = plane.New(o.cfg)
	return o, errors.Join(errs[:]...)
}

func (o *ours) Start(ctx context.Context) error {
	o.plane = plane.New(o.cfg)
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- o.plane.Run(ctx, func() {}, nil) }()
	o.stop = func() error { cancel(); o.stop = func() error { return nil }; return <-ended }
	for o.plane.PID() == 0 {
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("plane: %w", err)
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (o *ours) Stop() error { return o.stop() }

func (o *ours) PIDs() []int { return []int{o.plane.PID()} }

func (o *ours) Client() *rest.Config { return o.plane.RESTConfig() }

// stock is upstream's components, each a process.
type stock struct {
	place
	env      *measure.Env
	peers    string
	ca       *pki.CA
	children []*measure.Child
}

func newStock(env *measure.Env, peers, name string) (*stock, error) {
	p, err := newPlace(env, name)
	if err != nil {
		return nil, err
	}
	s := &stock{place: p, env: env, peers: peers}
	return s, s.files()
}

// files writes certificates and kubeconfigs: keys of the same type as ours.
func (s *stock) files() error {
	caCert, caKey, err := pki.NewCA("stock")
	if err != nil {
		return err
	}
	if s.ca, err = pki.ParseCA(caCert, caKey); err != nil {
		return err
	}
	account, err := pki.NewServiceAccountKey()
	if err != nil {
		return err
	}
	for file, data := range map[string][]byte{"ca.crt": caCert, "ca.key": caKey, "sa.key": account} {
		if err := os.WriteFile(s.path(file), data, 0o600); err != nil {
			return err
		}
	}
	hosts := []string{"127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc", address.String()}
	for name, r := range map[string]pki.Request{
		"apiserver":          {CommonName: "kube-apiserver", Server: true, Hosts: hosts},
		"etcd":               {CommonName: "etcd", Server: true, Client: true, Hosts: hosts},
		"etcd-client":        {CommonName: "kube-apiserver-etcd-client", Client: true},
		"kubelet-client":     {CommonName: "kube-apiserver-kubelet-client", Organizations: []string{"system:masters"}, Client: true},
		"front-proxy-client": {CommonName: "front-proxy-client", Client: true},
		"admin":              {CommonName: "admin", Organizations: []string{"system:masters"}, Client: true},
		"controller-manager": {CommonName: "system:kube-controller-manager", Client: true},
		"scheduler":          {CommonName: "system:kube-scheduler", Client: true},
	} {
		cert, key, err := s.ca.Issue(r)
		if err != nil {
			return err
		}
		if err := pki.WriteFiles(s.path(name+".crt"), s.path(name+".key"), cert, key); err != nil {
			return err
		}
	}
	for _, name := range []string{"controller-manager", "scheduler"} {
		type object = map[string]any
		data, err := json.Marshal(object{"apiVersion": "v1", "kind": "Config", "current-context": "c",
			"clusters": []object{{"name": "c", "cluster": object{"server": "https://127.0.0.1:6443", "certificate-authority": s.path("ca.crt")}}},
			"users":    []object{{"name": "u", "user": object{"client-certificate": s.path(name + ".crt"), "client-key": s.path(name + ".key")}}},
			"contexts": []object{{"name": "c", "context": object{"cluster": "c", "user": "u"}}}})
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.path(name+".kubeconfig"), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *stock) path(name string) string { return filepath.Join(s.dir, name) }

// commands are what Kamaji and kubeadm start, in their order.
func (s *stock) commands() [][]string {
	p := s.path
	return [][]string{
		etcdCommand(p),
		{"kube-apiserver", "--advertise-address=" + address.String(), "--secure-port=6443", "--allow-privileged=true", "--authorization-mode=Node,RBAC",
			"--client-ca-file=" + p("ca.crt"), "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth=true",
			"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile=" + p("ca.crt"), "--etcd-certfile=" + p("etcd-client.crt"), "--etcd-keyfile=" + p("etcd-client.key"),
			"--kubelet-client-certificate=" + p("kubelet-client.crt"), "--kubelet-client-key=" + p("kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
			"--proxy-client-cert-file=" + p("front-proxy-client.crt"), "--proxy-client-key-file=" + p("front-proxy-client.key"),
			"--requestheader-allowed-names=front-proxy-client", "--requestheader-client-ca-file=" + p("ca.crt"),
			"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + p("sa.key"), "--service-account-signing-key-file=" + p("sa.key"),
			"--service-cluster-ip-range=" + services, "--tls-cert-file=" + p("apiserver.crt"), "--tls-private-key-file=" + p("apiserver.key")},
		{"kube-controller-manager", "--kubeconfig=" + p("controller-manager.kubeconfig"), "--authentication-kubeconfig=" + p("controller-manager.kubeconfig"),
			"--authorization-kubeconfig=" + p("controller-manager.kubeconfig"), "--bind-address=127.0.0.1", "--leader-elect=true", "--use-service-account-credentials=true",
			"--client-ca-file=" + p("ca.crt"), "--requestheader-client-ca-file=" + p("ca.crt"), "--root-ca-file=" + p("ca.crt"),
			"--cluster-signing-cert-file=" + p("ca.crt"), "--cluster-signing-key-file=" + p("ca.key"), "--service-account-private-key-file=" + p("sa.key"),
			"--controllers=*,bootstrapsigner,tokencleaner"},
		{"kube-scheduler", "--kubeconfig=" + p("scheduler.kubeconfig"), "--authentication-kubeconfig=" + p("scheduler.kubeconfig"),
			"--authorization-kubeconfig=" + p("scheduler.kubeconfig"), "--bind-address=127.0.0.1", "--leader-elect=true"},
	}
}

// etcdCommand is that of an etcd alone, which takes clients of its authority.
func etcdCommand(p func(name string) string) []string {
	return []string{"etcd", "--data-dir=" + p("etcd"), "--name=etcd",
		"--listen-client-urls=https://127.0.0.1:2379", "--advertise-client-urls=https://127.0.0.1:2379",
		"--listen-peer-urls=https://127.0.0.1:2380", "--initial-advertise-peer-urls=https://127.0.0.1:2380", "--initial-cluster=etcd=https://127.0.0.1:2380",
		"--cert-file=" + p("etcd.crt"), "--key-file=" + p("etcd.key"), "--trusted-ca-file=" + p("ca.crt"), "--client-cert-auth=true",
		"--peer-cert-file=" + p("etcd.crt"), "--peer-key-file=" + p("etcd.key"), "--peer-trusted-ca-file=" + p("ca.crt"), "--peer-client-cert-auth=true"}
}

// Start starts all at once; a manager does so too.
func (s *stock) Start(ctx context.Context) error {
	net := &measure.Net{NS: s.ns}
	for _, args := range s.commands() {
		name := args[0]
		args[0] = filepath.Join(s.peers, name)
		c, err := measure.Start(s.env, filepath.Base(s.dir)+"-"+name, net.Command(ctx, nil, args...))
		if err != nil {
			return err
		}
		s.children = append(s.children, c)
	}
	return nil
}

// Stop stops them in the reverse order.
func (s *stock) Stop() error {
	var errs []error
	for i := len(s.children) - 1; i >= 0; i-- {
		errs = append(errs, s.children[i].Stop())
	}
	s.children = nil
	return errors.Join(errs...)
}

func (s *stock) PIDs() (pids []int) {
	for _, c := range s.children {
		pids = append(pids, c.PID)
	}
	return pids
}

func (s *stock) Client() *rest.Config {
	return &rest.Config{Host: "https://127.0.0.1:6443", Dial: s.ns.DialContext, QPS: 100, Burst: 200,
		TLSClientConfig: rest.TLSClientConfig{CAData: bytes.Clone(s.ca.CertPEM()), CertFile: s.path("admin.crt"), KeyFile: s.path("admin.key")}}
}

// oursOnEtcd is a plane that keeps its objects in an etcd instead of kine: the
// same program as upstream's has, with the same flags.
type oursOnEtcd struct {
	*ours
	env   *measure.Env
	peers string
	etcd  *measure.Child
}

func newOursOnEtcd(env *measure.Env, kube, peers, name string) (*oursOnEtcd, error) {
	o, err := newOurs(env, kube, name)
	if err != nil {
		return nil, err
	}
	ca, err := pki.LoadOrCreateCA(filepath.Join(o.dir, "ca"), "etcd")
	if err != nil {
		return nil, err
	}
	path := func(name string) string { return filepath.Join(o.dir, name) }
	for name, r := range map[string]pki.Request{
		"etcd":        {CommonName: "etcd", Server: true, Client: true, Hosts: []string{"127.0.0.1"}},
		"etcd-client": {CommonName: "plane", Client: true},
	} {
		cert, key, err := ca.Issue(r)
		if err != nil {
			return nil, err
		}
		if err := pki.WriteFiles(path(name+".crt"), path(name+".key"), cert, key); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(path("ca.crt"), ca.CertPEM(), 0o600); err != nil {
		return nil, err
	}
	o.cfg.Datastore = plane.Datastore{Kind: plane.Etcd, Etcd: plane.EtcdDatastore{Endpoints: []string{"https://127.0.0.1:2379"},
		CAFile: path("ca.crt"), CertFile: path("etcd-client.crt"), KeyFile: path("etcd-client.key"), Prefix: "/planes/00002a"}}
	return &oursOnEtcd{ours: o, env: env, peers: peers}, nil
}

func (o *oursOnEtcd) Start(ctx context.Context) error {
	args := etcdCommand(func(name string) string { return filepath.Join(o.dir, name) })
	args[0] = filepath.Join(o.peers, args[0])
	var err error
	o.etcd, err = measure.Start(o.env, filepath.Base(o.dir)+"-etcd", (&measure.Net{NS: o.ns}).Command(ctx, nil, args...))
	if err != nil {
		return err
	}
	return o.ours.Start(ctx)
}

func (o *oursOnEtcd) Stop() error {
	err := o.ours.Stop()
	if o.etcd != nil {
		err = errors.Join(err, o.etcd.Stop())
		o.etcd = nil
	}
	return err
}

func (o *oursOnEtcd) PIDs() []int { return append(o.ours.PIDs(), o.etcd.PID) }
