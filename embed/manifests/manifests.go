// Package manifests holds what every workspace's cluster gets at birth: cluster
// DNS and the bindings of the platform's groups to Kubernetes roles. It renders
// YAML documents and applies nothing. Only package appliance imports it.
package manifests

import (
	"bytes"
	_ "embed"
	"fmt"
	"text/template"
)

//go:embed cluster.yaml
var cluster string

// Values are what differs between clusters.
type Values struct {
	DNSAddress  string // cluster IP of the DNS service
	DNSReplicas int
	DNSImage    string
	Domain      string // cluster domain, "cluster.local"
}

// Cluster renders the documents, in the order in which they are to be applied.
func Cluster(v Values) ([]byte, error) {
	t, err := template.New("cluster.yaml").Option("missingkey=error").Parse(cluster)
	if err != nil {
		return nil, fmt.Errorf("cluster.yaml: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("cluster.yaml: %w", err)
	}
	return b.Bytes(), nil
}
