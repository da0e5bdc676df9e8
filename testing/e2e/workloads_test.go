package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

// testWorkloads runs what people bring along, side by side: most of it waits.
func testWorkloads(t *testing.T, d *suite) {
	d.PushProbe(t)
	d.Must(t, owner, "apps", "deploy", "bring", "--image", "probe:1", "--port", "8080", "--health-path", "/healthz", "--timeout", "5m")
	sideBySide(t, map[string]func(*testing.T){
		"limits and kernel settings": d.podFinds, "too much memory": d.tooMuchMemory, "another architecture": d.anotherArchitecture,
		"an app that reads slowly": d.slowUpload, "an app that refuses early": d.earlyRefusals, "gRPC-Web": d.grpcWeb,
	})
	d.Must(t, owner, "apps", "delete", "bring", "--yes", "--no-wait")
}

const probeApp = "https://bring.shop.web.acme." + domain

// podFinds looks at what databases trip over: open files without an end, for which
// they keep tables, and kernel settings that are asked for and not there.
func (d *suite) podFinds(t *testing.T) {
	settings := map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "20000 30000", "net.ipv4.tcp_syncookies": "0", "net.ipv4.ip_unprivileged_port_start": "80"}
	var sysctls, names []string
	for name, value := range settings {
		sysctls, names = append(sysctls, fmt.Sprintf("{name: %s, value: %q}", name, value)), append(names, name)
	}
	d.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: finds}
spec:
  restartPolicy: Never
  securityContext: {sysctls: [%s]}
  containers: [{name: c, image: %q, args: [finds, %s], resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {cpu: 10m, memory: 32Mi}}}]
`, strings.Join(sysctls, ", "), d.ProbeImage("acme/web"), strings.Join(names, ", ")))
	defer d.Kubectl(t, "delete", "pod", "finds", "--now", "--wait=false")
	d.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/finds", "--timeout=5m")
	got := map[string]string{}
	for line := range strings.Lines(d.Kubectl(t, "logs", "finds")) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[name] = value
	}
	for name, value := range settings {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
	if files, err := strconv.Atoi(got["nofile"]); err != nil || files < 1024 || files > 1<<20 {
		t.Errorf("a process may open %q files, want 1024 to 1,048,576", got["nofile"])
	}
}

func (d *suite) tooMuchMemory(t *testing.T) {
	d.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: balloon}
spec:
  restartPolicy: Never
  containers: [{name: c, image: %q, args: [memory], resources: {limits: {cpu: 500m, memory: 32Mi}}}]
`, d.ProbeImage("acme/web")))
	defer d.Kubectl(t, "delete", "pod", "balloon", "--now", "--wait=false")
	d.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Failed", "pod/balloon", "--timeout=5m")
	if got := d.Kubectl(t, "get", "pod", "balloon", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason}"); strings.TrimSpace(got) != "OOMKilled" {
		t.Errorf("it ended with %q, want OOMKilled", got)
	}
}

// anotherArchitecture deploys what was built on another kind of computer.
func (d *suite) anotherArchitecture(t *testing.T) {
	config, err := d.ProbeV1.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Architecture = "arm64"
	image, err := mutate.ConfigFile(d.ProbeV1, config)
	if err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(d.Dir, "arm")
	if err := dctest.WriteLayout(oci, "arm", image); err != nil {
		t.Fatal(err)
	}
	if r := d.Skopeo(t, "auth-acme", "copy", "--retry-times", "3", "oci:"+oci+":arm", "docker://"+d.Image("acme/web", "arm")); r.Code != 0 {
		t.Fatal(r)
	}
	r := d.MP(t, owner, "apps", "deploy", "arm", "--image", "arm:1", "--port", "8080", "--timeout", "5m")
	if r.Code == 0 || !strings.Contains(r.Err, "arm64") || !strings.Contains(r.Err, "linux/amd64") {
		t.Errorf("%s; want a refusal that names both", r)
	}
	if got := d.Kubectl(t, "get", "deploy,svc,pods", "-A", "-o", "name"); strings.Contains(got, "/arm") {
		t.Errorf("left in the cluster:\n%s", got)
	}
	d.Must(t, owner, "images", "delete", "arm:1", "--yes")
}

// send posts a body to the probe by one version of HTTP, once its address answers.
func (d *suite) send(ctx context.Context, http2 bool, path, contentType string, size int) (int, string, error) {
	client := d.Client()
	if transport := client.Transport.(*http.Transport); !http2 {
		transport.ForceAttemptHTTP2 = false
		transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, probeApp+path, bytes.NewReader(make([]byte, size)))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if want := 1 + map[bool]int{true: 1}[http2]; resp.ProtoMajor != want {
		return 0, "", fmt.Errorf("it speaks %s", resp.Proto)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	return resp.StatusCode, string(body), err
}

// slowUpload sends to an app that stops reading for longer than a dead one would.
func (d *suite) slowUpload(t *testing.T) {
	const size = 32 << 20
	all := map[string]func(*testing.T){}
	for _, http2 := range []bool{false, true} {
		all[fmt.Sprint("HTTP2=", http2)] = func(t *testing.T) {
			status, body, err := d.send(t.Context(), http2, "/upload", "application/octet-stream", size)
			if err != nil || status != http.StatusOK || body != strconv.Itoa(size) {
				t.Errorf("%d %q, %v; want all %d octets", status, body, err, size)
			}
		}
	}
	sideBySide(t, all)
}

// earlyRefusals sends to an app that answers without reading: the client is told so.
func (d *suite) earlyRefusals(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		for i := range 20 {
			status, body, err := d.send(t.Context(), http2, "/refuse", "application/octet-stream", 4<<20)
			if err != nil || status != http.StatusUnauthorized || body != "not you" {
				t.Errorf("HTTP/2 %v, upload %d: %d %q, %v; want the app's 401", http2, i, status, body, err)
			}
		}
	}
}

// grpcWeb is plain HTTP to servers that speak HTTP/1.1.
func (d *suite) grpcWeb(t *testing.T) {
	for _, contentType := range []string{"application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"} {
		for _, http2 := range []bool{false, true} {
			wait.For(t, wait.Patience, contentType+" is answered", func(ctx context.Context) error {
				status, body, err := d.send(ctx, http2, "/", contentType, 100)
				if err == nil && (status != http.StatusOK || body != "ok") {
					err = errors.New(fmt.Sprint(status, " ", body))
				}
				return err
			})
		}
	}
}
