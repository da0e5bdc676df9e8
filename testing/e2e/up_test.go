package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/multipaas/multipaas/testing/datacenter"
)

// testUp asks the app that `lab up` has deployed for all that a balancer can
// get wrong.
func testUp(t *testing.T, d *suite) {
	c := d.Client()
	t.Run("both instances answer", func(t *testing.T) {
		seen := map[string]int{}
		for range 20 {
			instance, err := d.Hello(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			seen[instance]++
		}
		if len(seen) != 2 {
			t.Errorf("20 requests reached %v, want two instances", seen)
		}
	})
	t.Run("again", func(t *testing.T) {
		d.labUp(t)
		defer os.Remove(d.Dir + ".env")
		env, err := os.ReadFile(d.Dir + ".env")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"URL=https://" + appHost, "ADDRESS=" + d.Server.Address().String(), "CA=", "KUBECONFIG=", "MP_CONFIG="} {
			if !strings.Contains(string(env), want) {
				t.Errorf("up.env has no %s:\n%s", want, env)
			}
		}
	})
	t.Run("volumes", d.demoVolumes)
	t.Run("no way out", func(t *testing.T) {
		for _, h := range d.Lab.Hosts() {
			if out, err := h.Run(t.Context(), "ip", "route", "show", "default"); err != nil || len(out) > 0 {
				t.Errorf("%s has a default route: %s %v", h.Name(), out, err)
			}
		}
	})
	t.Run("redirect", func(t *testing.T) {
		resp, err := c.Get("http://" + appHost + "/x?y=z")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, want := resp.Header.Get("Location"), "https://"+appHost+"/x?y=z"; resp.StatusCode/100 != 3 || got != want {
			t.Errorf("%s to %q, want a redirect to %q", resp.Status, got, want)
		}
	})
	t.Run("HTTP/2", func(t *testing.T) {
		resp, err := c.Get("https://" + appHost + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Errorf("answered over %s, want HTTP/2", resp.Proto)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn, _, err := websocket.Dial(ctx, "wss://"+appHost+"/ws", &websocket.DialOptions{HTTPClient: d.webSocketClient()})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseNow()
		if err := conn.Write(ctx, websocket.MessageText, []byte("ahoy")); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(ctx); err != nil || string(got) != "ahoy" {
			t.Errorf("echo is %q, %v", got, err)
		}
	})
	const large = 50 << 20
	t.Run("large upload", func(t *testing.T) {
		body := make([]byte, large)
		_, _ = rand.Read(body)
		resp, err := c.Post("https://"+appHost+"/upload", "application/octet-stream", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var got struct {
			Bytes  int64
			SHA256 string
		}
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(body); got.Bytes != large || got.SHA256 != hex.EncodeToString(sum[:]) {
			t.Errorf("%d bytes with sum %s arrived, want %d with %x", got.Bytes, got.SHA256, large, sum)
		}
	})
	t.Run("large download", func(t *testing.T) {
		resp, err := c.Get("https://" + appHost + "/bytes?n=52428800")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); n != large || err != nil {
			t.Errorf("%d bytes, %v; want %d", n, err, large)
		}
	})
	t.Run("unknown host", func(t *testing.T) {
		resp, err := c.Get("https://nobody." + domain + "/")
		if err == nil {
			resp.Body.Close()
			t.Errorf("a host that nobody has was answered: %s", resp.Status)
		}
		// By its address, a server has nothing to show either.
		resp, err = c.Get("http://nobody." + domain + "/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("a host that nobody has was answered: %s", resp.Status)
		}
	})
	t.Run("no other authority", func(t *testing.T) {
		resp, err := (&http.Client{Transport: &http.Transport{DialContext: d.Dial}}).Get("https://" + appHost + "/")
		if err == nil {
			resp.Body.Close()
			t.Error("a client that doesn't know the platform's authority trusts its certificate")
		}
	})
}

// labUp runs `lab up`, as make up does, on what is up already.
func (d *suite) labUp(t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(d.Root, "dist", "lab"), "-C", d.Dir, "up")
	cmd.Dir = d.Root
	hosts := d.hosts()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("lab up: %v\n%s", err, out)
	}
	if now := d.hosts(); !maps.Equal(now, hosts) {
		t.Errorf("lab up has booted hosts anew: they were %v, are %v\n%s", hosts, now, out)
	}
	if want := "dist/lab -C " + d.Dir + " down"; !strings.Contains(string(out), want) {
		t.Errorf("lab up does not say %q:\n%s", want, out)
	}
}

// demoVolumes tries the volumes that `lab up` has made: what one instance of the app is left, both
// show; the other app's volume is its own. They go, since other tests look at what is left of their own.
func (d *suite) demoVolumes(t *testing.T) {
	c := d.Client()
	url := "https://" + appHost + "/notes"
	resp, err := c.Post(url, "text/plain", strings.NewReader("ahoy"))
	if err != nil {
		t.Fatal(err)
	}
	left, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("leave a note: %s, %q, %v", resp.Status, left, err)
	}
	for _, p := range d.Pods(t, "app.kubernetes.io/name="+datacenter.App) {
		r := d.Kube(t, d.Kubeconfig(), "", "get", "--raw", "/api/v1/namespaces/default/pods/"+p.Name+":8080/proxy/notes")
		if r.Code != 0 || r.Out != string(left) {
			t.Errorf("on %s, %s has the notes %q, want %q: %s", p.Node, p.Name, r.Out, left, r)
		}
	}
	listed := d.Must(t, owner, "volumes", "list")
	for _, want := range []string{"default/" + datacenter.SharedClaim, "default/" + datacenter.LocalClaim} {
		if !strings.Contains(listed, want) {
			t.Errorf("volumes list has no %s:\n%s", want, listed)
		}
	}
	d.Must(t, owner, "apps", "deploy", datacenter.App, "--volume", datacenter.SharedClaim+":", "--timeout", "5m")
	d.Must(t, owner, "apps", "delete", datacenter.VolumesApp, "--yes", "--timeout", "5m")
	d.Kubectl(t, "delete", "pvc", datacenter.SharedClaim, datacenter.LocalClaim)
	d.Answers(t)
}

// hosts is the process 1 of each host.
func (d *suite) hosts() map[string]int {
	all := map[string]int{}
	for _, h := range d.Lab.Hosts() {
		all[h.Name()] = h.PID()
	}
	return all
}

// webSocketClient speaks HTTP/1.1, over which WebSocket's handshake goes.
func (d *suite) webSocketClient() *http.Client {
	c := d.Client()
	c.Timeout = 0
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	c.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
	return c
}
