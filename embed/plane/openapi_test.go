package plane

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/testing/wait"
)

const crontabs = `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "crontabs.acme.example"},
"spec": {"group": "acme.example", "scope": "Namespaced", "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab"},
"versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
"spec": {"type": "object", "properties": {"schedule": {"type": "string", "description": "When it runs, as cron has it."},
"hosts": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}}}}}}}]}}`

const crontab = `{"apiVersion": "acme.example/v1", "kind": "CronTab", "metadata": {"name": "nightly"}, "spec": {"schedule": "%s", "hosts": ["%s"]}}`

const deployment = `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": %d, "selector": {"matchLabels": {"app": "web"}},
"template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "%s", "image": "i"}]}}}}`

// shell runs upstream's kubectl as the platform.
type shell struct {
	t          *testing.T
	p          *Plane
	kubeconfig string
}

func newShell(t *testing.T, p *Plane) *shell {
	s := &shell{t, p, filepath.Join(t.TempDir(), "kubeconfig")}
	data, err := json.Marshal(p.kubeconfig("platform"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.kubeconfig, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shell) kubectl(stdin string, args ...string) (string, error) {
	s.t.Helper()
	args = append([]string{"--net=" + s.p.cfg.Netns, s.p.cfg.Binary, "kubectl", "--kubeconfig=" + s.kubeconfig, "--cache-dir=" + s.kubeconfig + "-cache"}, args...)
	cmd := exec.Command("nsenter", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// want runs kubectl and looks for words in what it prints.
func (s *shell) want(ok bool, words, stdin string, args ...string) {
	s.t.Helper()
	out, err := s.kubectl(stdin, args...)
	if (err == nil) != ok || !strings.Contains(out, words) {
		s.t.Errorf("kubectl %s: %v, want success: %v, and %q in:\n%s", strings.Join(args, " "), err, ok, words, out)
	}
}

// TestOpenAPI is what users do that needs the documents, which the plane builds
// when they are asked for.
func TestOpenAPI(t *testing.T) {
	ns := newNamespace(t)
	cfg := newConfig(t, ns)
	cfg.Plan.Machines = netip.MustParsePrefix("127.99.0.0/20")
	kubelet := newKubelet(t, ns, cfg)
	p, _ := start(t, cfg)
	client := clientFor(t, p.RESTConfig())
	s := newShell(t, p)
	wait.For(t, wait.Patience, "default service account", func(ctx context.Context) error {
		out, err := s.kubectl("", "get", "serviceaccount", "default")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	kubelet.join(t, client)
	furnish(s, "metrics.k8s.io", "multipaas:usage")

	s.want(true, "ConfigMap holds configuration data", "", "explain", "configmap")
	s.want(true, "List of containers belonging to the pod", "", "explain", "deployment.spec.template.spec.containers")
	s.want(true, "preemptionPolicy", "", "explain", "priorityclass", "--output=plaintext-openapiv2")
	s.want(true, "APIService represents a server", "", "explain", "apiservice")
	s.want(true, "created", crontabs, "apply", "-f", "-")
	wait.For(t, wait.Patience, "documents of a custom resource", func(context.Context) error {
		if out, err := s.kubectl("", "explain", "crontab.spec.schedule"); err != nil || !strings.Contains(out, "as cron has it") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})

	for _, c := range []struct{ kind, first, second, broken string }{
		{"deployment/web", fmt.Sprintf(deployment, 1, "a"), fmt.Sprintf(deployment, 2, "b"), strings.Replace(fmt.Sprintf(deployment, 1, "a"), `"replicas"`, `"replica"`, 1)},
		{"crontab/nightly", fmt.Sprintf(crontab, "@daily", "a"), fmt.Sprintf(crontab, "@hourly", "b"), strings.Replace(fmt.Sprintf(crontab, "@daily", "a"), `"schedule"`, `"shedule"`, 1)},
	} {
		s.want(true, "serverside-applied", c.first, "apply", "--server-side", "--field-manager=ann", "-f", "-")
		out, err := s.kubectl(c.second, "diff", "--server-side", "--field-manager=ann", "-f", "-")
		if err == nil || !strings.Contains(out, "+") || strings.Contains(out, "error:") {
			t.Errorf("diff of %s: %v\n%s", c.kind, err, out)
		}
		s.want(false, "field not declared in schema", c.broken, "apply", "--server-side", "-f", "-")
		s.want(false, "nknown field", c.broken, "apply", "-f", "-")
		s.want(false, "conflict", c.second, "apply", "--server-side", "--field-manager=bob", "-f", "-")
		s.want(true, "serverside-applied", c.second, "apply", "--server-side", "--field-manager=bob", "--force-conflicts", "-f", "-")
	}
	// Lists are merged by their keys: ann's container stays beside bob's.
	s.want(true, "a b", "", "get", "deployment/web", "-o", "jsonpath={.spec.template.spec.containers[*].name}")
	s.want(true, `["a","b"]`, "", "get", "crontab/nightly", "-o", "jsonpath={.spec.hosts}")

	testDocuments(t, p, client)
	testUsage(t, s, client, kubelet)
}

// testDocuments reads all documents, as clients that keep them do.
func testDocuments(t *testing.T, p *Plane, client kubernetes.Interface) {
	v2, err := client.Discovery().OpenAPISchema()
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]bool{}
	for _, path := range v2.GetPaths().GetPath() {
		paths[path.GetName()] = true
	}
	for _, want := range []string{"/api/v1/namespaces/{namespace}/pods", "/apis/acme.example/v1/namespaces/{namespace}/crontabs",
		"/apis/apiregistration.k8s.io/v1/apiservices", "/apis/metrics.k8s.io/v1beta1/nodes", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "/version/"} {
		if !paths[want] {
			t.Errorf("OpenAPI v2: no path %s among %d", want, len(paths))
		}
	}
	groups, err := client.Discovery().OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) < 40 {
		t.Errorf("OpenAPI v3 has %d groups, want all", len(groups))
	}
	for name, g := range groups {
		data, err := g.Schema("application/json")
		var doc struct {
			OpenAPI    string
			Paths      map[string]any
			Components struct{ Schemas map[string]any }
		}
		if err == nil {
			err = json.Unmarshal(data, &doc)
		}
		if err != nil || !strings.HasPrefix(doc.OpenAPI, "3.") || len(doc.Paths) == 0 {
			t.Errorf("OpenAPI v3 of %s: %d bytes, %d paths, %v", name, len(data), len(doc.Paths), err)
		}
	}

	// Who knows a document is told so, by its tag and by its URL.
	get := func(path, tag string) *http.Response {
		t.Helper()
		transport, err := rest.TransportFor(p.RESTConfig())
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("If-None-Match", tag)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	plain := get("/openapi/v3/apis/apps/v1", "")
	if again := get("/openapi/v3/apis/apps/v1", plain.Header.Get("Etag")); again.StatusCode != http.StatusNotModified {
		t.Errorf("with tag %q: %s, want 304", plain.Header.Get("Etag"), again.Status)
	}
	if got := groups["apis/apps/v1"].ServerRelativeURL(); !strings.HasSuffix(got, "hash="+strings.Trim(plain.Header.Get("Etag"), `"`)) {
		t.Errorf("URL %s has not the document's tag %s", got, plain.Header.Get("Etag"))
	}
	if cached := get(groups["apis/apps/v1"].ServerRelativeURL(), ""); cached.StatusCode != http.StatusOK || cached.Header.Get("Cache-Control") == "" {
		t.Errorf("by its URL: %s, Cache-Control %q", cached.Status, cached.Header.Get("Cache-Control"))
	}
	if old := get("/openapi/v3/apis/apps/v1?hash=OLD", ""); old.StatusCode != http.StatusMovedPermanently {
		t.Errorf("an old URL: %s, want 301", old.Status)
	}
	if none := get("/openapi/v3/apis/none/v1", ""); none.StatusCode != http.StatusNotFound {
		t.Errorf("no such group: %s", none.Status)
	}
}
