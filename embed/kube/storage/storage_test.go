package storage

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestNobodyAnswers: without anybody at the socket it waits, and ends when it shall. What it does
// for claims is tried with a whole plane (embed/plane).
func TestNobodyAnswers(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Run(ctx, Config{Socket: filepath.Join(t.TempDir(), "none"), Kubeconfig: "none"})
	}()
	select {
	case <-ended:
		t.Error("it ended by itself")
	case <-time.After(100 * time.Millisecond):
	}
	cancel()
	<-ended
}

type stranger struct {
	csi.UnimplementedIdentityServer
}

func (stranger) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: "d.example"}, nil
}

func TestAnotherAnswers(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, stranger{})
	go func() { _ = server.Serve(ln) }()
	defer server.Stop()
	if err := serve(t.Context(), Config{Socket: socket}); err == nil || !strings.Contains(err.Error(), "d.example") {
		t.Errorf("got %v", err)
	}
}

// TestPlain: what the platform says comes without gRPC's words, and with its code.
func TestPlain(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(context.Context, any, *grpc.UnaryServerInfo, grpc.UnaryHandler) (any, error) {
		return nil, status.Error(codes.ResourceExhausted, "the host is full")
	}))
	csi.RegisterControllerServer(server, csi.UnimplementedControllerServer{})
	go func() { _ = server.Serve(ln) }()
	defer server.Stop()
	conn, err := dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = csi.NewControllerClient(conn).CreateVolume(t.Context(), &csi.CreateVolumeRequest{})
	if err == nil || err.Error() != "the host is full" || status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v, code %v", err, status.Code(err))
	}
}

// TestEvents: they don't name the server that wrote them.
func TestEvents(t *testing.T) {
	loud := fake.NewClientset()
	_, err := quiet{loud}.CoreV1().Events("").CreateWithEventNamespace(&corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "default"},
		Message: "failed to provision: the host is full", Source: corev1.EventSource{Component: "x_server-1_uuid", Host: "server-1"},
		ReportingController: "x_server-1_uuid", ReportingInstance: "server-1"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := loud.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(got.Items) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	if e := got.Items[0]; e.Message != "failed to provision: the host is full" || strings.Contains(e.String(), "server-1") {
		t.Errorf("%+v", e)
	}
}

func TestLean(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m1", Labels: map[string]string{"a": "b"}, ManagedFields: []metav1.ManagedFieldsEntry{{}}},
		Status: corev1.NodeStatus{Images: []corev1.ContainerImage{{}}}}
	got, err := lean(node)
	if n, ok := got.(*corev1.Node); err != nil || !ok || n.Labels["a"] != "b" || n.ManagedFields != nil || n.Status.Images != nil {
		t.Errorf("%+v, %v", got, err)
	}
}
