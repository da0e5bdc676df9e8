package plane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/appliance/netns"
	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/wait"
)

// kubelet is as much of a machine as a plane asks for what its pods use.
type kubelet struct {
	address string
	began   time.Time
	asked   atomic.Value // the name in the certificate, and the path
}

func newKubelet(t *testing.T, ns *netns.NS, cfg Config) *kubelet {
	t.Helper()
	k := &kubelet{address: cfg.Plan.Machines.Addr().Next().String(), began: time.Now()}
	ca, err := pki.ParseCA(cfg.Keys.CACert, cfg.Keys.CAKey)
	if err != nil {
		t.Fatal(err)
	}
	certPEM, keyPEM, err := ca.Issue(pki.Request{CommonName: "system:node:m1", Server: true, Hosts: []string{k.address}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cfg.Keys.CACert)
	ln, err := ns.Listen("tcp", k.address+":10250")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: k, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert}}
	go func() { _ = server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { server.Close() })
	return k
}

// ServeHTTP says that half a core is used, a quarter of it by the pod.
func (k *kubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.asked.Store(r.TLS.PeerCertificates[0].Subject.CommonName + " " + r.URL.Path)
	now, used := time.Now().UnixMilli(), time.Since(k.began).Seconds()
	const labels = `{container="main",namespace="default",pod="busy"}`
	fmt.Fprintf(w, "node_cpu_usage_seconds_total %f %d\nnode_memory_working_set_bytes 104857600 %d\n", used/2, now, now)
	fmt.Fprintf(w, "container_cpu_usage_seconds_total%s %f %d\ncontainer_memory_working_set_bytes%s 10485760 %d\ncontainer_start_time_seconds%s %d\n",
		labels, used/4, now, labels, now, labels, k.began.Unix())
}

func (k *kubelet) join(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m1"}}
	if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// Applied: the node's controllers write to it as well.
	status := applycorev1.Node("m1").WithStatus(applycorev1.NodeStatus().
		WithAddresses(applycorev1.NodeAddress().WithType(corev1.NodeInternalIP).WithAddress(k.address)).
		WithAllocatable(corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("200Mi")}))
	if _, err := client.CoreV1().Nodes().ApplyStatus(t.Context(), status, metav1.ApplyOptions{FieldManager: "kubelet"}); err != nil {
		t.Fatal(err)
	}
	busy := pod("busy", func(s *corev1.PodSpec) { s.NodeName = "m1" })
	if _, err := client.CoreV1().Pods("default").Create(t.Context(), busy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// furnish applies what embed/manifests has about words.
func furnish(s *shell, words ...string) {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "manifests", "cluster.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		about := slices.ContainsFunc(words, func(word string) bool { return strings.Contains(doc, word) })
		if about && !strings.Contains(doc, "{{") {
			s.want(true, "", doc, "apply", "-f", "-")
		}
	}
}

// testUsage is what people look at, and the rights of who asks kubelets for it.
func testUsage(t *testing.T, s *shell, client kubernetes.Interface, k *kubelet) {
	for _, c := range []struct{ what, want string }{{"top nodes", "25%"}, {"top pods", "10Mi"}} {
		wait.For(t, wait.Patience, c.what, func(context.Context) error {
			if out, err := s.kubectl("", strings.Fields(c.what)...); err != nil || !strings.Contains(out, c.want) {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	if k.asked.Load() != "multipaas:usage /metrics/resource" {
		t.Errorf("the kubelet was asked as %v", k.asked.Load())
	}
	s.want(true, "NodeMetrics", "", "api-resources", "--api-group=metrics.k8s.io")
	s.want(true, "main", "", "top", "pod", "busy", "--containers")
	s.want(false, "not found", "", "get", "podmetrics", "none")
	s.want(true, "resource usage metrics of a container", "", "explain", "podmetrics.containers")
	for what, want := range map[string]bool{"/metrics get": true, "/proxy get": false, "/metrics create": false, " list": false} {
		sub, verb, _ := strings.Cut(what, " ")
		review, err := client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: usageUser, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Resource: "nodes", Subresource: strings.Trim(sub, "/"), Name: "m1"}}}, metav1.CreateOptions{})
		if err != nil || review.Status.Allowed != want {
			t.Errorf("%s may %s: %v, %v", usageUser, what, review.Status.Allowed, err)
		}
	}
	// A tenant's own metrics-server serves instead, and ours again once it is gone.
	s.want(true, "patched", "", "patch", "apiservice", "v1beta1.metrics.k8s.io", "--type=merge", "-p", `{"spec": {"service": {"namespace": "kube-system", "name": "his"}, "insecureSkipTLSVerify": true}}`)
	const all = "/apis/metrics.k8s.io/v1beta1/nodes"
	wait.For(t, wait.Patience, "the tenant's own", func(context.Context) error {
		if out, err := s.kubectl("", "get", "--raw", all); err == nil {
			return fmt.Errorf("still ours: %s", out)
		}
		return nil
	})
	s.want(true, "patched", "", "patch", "apiservice", "v1beta1.metrics.k8s.io", "--type=merge", "-p", `{"spec": {"service": null, "insecureSkipTLSVerify": null}}`)
	wait.For(t, wait.Patience, "ours again", func(context.Context) error {
		if out, err := s.kubectl("", "get", "--raw", all); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
