package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
)

// byName is at a desk where the names below the domain resolve: the kubeconfig that is
// written there names the cluster itself, so that clients get along that know no
// tls-server-name. Where they lead elsewhere, or nowhere, it names the server as ever.
func (d *suite) byName(t *testing.T) {
	var ws struct{ Status struct{ APIHost string } }
	if err := json.Unmarshal([]byte(d.Must(t, owner, "ws", "show", datacenter.Workspace, "-o", "json")), &ws); err != nil || ws.Status.APIHost == "" {
		t.Fatal(ws, err)
	}
	name := ws.Status.APIHost
	// at runs a command of the client's at a desk with these hosts.
	at := func(hosts string, args ...string) dctest.Result {
		t.Helper()
		file := filepath.Join(t.TempDir(), "hosts")
		if err := os.WriteFile(file, []byte("127.0.0.1 localhost\n"+hosts), 0o644); err != nil {
			t.Fatal(err)
		}
		line := append([]string{"unshare", "-m", "--propagation", "private", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, file, d.Binary}, args...)
		return dctest.Run(t, []string{"MP_CONFIG=" + filepath.Join(d.Dir, "mp-"+owner)}, "", line...)
	}
	known := fmt.Sprintf("%s %s\n", d.Server.Address(), name)
	other := fmt.Sprintf("%s %s\n", d.Nodes[0].Address(), name) // nobody listens there
	for _, c := range []struct{ what, hosts, want string }{
		{"the name is known", known, "https://" + name + ":6443"},
		{"the name leads elsewhere", other, fmt.Sprintf("https://%s:6443", d.Server.Address())},
		{"the name is unknown", "", fmt.Sprintf("https://%s:6443", d.Server.Address())},
	} {
		r := at(c.hosts, "mp", "cluster", "config-kubectl", datacenter.Workspace, "--file", "-")
		config, err := clientcmd.Load([]byte(r.Out))
		if r.Code != 0 || err != nil || len(config.Clusters) != 1 {
			t.Fatalf("%s: %v: %s", c.what, err, r)
		}
		for _, cluster := range config.Clusters {
			byItsName := c.hosts == known
			if cluster.Server != c.want || (cluster.TLSServerName == "") != byItsName || cluster.InsecureSkipTLSVerify || len(cluster.CertificateAuthorityData) == 0 {
				t.Errorf("%s: server %s, tls-server-name %q; want %s", c.what, cluster.Server, cluster.TLSServerName, c.want)
			}
		}
		file := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(file, []byte(r.Out), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := at(c.hosts, "kubectl", "--kubeconfig", file, "get", "--raw", "/readyz"); r.Code != 0 || strings.TrimSpace(r.Out) != "ok" {
			t.Errorf("%s: kubectl: %s", c.what, r)
		}
		if c.hosts != known {
			continue
		}
		// Who forgets the rest of the file gets along too.
		if r := at(c.hosts, "kubectl", "--kubeconfig", file, "--server", c.want, "get", "namespaces", "-o", "name"); r.Code != 0 || !strings.Contains(r.Out, "namespace/default") {
			t.Errorf("with a server beside the file: %s", r)
		}
		// It is verified: under the name of another nobody is taken for the cluster.
		_, domain, _ := strings.Cut(name, ".")
		stranger := "ffffff." + domain
		if r := at(fmt.Sprintf("%s %s\n", d.Server.Address(), stranger), "kubectl", "--kubeconfig", file, "--server", "https://"+stranger+":6443", "get", "--raw", "/readyz"); r.Code == 0 {
			t.Errorf("by the name of another cluster: %s", r)
		}
	}
}
