package storage

import (
	"regexp"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// quiet is a client whose events say what the platform said, and no more: upstream signs
// them with the name of the host, which is the server's, and wraps each sentence in gRPC's words.
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
	said.Message = grpcWords.ReplaceAllString(said.Message, "")
	return e.EventInterface.CreateWithEventNamespace(said)
}

var grpcWords = regexp.MustCompile(`rpc error: code = \w+ desc = `)
