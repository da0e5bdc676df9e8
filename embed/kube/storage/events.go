package storage

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// quiet is a client whose events name no host: upstream signs them with the name of its own, which
// is the server's.
type quiet struct{ kubernetes.Interface }

func (c quiet) CoreV1() typedcorev1.CoreV1Interface { return quietCore{c.Interface.CoreV1()} }

type quietCore struct{ typedcorev1.CoreV1Interface }

func (c quietCore) Events(namespace string) typedcorev1.EventInterface {
	return quietEvents{c.CoreV1Interface.Events(namespace)}
}

type quietEvents struct{ typedcorev1.EventInterface }

// CreateWithEventNamespace is how upstream's recorders write. What is patched
// later is how often and when.
func (e quietEvents) CreateWithEventNamespace(event *corev1.Event) (*corev1.Event, error) {
	said := event.DeepCopy()
	said.Source = corev1.EventSource{Component: "multipaas"}
	said.ReportingController, said.ReportingInstance = "multipaas", ""
	return e.EventInterface.CreateWithEventNamespace(said)
}

// plain has errors say what the platform said, and no more: what upstream's controllers put into events and into the
// status of objects has gRPC's words around each sentence otherwise. They find codes as ever.
func plain(
	ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	err := invoke(ctx, method, req, reply, conn, opts...)
	if s, ok := status.FromError(err); ok && err != nil {
		return said{s}
	}
	return err
}

type said struct{ status *status.Status }

func (s said) Error() string              { return s.status.Message() }
func (s said) GRPCStatus() *status.Status { return s.status }
