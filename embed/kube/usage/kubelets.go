package usage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
	"sigs.k8s.io/metrics-server/pkg/scraper/client"
	"sigs.k8s.io/metrics-server/pkg/scraper/client/resource"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

const (
	// kubeletPort is every kubelet's. A node may name another in its status, and
	// with it something else that has a certificate of the workspace.
	kubeletPort = 10250
	// maxAnswer is what a kubelet may say: some 250 bytes in each of 5 lines per
	// container, of 110 pods with 15 containers.
	maxAnswer = 2 << 20
	// maxHeader is what its answer's header may have.
	maxHeader = 16 << 10
	// places is how many are asked at a time, which bounds the room of their answers.
	places = 16
)

// kubelets asks kubelets by metrics-server's own client, within bounds.
type kubelets struct {
	inner    client.KubeletMetricsGetter
	pods     corelisters.PodLister
	machines netip.Prefix
	free     chan struct{}
}

func newKubelets(cfg Config, port int, pods corelisters.PodLister) (*kubelets, error) {
	roots, err := certutil.NewPool(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	inner, err := resource.NewForConfig(&client.KubeletClientConfig{
		Client: rest.Config{Timeout: patience, Transport: bounded{&http.Transport{
			DialContext: (&net.Dialer{Timeout: patience}).DialContext,
			TLSClientConfig: &tls.Config{
				MinVersion: tls.VersionTLS12,
				RootCAs:    roots,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
					return &pair, err
				},
			},
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true, // a small answer stays small
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        3 * every,
		}}},
		AddressTypePriority: []corev1.NodeAddressType{corev1.NodeInternalIP},
		Scheme:              "https",
		DefaultPort:         port,
	})
	if err != nil {
		return nil, err
	}
	return &kubelets{inner: inner, pods: pods, machines: cfg.Machines, free: make(chan struct{}, places)}, nil
}

// GetMetrics asks a node's kubelet. It is safe for concurrent use and waits for
// its turn; an error, never a panic, is what becomes of an answer that can't be read.
func (k *kubelets) GetMetrics(ctx context.Context, node *corev1.Node) (batch *storage.MetricsBatch, err error) {
	at, err := address(node, k.machines)
	if err != nil {
		return nil, err
	}
	select {
	case k.free <- struct{}{}:
		defer func() { <-k.free }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// The client's decoder takes for granted that each line has the labels it looks for.
	defer func() {
		if wrong := recover(); wrong != nil {
			batch, err = nil, fmt.Errorf("its kubelet's answer can't be read: %v", wrong)
		}
	}()
	// A node of ours: with annotations the tenant's would have another path asked for.
	batch, err = k.inner.GetMetrics(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: node.Name},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: at}}},
	})
	if err == nil {
		// Our own goodbye makes some end their answer, and what of it was on its way reads as the end.
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	k.prune(batch, node.Name)
	return batch, nil
}

// prune leaves the pods that are bound to the node, with the containers they have.
func (k *kubelets) prune(batch *storage.MetricsBatch, node string) {
	for name, point := range batch.Pods {
		pod, err := k.pods.Pods(name.Namespace).Get(name.Name)
		if err != nil || pod.Spec.NodeName != node {
			delete(batch.Pods, name)
			continue
		}
		for container := range point.Containers {
			if !has(&pod.Spec, container) {
				delete(point.Containers, container)
			}
		}
	}
}

func has(pod *corev1.PodSpec, container string) bool {
	for _, c := range pod.Containers {
		if c.Name == container {
			return true
		}
	}
	for _, c := range pod.InitContainers {
		if c.Name == container {
			return true
		}
	}
	for _, c := range pod.EphemeralContainers {
		if c.Name == container {
			return true
		}
	}
	return false
}

// bounded is a transport for which anything but a whole answer of some size is an
// error. A redirect is one, too: it would be followed with our certificate.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("its kubelet answers with status %d", resp.StatusCode)
	}
	resp.Body = &atMost{resp.Body, maxAnswer}
	return resp, nil
}

var errTooLong = errors.New("its kubelet's answer is too long")

// atMost reads so much, and an error if there is more.
type atMost struct {
	io.ReadCloser
	left int
}

func (a *atMost) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p[:min(len(p), a.left+1)])
	if n > a.left {
		return a.left, errTooLong
	}
	a.left -= n
	return n, err
}
