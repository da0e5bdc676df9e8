package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/lab"
)

func TestMain(m *testing.M) {
	lab.Hook()
	os.Exit(m.Run())
}

const (
	domain  = "paas.internal"
	appHost = "hello.shop.web.acme." + domain

	admin     = "admin"     // the first sysadmin
	owner     = "tenant"    // owner of acme, made by lab up
	developer = "developer" // in acme/web
	rival     = "rival"     // owner of the account beta
)

// datacenter is what all tests share: a server, two nodes, and the tenant that
// `lab up` makes; and beside them the account beta.
type datacenter struct {
	lab         *lab.Lab
	root        string // of the repository
	dir         string // of the lab
	mpBinary    string
	server      *lab.Host
	nodes       []*lab.Host
	pool        *x509.CertPool
	ca          string
	pushed      bool // the probe is in the registry
	probeLayout string
	probeV1     v1.Image
}

// TestDatacenter runs the parts in an order: what takes a while is begun early,
// what breaks things comes late, deletion last. Each part can be run alone.
func TestDatacenter(t *testing.T) {
	d := start(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *datacenter)
	}{
		{"up", testUp},
		{"kubectl", testKubectl},
		{"registry", testRegistry},
		{"cluster", testCluster},
		{"isolation", testIsolation},
		{"input", testInput},
		{"join", testJoin},
		{"recovery", testRecovery},
		{"delete", testDelete},
	} {
		began := time.Now()
		t.Run(part.name, func(t *testing.T) {
			defer d.tell(t)
			part.test(t, d)
		})
		t.Logf("%s took %s", part.name, time.Since(began).Round(time.Second))
	}
}

// start brings the datacenter up.
func start(t *testing.T) *datacenter {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	d := &datacenter{root: root, mpBinary: filepath.Join(root, "dist", "multipaas")}
	tool := filepath.Join(root, "dist", "lab")
	for _, file := range []string{d.mpBinary, tool} {
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("%v: make build lab makes it", err)
		}
	}
	if os.Geteuid() != 0 {
		t.Fatal("this needs root: hosts are made of namespaces")
	}
	if dir := os.Getenv("MULTIPAAS_LAB"); dir != "" {
		d.lab, err = lab.Open(dir, t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.lab.SetBinary(d.mpBinary); err != nil {
			t.Fatal(err)
		}
	} else {
		d.lab = lab.ForTest(t, lab.Options{Name: "e2e", Binary: d.mpBinary})
		t.Cleanup(func() { _ = os.Remove(d.lab.Dir() + ".env") })
	}
	d.dir = d.lab.Dir()
	d.up(t, tool)
	d.server = d.lab.Host("server")
	d.nodes = []*lab.Host{d.lab.Host("node1"), d.lab.Host("node2")}
	d.ca = filepath.Join(d.dir, "ca.crt")
	pem, err := os.ReadFile(d.ca)
	if err != nil {
		t.Fatal(err)
	}
	d.pool = x509.NewCertPool()
	if !d.pool.AppendCertsFromPEM(pem) {
		t.Fatalf("%s holds no certificate", d.ca)
	}
	d.people(t)
	d.beginBox(t)
	return d
}

// up runs `lab up`, as make up does.
func (d *datacenter) up(t *testing.T, tool string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool, "-C", d.dir, "up")
	cmd.Dir = d.root
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.logs(t)
		t.Fatalf("lab up: %v\n%s", err, out)
	}
	t.Logf("lab up took %s", time.Since(began).Round(time.Second))
}

// people makes the users that `lab up` does not.
func (d *datacenter) people(t *testing.T) {
	t.Helper()
	word := filepath.Join(d.dir, "password")
	if err := os.WriteFile(word, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := d.mp(t, rival, "session", "--check"); r.code != 0 {
		d.must(t, rival, "init", d.url(), "--ca", d.ca)
		if r := d.mp(t, admin, "register", "beta", "--email", "owner@beta.example", "--password-file", word); r.code != 0 && r.code != 4 {
			t.Fatal(r)
		}
		d.must(t, rival, "login", "owner@beta.example", "--password-file", word)
		d.must(t, rival, "accounts", "use", "beta")
		if r := d.mp(t, rival, "org", "create", "ops"); r.code != 0 && r.code != 4 {
			t.Fatal(r)
		}
		d.must(t, rival, "org", "use", "ops")
	}
	if r := d.mp(t, developer, "session", "--check"); r.code != 0 {
		d.must(t, developer, "init", d.url(), "--ca", d.ca)
		if r := d.mp(t, owner, "users", "create", "dev@acme.example", "--password-file", word); r.code != 0 && r.code != 4 {
			t.Fatal(r)
		}
		d.must(t, owner, "org", "users", "add", "web", "dev@acme.example")
		d.must(t, developer, "login", "dev@acme.example", "--password-file", word)
		d.must(t, developer, "ws", "use", "shop", "--account", "acme", "--organization", "web")
	}
}

func (d *datacenter) url() string { return fmt.Sprintf("https://%s:7443", d.server.Address()) }

// kubeconfig is that of acme/web/shop, for its owner.
func (d *datacenter) kubeconfig() string { return filepath.Join(d.dir, "kubeconfig") }

// kubeconfigFor writes the kubeconfig of a workspace for somebody.
func (d *datacenter) kubeconfigFor(t *testing.T, who, workspace string) string {
	t.Helper()
	file := filepath.Join(d.dir, "kubeconfig-"+who)
	d.must(t, who, "cluster", "config-kubectl", workspace, "--file", file)
	return file
}

// result is how a command went.
type result struct {
	args     []string
	code     int
	out, err string
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit %d\n%s%s", strings.Join(r.args, " "), r.code, r.out, r.err)
}

// patience is for one command, not for a test: what waits for the platform says
// --timeout itself.
const patience = 3 * time.Minute

func run(t *testing.T, env []string, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return result{args: args[1:], code: cmd.ProcessState.ExitCode(), out: out.String(), err: errs.String()}
}

// mp runs the client as one of the people.
func (d *datacenter) mp(t *testing.T, who string, args ...string) result {
	t.Helper()
	return run(t, []string{"MP_CONFIG=" + filepath.Join(d.dir, "mp-"+who)}, "", append([]string{d.mpBinary, "mp"}, args...)...)
}

// must runs the client and ends the test if that does not go well.
func (d *datacenter) must(t *testing.T, who string, args ...string) string {
	t.Helper()
	r := d.mp(t, who, args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.out
}

// kube runs the payload's kubectl.
func (d *datacenter) kube(t *testing.T, kubeconfig, stdin string, args ...string) result {
	t.Helper()
	return run(t, []string{"KUBECONFIG=" + kubeconfig}, stdin, append([]string{d.mpBinary, "kubectl"}, args...)...)
}

// kubectl runs kubectl in acme/web/shop as its owner; it must go well.
func (d *datacenter) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	r := d.kube(t, d.kubeconfig(), "", args...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return strings.TrimSpace(r.out)
}

// apply applies manifests in acme/web/shop; they must be taken.
func (d *datacenter) apply(t *testing.T, manifests string) {
	t.Helper()
	if r := d.kube(t, d.kubeconfig(), manifests, "apply", "-f", "-"); r.code != 0 {
		t.Fatal(r)
	}
}

// eventually asks until there is no error any more.
func eventually(t *testing.T, patience time.Duration, what string, ask func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	for {
		err := ask(ctx)
		if err == nil {
			if took := time.Since(began); took > time.Second {
				t.Logf("%s: after %s", what, took.Round(100*time.Millisecond))
			}
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
	}
}

// dial connects to the server, whatever host name is asked for.
func (d *datacenter) dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return dialer.DialContext(ctx, network, net.JoinHostPort(d.server.Address().String(), port))
}

// client trusts the platform's authority and nothing else.
func (d *datacenter) client() *http.Client {
	return &http.Client{
		Timeout:       time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DialContext: d.dial, TLSClientConfig: &tls.Config{RootCAs: d.pool},
			DisableKeepAlives: true, ForceAttemptHTTP2: true},
	}
}

// hello asks the app and returns the instance that answered.
func (d *datacenter) hello(ctx context.Context, c *http.Client) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+appHost+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return resp.Header.Get("X-Instance"), err
}

// answers waits until the app answers.
func (d *datacenter) answers(t *testing.T) {
	t.Helper()
	c := d.client()
	eventually(t, time.Minute, "the app answers", func(ctx context.Context) error {
		_, err := d.hello(ctx, c)
		return err
	})
}

// nodesReady waits until acme/web/shop has n Ready nodes.
func (d *datacenter) nodesReady(t *testing.T, n int) {
	t.Helper()
	eventually(t, 2*time.Minute, "the nodes are Ready", func(context.Context) error {
		r := d.kube(t, d.kubeconfig(), "", "get", "nodes", "-o", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{" "}{end}`)
		if got := strings.TrimSpace(r.out); got != strings.TrimSpace(strings.Repeat("True ", n)) {
			return fmt.Errorf("Ready are %q %s", got, r.err)
		}
		return nil
	})
}

// partsReady waits until a host's appliance says that all its parts are ready.
func (d *datacenter) partsReady(t *testing.T, h *lab.Host) {
	t.Helper()
	eventually(t, 90*time.Second, h.Name()+" is ready", func(ctx context.Context) error {
		st, err := status.Fetch(ctx, h.Root("run", "multipaas", "status.sock"))
		if err == nil && len(st.Ready()) > 0 {
			err = errors.New(strings.Join(st.Ready(), "; "))
		}
		return err
	})
}

// pod is what of a pod the tests look at.
type pod struct {
	name, node, ip, containerID string
	restarts                    int
}

// pods returns the pods with a label, by name. Those that are going don't count.
func (d *datacenter) pods(t *testing.T, selector string) map[string]pod {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name              string
				DeletionTimestamp *time.Time
			}
			Spec   struct{ NodeName string }
			Status struct {
				PodIP             string
				ContainerStatuses []struct {
					ContainerID  string
					RestartCount int
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(d.kubectl(t, "get", "pods", "-l", selector, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	all := map[string]pod{}
	for _, i := range list.Items {
		if i.Metadata.DeletionTimestamp != nil {
			continue
		}
		p := pod{name: i.Metadata.Name, node: i.Spec.NodeName, ip: i.Status.PodIP}
		for _, c := range i.Status.ContainerStatuses {
			p.containerID, p.restarts = c.ContainerID, c.RestartCount
		}
		all[p.name] = p
	}
	return all
}

// tell prints what the hosts have to say about a test that failed.
func (d *datacenter) tell(t *testing.T) {
	if t.Failed() {
		d.logs(t)
	}
}

func (d *datacenter) logs(t *testing.T) {
	for _, h := range d.lab.Hosts() {
		data, err := os.ReadFile(h.LogFile("multipaas"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
		t.Logf("the end of what %s logged:\n%s", h.Name(), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}
