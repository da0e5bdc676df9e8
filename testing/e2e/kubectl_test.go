package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

// testKubectl uses a workspace's API as its people do, and as others must not.
func testKubectl(t *testing.T, d *suite) {
	probe := d.Probe(t)
	// It looks each 15 s only: the others go on meanwhile.
	d.Apply(t, autoscaler)
	defer d.Kubectl(t, "delete", "hpa", "-n", "kube-system", "coredns")
	t.Run("two nodes are Ready", func(t *testing.T) { d.NodesReady(t, 2) })
	t.Run("no secret in the kubeconfig", func(t *testing.T) {
		data, err := os.ReadFile(d.Kubeconfig())
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"token:", "client-key", "password"} {
			if strings.Contains(string(data), word) {
				t.Errorf("the kubeconfig holds a %s", word)
			}
		}
	})
	t.Run("exec", func(t *testing.T) {
		if got := d.Kubectl(t, "exec", probe[0].Name, "--", "/probe", "try", "tcp:127.0.0.1:8080"); got != "tcp:127.0.0.1:8080 open connected" {
			t.Errorf("the command in the pod printed %q", got)
		}
		r := d.Kube(t, d.Kubeconfig(), "", "exec", probe[0].Name, "--", "/probe", "nonsense")
		if r.Code != 1 || !strings.Contains(r.Err, `unknown mode "nonsense"`) {
			t.Errorf("a command that fails: %s", r)
		}
	})
	t.Run("logs", func(t *testing.T) {
		if got := d.Kubectl(t, "logs", "deploy/hello", "-n", "default"); !strings.Contains(got, "serving") {
			t.Errorf("logs are %q", got)
		}
	})
	t.Run("port-forward", func(t *testing.T) { d.portForward(t) })
	t.Run("explain", func(t *testing.T) {
		if got := d.Kubectl(t, "explain", "pod.spec.containers"); !strings.Contains(got, "FIELDS:") {
			t.Errorf("explain says %q", got)
		}
	})
	t.Run("by name", func(t *testing.T) { d.byName(t) })
	t.Run("usage", func(t *testing.T) { d.usage(t) })
	t.Run("roles", func(t *testing.T) {
		dev := d.KubeconfigFor(t, developer, "shop")
		for _, row := range []struct {
			who, kubeconfig string
			can             []string
			want            string
		}{
			{owner, d.Kubeconfig(), []string{"create", "clusterrolebindings"}, "yes"},
			{owner, d.Kubeconfig(), []string{"*", "*", "-A"}, "yes"},
			{developer, dev, []string{"create", "deployments"}, "yes"},
			{developer, dev, []string{"create", "pods/exec"}, "yes"},
			{developer, dev, []string{"create", "clusterrolebindings"}, "no"},
			{developer, dev, []string{"create", "rolebindings"}, "no"},
			{developer, dev, []string{"delete", "nodes"}, "no"},
			{developer, dev, []string{"get", "secrets"}, "yes"},
			// Whoever may edit there can become any controller of the cluster.
			{developer, dev, []string{"get", "secrets", "-n", "kube-system"}, "no"},
			{developer, dev, []string{"create", "serviceaccounts/token", "-n", "kube-system"}, "no"},
			{developer, dev, []string{"impersonate", "serviceaccounts", "-n", "kube-system"}, "no"},
		} {
			r := d.Kube(t, row.kubeconfig, "", append([]string{"auth", "can-i"}, row.can...)...)
			got := strings.TrimSpace(r.Out)
			if got != row.want {
				t.Errorf("%s may %v: %q, want %q (%s)", row.who, row.can, got, row.want, r.Err)
			}
		}
	})
	t.Run("another account", func(t *testing.T) {
		for _, args := range [][]string{
			{"kube-credential"}, {"cluster", "config-kubectl", "--file", "-"}, {"cluster", "list-nodes"}, {"apps", "list"},
		} {
			r := d.MP(t, rival, append(args, "--account", "acme", "--organization", "web", "--workspace", "shop")...)
			if r.Code != 3 || strings.TrimSpace(r.Err) == "" || r.Out != "" {
				t.Errorf("of another account's workspace: %s; want exit 3 and a sentence", r)
			}
		}
		d.Box(t)
		var credential struct{ Status struct{ Token string } }
		out := d.Must(t, rival, "kube-credential", "--workspace", "box")
		if err := json.Unmarshal([]byte(out), &credential); err != nil || credential.Status.Token == "" {
			t.Fatalf("no token: %v", err)
		}
		for _, row := range []struct {
			name string
			want int
		}{{"shop", http.StatusUnauthorized}, {"box", http.StatusOK}} {
			who := map[string]string{"shop": owner, "box": rival}[row.name]
			if got := d.askPlane(t, who, row.name, credential.Status.Token); got != row.want {
				t.Errorf("box's token at the API of %s: %d, want %d", row.name, got, row.want)
			}
		}
	})
	t.Run("autoscaler", func(t *testing.T) {
		wait.For(t, wait.Patience, "the autoscaler scales by what is used", func(context.Context) error {
			out := d.Kubectl(t, "get", "hpa", "-n", "kube-system", "coredns", "-o",
				`jsonpath={.status.conditions[?(@.type=="ScalingActive")].status} {.status.currentMetrics[*].resource.current.averageValue}`)
			if f := strings.Fields(out); len(f) != 3 || f[0] != "True" || f[2] == "0" {
				return fmt.Errorf("its state is %q", out)
			}
			return nil
		})
	})
}

// askPlane asks the API of a workspace who we are, with a token.
func (d *suite) askPlane(t *testing.T, who, workspace, token string) int {
	t.Helper()
	kubeconfig := d.Must(t, who, "cluster", "config-kubectl", workspace, "--file", "-")
	find := func(field string) string {
		m := regexp.MustCompile(field + `: (\S+)`).FindStringSubmatch(kubeconfig)
		if m == nil {
			t.Fatalf("no %s in:\n%s", field, kubeconfig)
		}
		return m[1]
	}
	r := dctest.Run(t, nil, "", d.Binary, "kubectl", "--kubeconfig", os.DevNull, "--server", find("server"), "--tls-server-name", find("tls-server-name"),
		"--insecure-skip-tls-verify", "--token", token, "get", "--raw", "/api")
	switch {
	case r.Code == 0:
		return http.StatusOK
	case strings.Contains(r.Err, "Unauthorized") || strings.Contains(r.Err, "must be logged in") || strings.Contains(r.Err, "provide credentials"):
		return http.StatusUnauthorized
	}
	t.Fatal(r)
	return 0
}

// portForward forwards a port of ours to the app.
func (d *suite) portForward(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.Binary, "kubectl", "port-forward", "deploy/hello", ":8080")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+d.Kubeconfig())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	m := regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+)`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("port-forward says %q, %v", line, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m[1]+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.HasPrefix(string(body), "hello from ") {
		t.Errorf("%q, %v", body, err)
	}
}

// autoscaler scales cluster DNS from two instances to two.
const autoscaler = `{"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "coredns", "namespace": "kube-system"},
"spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "coredns"}, "minReplicas": 2, "maxReplicas": 2, "metrics": [
{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
{"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}}}]}}`

// usage is what the cluster says that its nodes and pods use.
func (d *suite) usage(t *testing.T) {
	for who, kubeconfig := range map[string]string{owner: d.Kubeconfig(), developer: d.KubeconfigFor(t, developer, "shop")} {
		for command, want := range map[string]*regexp.Regexp{
			"top nodes --no-headers":           regexp.MustCompile(`(?m)^(\S+ +[1-9]\d*m +\d+% +[1-9]\d*Mi +\d+% *\n){2}`),
			"top pods --no-headers -n default": regexp.MustCompile(`(?m)^hello-\S+ +\d+m +[1-9]\d*Mi`),
		} {
			wait.For(t, wait.Patience, command, func(context.Context) error {
				if r := d.Kube(t, kubeconfig, "", strings.Fields(command)...); r.Code != 0 || !want.MatchString(r.Out) {
					return fmt.Errorf("%s as %s: %s", command, who, r)
				}
				return nil
			})
		}
	}
}
