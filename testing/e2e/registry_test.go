package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/wait"
)

// testRegistry pushes with a client from outside, deploys what was pushed, and
// tries what isn't allowed and what isn't there.
func testRegistry(t *testing.T, d *suite) {
	d.PushProbe(t)
	mine, theirs := "docker://"+d.ProbeImage("acme/web"), "docker://"+d.ProbeImage("beta/ops")
	t.Run("own organization", func(t *testing.T) {
		if r := d.Skopeo(t, "auth-acme", "list-tags", "docker://"+d.RegistryAddress()+"/acme/web/probe"); r.Code != 0 || !strings.Contains(r.Out, `"1"`) {
			t.Error(r)
		}
		if got := d.Must(t, owner, "images", "list"); !strings.Contains(got, "probe") {
			t.Errorf("images list says %q", got)
		}
	})
	t.Run("others", func(t *testing.T) {
		word := filepath.Join(d.Dir, "password")
		d.Must(t, owner, "org", "use", "web")
		d.Login(t, "auth-dev", "dev@acme.example", word)
		if r := d.MP(t, owner, "org", "create", "lab", "--account", "acme"); r.Code != 0 && r.Code != 4 {
			t.Fatal(r)
		}
		d.Must(t, owner, "org", "use", "web")
		d.Must(t, owner, "ws", "use", "shop")
		for _, row := range []struct {
			what string
			auth string
			args []string
		}{
			{"pull of another account", "auth-beta", []string{"inspect", mine}},
			{"list of another account", "auth-beta", []string{"list-tags", "docker://" + d.RegistryAddress() + "/acme/web/probe"}},
			{"push to another account", "auth-beta", []string{"copy", "oci:" + d.ProbeLayout + ":probe", mine}},
			{"pull the other way", "auth-acme", []string{"inspect", theirs}},
			{"pull of nobody", "auth-nobody", []string{"inspect", mine}},
			{"push of nobody", "auth-nobody", []string{"copy", "oci:" + d.ProbeLayout + ":probe", mine}},
			{"push to another organization", "auth-dev", []string{"copy", "oci:" + d.ProbeLayout + ":probe", "docker://" + d.ProbeImage("acme/lab")}},
			{"push to no organization", "auth-acme", []string{"copy", "oci:" + d.ProbeLayout + ":probe", "docker://" + d.ProbeImage("acme/none")}},
		} {
			if r := d.Skopeo(t, row.auth, row.args...); r.Code == 0 {
				t.Errorf("%s goes well: %s", row.what, r)
			}
		}
		if r := d.MP(t, rival, "images", "list", "--account", "acme", "--organization", "web"); r.Code != 3 {
			t.Errorf("another account's images: %s; want exit 3", r)
		}
	})
	t.Run("deploy", func(t *testing.T) {
		d.Must(t, owner, "apps", "deploy", "probe2", "--image", "probe:1", "--port", "8080", "--no-route", "--timeout", "5m")
		d.Must(t, owner, "apps", "delete", "probe2", "--yes", "--no-wait")
	})
	t.Run("no such image", func(t *testing.T) {
		for _, image := range []string{"nothing:1", "probe:none", "registry.invalid/x/y:1"} {
			r := d.MP(t, owner, "apps", "deploy", "ghost", "--image", image, "--port", "8080", "--timeout", "5m")
			if r.Code != 1 && r.Code != 3 || !strings.Contains(r.Err, image) {
				t.Errorf("%s; want exit 1 or 3 and a sentence with the image", r)
			}
			t.Logf("%s: %s", image, strings.TrimSpace(r.Err))
		}
		if got := d.Kubectl(t, "get", "deploy,svc,pods", "-A", "-o", "name"); strings.Contains(got, "ghost") {
			t.Errorf("left in the cluster:\n%s", got)
		}
		// The mistake can be put right.
		d.Must(t, owner, "apps", "deploy", "ghost", "--image", "probe:1", "--port", "8080", "--timeout", "5m")
		d.Must(t, owner, "apps", "delete", "ghost", "--yes", "--timeout", "5m")
	})
	t.Run("unknown registry", func(t *testing.T) {
		// containerd asks by HEAD, whose answer has no room for our sentence.
		if message := d.pullFails(t, "unknown", "registry.invalid/some/image:1"); !strings.Contains(message, "not found") {
			t.Errorf("the pod says %q", message)
		}
	})
	t.Run("upstream", func(t *testing.T) { d.testUpstream(t) })
	t.Run("delete", func(t *testing.T) {
		d.Must(t, owner, "images", "delete", "probe:1", "--yes")
		if r := d.Skopeo(t, "auth-acme", "inspect", mine); r.Code == 0 {
			t.Error("the image is still there")
		}
		d.Pushed = false
		d.PushProbe(t)
	})
}

// pullFails runs a pod and returns why its image can't be pulled.
func (d *suite) pullFails(t *testing.T, podName, image string) (message string) {
	t.Helper()
	d.Kubectl(t, "run", podName, "--image", image, "--restart", "Never")
	defer d.Kubectl(t, "delete", "pod", podName, "--now", "--wait=false")
	wait.For(t, wait.Patience, "the pull of "+image+" fails", func(context.Context) error {
		message = d.Kubectl(t, "get", "pod", podName, "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}")
		if !strings.HasPrefix(message, "ErrImagePull") {
			return fmt.Errorf("it says %q", message)
		}
		return nil
	})
	return message
}

// upstream is a registry somewhere else, as the internet is. It is switched off
// by closing.
type upstream struct {
	address string
	ca      []byte
	server  *http.Server
}

const upstreamName = "images.example"

func (d *suite) startUpstream(t *testing.T) *upstream {
	t.Helper()
	ca, err := pki.LoadOrCreateCA(filepath.Join(d.Dir, "upstream"), "somebody else")
	if err != nil {
		t.Fatal(err)
	}
	address := d.Lab.Address().String()
	certificate, key, err := ca.Issue(pki.Request{CommonName: "upstream", Hosts: []string{address}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", address+":5443")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}}
	go func() { _ = server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	u := &upstream{address: ln.Addr().String(), ca: ca.CertPEM(), server: server}

	transport := remote.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: ca.Pool()}
	ref, err := name.ParseReference(u.address + "/tools/probe:7")
	if err == nil {
		err = remote.Write(ref, d.ProbeV1, remote.WithTransport(transport))
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// testUpstream: the operator opens a registry in the server's configuration;
// what was pulled from it once is there without it.
func (d *suite) testUpstream(t *testing.T) {
	u := d.startUpstream(t)
	const caFile = "/etc/multipaas/upstream.crt"
	config, err := os.ReadFile(filepath.Join(d.Server.Dir(), "etc", "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(config), upstreamName) {
		config = fmt.Appendf(config, "registry_upstreams:\n- name: %s\n  url: https://%s\n  ca_file: %s\n", upstreamName, u.address, caFile)
		if err := errors.Join(d.Server.WriteFile(t.Context(), "/etc/multipaas/config.yaml", config, 0o600),
			d.Server.WriteFile(t.Context(), caFile, u.ca, 0o644)); err != nil {
			t.Fatal(err)
		}
		d.Restart(t, d.Server)
		d.Answers(t)
		d.NodesReady(t, 2)
	}
	nodes := strings.Fields(d.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
	image := upstreamName + "/tools/probe:7"
	pull := func(t *testing.T, name, node string) {
		t.Helper()
		d.Apply(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0,
			"containers":[{"name":"c","image":%q,"imagePullPolicy":"Always"}]}}`, name, node, image))
		defer d.Kubectl(t, "delete", "pod", name, "--now", "--wait=false")
		d.Kubectl(t, "wait", "pod", name, "--for=condition=Ready", "--timeout=5m")
	}
	pull(t, "pulled-"+nodes[0], nodes[0])
	if err := u.server.Close(); err != nil {
		t.Fatal(err)
	}
	pull(t, "pulled-"+nodes[1], nodes[1])

	began := time.Now()
	if message := d.pullFails(t, "uncached", upstreamName+"/tools/other:1"); !strings.Contains(message, upstreamName) {
		t.Errorf("after %s the pod says %q", time.Since(began).Round(time.Second), message)
	}
}
