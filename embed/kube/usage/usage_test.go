package usage

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/metrics-server/pkg/scraper"
)

// authority signs what the parties show each other.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "workspace"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	_, a.key, a.pem = a.issue(a.cert)
	return a
}

func (a *authority) issue(template *x509.Certificate) (pair tls.Certificate, key *ecdsa.PrivateKey, certPEM []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (a *authority) leaf(name string, usage x509.ExtKeyUsage, addresses ...string) *x509.Certificate {
	c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	for _, s := range addresses {
		c.IPAddresses = append(c.IPAddresses, net.ParseIP(s))
	}
	return c
}

// files are what the plane has on its disk.
func (a *authority) files(t *testing.T) Config {
	dir := t.TempDir()
	cfg := Config{CAFile: filepath.Join(dir, "ca.crt"), CertFile: filepath.Join(dir, "usage.crt"), KeyFile: filepath.Join(dir, "usage.key"),
		Machines: netip.MustParsePrefix("127.0.0.0/24")}
	_, key, cert := a.issue(a.leaf("multipaas:usage", x509.ExtKeyUsageClientAuth))
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{cfg.CAFile: a.pem, cfg.CertFile: cert, cfg.KeyFile: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cfg
}

// kubelet serves on 127.0.0.1 as a machine of the workspace does.
func (a *authority) kubelet(t *testing.T, answer http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(answer)
	pair, _, _ := a.issue(a.leaf("node", x509.ExtKeyUsageServerAuth, "127.0.0.1"))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func port(s *httptest.Server) int { return s.Listener.Addr().(*net.TCPAddr).Port }

func node(name, address string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}}}
}

func pod(namespace, name, node string, containers ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{NodeName: node}}
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: c})
	}
	return p
}

// watched is what the API server has, with objects in it.
func watched(t *testing.T, objects ...runtime.Object) informers.SharedInformerFactory {
	t.Helper()
	f := informers.NewSharedInformerFactory(fake.NewClientset(objects...), 0)
	f.Core().V1().Nodes().Informer()
	f.Core().V1().Pods().Informer()
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())
	return f
}

// said is what a kubelet tells of a second after it began to run: seconds of CPU,
// and bytes.
func said(second int) string {
	at := time.Date(2026, 1, 1, 0, 0, second, 0, time.UTC)
	var b strings.Builder
	fmt.Fprintf(&b, "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total %d %d\n", second, at.UnixMilli())
	fmt.Fprintf(&b, "node_memory_working_set_bytes 1e+08 %d\n", at.UnixMilli())
	for _, c := range []string{`container="main",namespace="a",pod="mine"`, `container="made-up",namespace="a",pod="mine"`, `container="main",namespace="a",pod="other"`, `container="main",namespace="b",pod="nobody"`} {
		fmt.Fprintf(&b, "container_cpu_usage_seconds_total{%s} %g %d\n", c, float64(second)/4, at.UnixMilli())
		fmt.Fprintf(&b, "container_memory_working_set_bytes{%s} 5e+06 %d\n", c, at.UnixMilli())
		fmt.Fprintf(&b, "container_start_time_seconds{%s} %d\n", c, at.Add(-time.Hour).Unix())
	}
	return b.String()
}

func TestUsage(t *testing.T) {
	a := newAuthority(t)
	var second atomic.Int32
	second.Store(10)
	var who atomic.Value
	s := a.kubelet(t, func(w http.ResponseWriter, r *http.Request) {
		who.Store(r.TLS.PeerCertificates[0].Subject.CommonName + " " + r.URL.Path)
		io.WriteString(w, said(int(second.Load())))
	})
	cfg := a.files(t)
	strange := node("n2", "10.9.9.9")
	f := watched(t, node("n1", "127.0.0.1"), strange, pod("a", "mine", "n1", "main"), pod("a", "other", "n2", "main"))
	u, err := New(cfg, f)
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKubelets(cfg, port(s), u.pods)
	if err != nil {
		t.Fatal(err)
	}
	u.scraper = scraper.NewScraper(u.nodes, k, patience, nil)
	if u.look(t.Context()) {
		t.Error("after one look it is known what a node uses")
	}
	if who.Load() != "multipaas:usage /metrics/resource" {
		t.Errorf("asked as %v", who.Load())
	}
	second.Add(20)
	if !u.look(t.Context()) {
		t.Error("after two looks it isn't known what the node uses")
	}
	nodes, err := u.storage.GetNodeMetrics(node("n1", ""), node("n2", ""))
	if err != nil || len(nodes) != 1 || nodes[0].Usage.Cpu().MilliValue() != 1000 || nodes[0].Usage.Memory().Value() != 1e8 {
		t.Errorf("nodes use %v, %v; want 1 core and 100 MB of n1", nodes, err)
	}
	pods, err := metadata{u.pods, ""}.ByNamespace("").List(labels.Everything())
	if err != nil || len(pods) != 2 {
		t.Fatalf("pods %v, %v; want both", pods, err)
	}
	var all []*metav1.PartialObjectMetadata
	for _, p := range pods {
		all = append(all, p.(*metav1.PartialObjectMetadata))
	}
	got, err := u.storage.GetPodMetrics(all...)
	if err != nil || len(got) != 1 || got[0].Name != "mine" || len(got[0].Containers) != 1 || got[0].Containers[0].Usage.Cpu().MilliValue() != 250 {
		t.Errorf("pods use %v, %v; want a quarter of a core by mine, of its one container, and nothing of a pod that isn't on the node", got, err)
	}
}

func TestPodsAreThoseOfTheNamespace(t *testing.T) {
	m := metadata{watched(t, pod("a", "x", ""), pod("b", "x", "")).Core().V1().Pods().Lister(), ""}
	if got, err := m.ByNamespace("a").List(labels.Everything()); err != nil || len(got) != 1 {
		t.Errorf("%v, %v; want the one of a", got, err)
	}
	if got, err := m.ByNamespace("a").List(labels.SelectorFromSet(labels.Set{"app": "y"})); err != nil || len(got) != 0 {
		t.Errorf("%v, %v; want none", got, err)
	}
	if got, err := m.ByNamespace("b").Get("x"); err != nil || got.(*metav1.PartialObjectMetadata).Namespace != "b" {
		t.Errorf("%v, %v; want b's", got, err)
	}
	for _, namespace := range []string{"", "c"} {
		if got, err := m.ByNamespace(namespace).Get("x"); err == nil {
			t.Errorf("in %q: %v", namespace, got)
		}
	}
}

// TestHostileKubelet: root in a machine answers what he likes.
func TestHostileKubelet(t *testing.T) {
	a := newAuthority(t)
	cfg := a.files(t)
	var elsewhere atomic.Int32
	other := a.kubelet(t, func(w http.ResponseWriter, _ *http.Request) {
		elsewhere.Add(1)
		io.WriteString(w, said(1))
	})
	line := strings.Repeat("x", 1000) + " 1\n"
	many := func(n int, each string) string { return strings.Repeat(each, n) }
	write := func(what string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, what) }
	}
	send := func(status int, location string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(status)
		}
	}
	there := other.URL + "/metrics/resource"
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   string // of the error; "": none
	}{
		{"redirect 301", send(301, there), "status 301"},
		{"redirect 302", send(302, there), "status 302"},
		{"redirect 303", send(303, there), "status 303"},
		{"redirect 307", send(307, there), "status 307"},
		{"redirect 308", send(308, there), "status 308"},
		{"redirect to the plane", send(302, "https://127.0.0.1:6443/api/v1/secrets"), "status 302"},
		{"redirect to plain HTTP", send(302, "http://127.0.0.1:80/"), "status 302"},
		{"refused", send(403, ""), "status 403"},
		{"no content", send(204, ""), "status 204"},
		{"hints first", func(w http.ResponseWriter, _ *http.Request) {
			for range 10 {
				w.WriteHeader(103)
			}
			w.WriteHeader(500)
		}, "status 500"},
		{"too long", write(many(maxAnswer/len(line)+1, line)), "too long"},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, line); err != nil {
					return
				}
			}
		}, "too long"},
		{"one line without an end", write(strings.Repeat("a", maxAnswer+1)), "too long"},
		{"long header", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 2*maxHeader))
		}, "header"},
		{"a thousand headers", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 10000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), "x")
			}
		}, "header"},
		{"silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline"},
		{"silent after a line", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, said(1))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, "deadline"},
		{"cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "node_cpu")
		}, "EOF"},
		{"packed", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
		}, "pars"},
		{"no labels", write("container_cpu_usage_seconds_total 1 1\n"), "can't be read"},
		{"empty labels", write("container_cpu_usage_seconds_total{} 1 1\n"), "can't be read"},
		{"one label too few", write(`container_memory_working_set_bytes{container="main",pod="mine"} 1 1` + "\n"), ""},
		{"no container", write(`container_start_time_seconds{pod="mine",namespace="a"} 1` + "\n"), ""},
		{"quotes", write(`container_cpu_usage_seconds_total{container="a\"b",pod="\"",namespace="\\"} 1 1` + "\n"), ""},
		{"label in label", write(`container_cpu_usage_seconds_total{x="container=",container="main",pod="mine",namespace="a"} 1 1` + "\n"), ""},
		{"nothing", write(""), ""},
		{"no end of line", write("node_cpu_usage_seconds_total 1"), ""},
		{"not text", write("\x00\xff\xfe\x01"), ""},
		{"not a number", write("node_cpu_usage_seconds_total NaN 1\nnode_memory_working_set_bytes -Inf 1\n"), ""},
		{"times", write("node_cpu_usage_seconds_total 1 -9223372036854775808\nnode_memory_working_set_bytes 1 9223372036854775807\n"), "pars"},
		{"the last day", write("node_cpu_usage_seconds_total 1 9223372036854775807\nnode_memory_working_set_bytes 1 9223372036854775807\n"), ""},
		{"negative", write("node_cpu_usage_seconds_total -5 1\nnode_memory_working_set_bytes -1e300 1\n"), ""},
		{"HTML", write("<html><body>go away</body></html>"), "pars"},
		{"100,000 pods", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 100000 {
				fmt.Fprintf(w, "container_cpu_usage_seconds_total{container=\"c\",pod=\"p%d\",namespace=\"a\"} 1 1\n", i)
			}
		}, "too long"},
		{"20,000 containers", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 20000 {
				fmt.Fprintf(w, "container_cpu_usage_seconds_total{container=\"c%d\",pod=\"mine\",namespace=\"a\"} 1 1\n", i)
				fmt.Fprintf(w, "container_memory_working_set_bytes{container=\"c%d\",pod=\"mine\",namespace=\"a\"} 1 1\n", i)
			}
		}, "too long"},
		{"5,000 containers", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 5000 {
				fmt.Fprintf(w, "container_cpu_usage_seconds_total{container=\"c%d\",pod=\"mine\",namespace=\"a\"} 1 1\n", i)
				fmt.Fprintf(w, "container_memory_working_set_bytes{container=\"c%d\",pod=\"mine\",namespace=\"a\"} 1 1\n", i)
			}
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k, err := newKubelets(cfg, port(a.kubelet(t, c.answer)), watched(t, pod("a", "mine", "n1", "main")).Core().V1().Pods().Lister())
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			if c.want == "deadline" {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			batch, err := k.GetMetrics(ctx, node("n1", "127.0.0.1"))
			switch {
			case c.want == "" && err != nil:
				t.Errorf("%v; want it read", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v; want %q", err, c.want)
			}
			if err != nil && batch != nil {
				t.Errorf("%v beside an error", batch)
			}
			if batch != nil {
				for name, p := range batch.Pods {
					if name.Name != "mine" || len(p.Containers) > 1 {
						t.Errorf("%s has %d containers; want what the pod has", name, len(p.Containers))
					}
				}
			}
		})
	}
	t.Cleanup(func() {
		if n := elsewhere.Load(); n > 0 {
			t.Errorf("another server was asked %d times", n)
		}
	})
}

// TestNodesLead: what a node says of itself leads nowhere but to a kubelet.
func TestNodesLead(t *testing.T) {
	a := newAuthority(t)
	var asked atomic.Value
	s := a.kubelet(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Path)
		io.WriteString(w, said(1))
	})
	k, err := newKubelets(a.files(t), port(s), watched(t).Core().V1().Pods().Lister())
	if err != nil {
		t.Fatal(err)
	}
	n := node("n1", "127.0.0.1")
	n.Annotations = map[string]string{"metrics.k8s.io/resource-metrics-path": "/exec/kube-system/x/y"}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = 1
	n.Status.Addresses = append([]corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "elsewhere.example"}, {Type: corev1.NodeExternalIP, Address: "192.0.2.1"}}, n.Status.Addresses...)
	if _, err := k.GetMetrics(t.Context(), n); err != nil || asked.Load() != "/metrics/resource" {
		t.Errorf("asked for %v, %v", asked.Load(), err)
	}
	for _, address := range []string{"", "127.0.1.1", "10.42.0.1", "172.30.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "127.0.0.1:6443", "127.0.0.1/x?", "127.0.0.01", "127.1", "2130706433",
		"localhost", "user@127.0.0.1", "127.0.0.1#", "169.254.169.254", "fe80::1%lo"} {
		if _, err := k.GetMetrics(t.Context(), node("n1", address)); err == nil || !strings.Contains(err.Error(), "is not one of a machine's") {
			t.Errorf("%q: %v", address, err)
		}
	}
	if _, err := k.GetMetrics(t.Context(), &corev1.Node{}); err == nil {
		t.Error("a node without an address was asked")
	}
	// Only who has a certificate of the workspace for that address.
	for name, template := range map[string]*x509.Certificate{
		"another's":  a.leaf("n", x509.ExtKeyUsageServerAuth, "127.0.0.2"),
		"a client's": a.leaf("system:node:n1", x509.ExtKeyUsageClientAuth, "127.0.0.1"),
	} {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		pair, _, _ := a.issue(template)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		s.StartTLS()
		k, err := newKubelets(a.files(t), port(s), watched(t).Core().V1().Pods().Lister())
		if err != nil {
			t.Fatal(err)
		}
		var invalid *tls.CertificateVerificationError
		if _, err := k.GetMetrics(t.Context(), node("n1", "127.0.0.1")); !errors.As(err, &invalid) {
			t.Errorf("with %s certificate: %v", name, err)
		}
		s.Close()
	}
	stranger := newAuthority(t).kubelet(t, func(http.ResponseWriter, *http.Request) {})
	k, err = newKubelets(a.files(t), port(stranger), watched(t).Core().V1().Pods().Lister())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.GetMetrics(t.Context(), node("n1", "127.0.0.1")); err == nil {
		t.Error("a stranger's server was asked")
	}
}

func TestNodesAreBounded(t *testing.T) {
	var objects []runtime.Object
	for i := range 2 * maxNodes {
		objects = append(objects, node(fmt.Sprint("n", i), "127.0.0.1"), node(fmt.Sprint("s", i), "10.0.0.1"))
	}
	m := machines{watched(t, objects...).Core().V1().Nodes().Lister(), netip.MustParsePrefix("127.0.0.0/24")}
	got, err := m.List(labels.Everything())
	if err != nil || len(got) != maxNodes {
		t.Errorf("%d nodes, %v; want %d", len(got), err, maxNodes)
	}
	for _, n := range got {
		if !strings.HasPrefix(n.Name, "n") {
			t.Errorf("%s is no machine", n.Name)
		}
	}
	// Those that wait for a place give up.
	k := &kubelets{machines: m.at, free: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.GetMetrics(ctx, got[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("without a place: %v", err)
	}
}

func TestConfigIsWhole(t *testing.T) {
	if _, err := New(Config{CAFile: "a", CertFile: "b", KeyFile: "c"}, watched(t)); err == nil {
		t.Error("without machines: accepted")
	}
	cfg := newAuthority(t).files(t)
	cfg.CAFile = filepath.Join(t.TempDir(), "none")
	if _, err := New(cfg, watched(t)); err == nil {
		t.Error("without an authority: accepted")
	}
}
