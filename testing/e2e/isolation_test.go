package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/dctest"
)

// addressPlan is that of every workspace: none can see another.
var addressPlan = []netip.Prefix{netip.MustParsePrefix("172.30.0.0/20"), netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")}

// testIsolation tries from pods to reach what isn't their workspace's: the
// platform's hosts, every address that any of their namespaces has, and another
// workspace. Of all that they reach the server's front door and nothing else. A refused connection was an answer: it counts as reached.
func testIsolation(t *testing.T, d *suite) {
	probe := d.Probe(t)
	box := d.Box(t)
	d.PushProbe(t)
	if r := d.Kube(t, box, dctest.ProbeManifest(d.ProbeImage("beta/ops")), "apply", "-f", "-"); r.Code != 0 {
		t.Fatal(r)
	}
	if r := d.Kube(t, box, "", "rollout", "status", "daemonset/probe", "--timeout", "5m"); r.Code != 0 {
		t.Fatal(r)
	}
	boxPod := strings.TrimSpace(d.Kube(t, box, "", "get", "pods", "-l", "app=probe", "-o", "jsonpath={.items[0].metadata.name}").Out)

	foreign := d.hostAttempts(t)
	// Only the shop has these; the addresses mean nothing in the box.
	hello := d.Pods(t, "app.kubernetes.io/name=hello")
	for _, p := range hello {
		if !strings.HasPrefix(p.IP, "10.42.1.") { // the box has a pod network 1 of its own
			foreign["http:http://"+p.IP+":8080/"] = "the shop's pod"
		}
	}
	vip := d.Kubectl(t, "get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}")
	onlyShop := map[string]string{
		"http:http://" + vip + "/": "the shop's Service", "tcp:172.30.0.12:10250": "the shop's second machine", "tcp:10.42.2.1:10250": "its pods' gateway",
	}
	own := append(d.Door(), "tcp:172.30.0.1:6443", "tcp:169.254.20.10:5000", "udp:10.43.0.10:53")

	all := map[string]func(*testing.T){}
	for _, from := range []struct {
		who, kubeconfig, pod string
		foreign              map[string]string
	}{
		{"shop", d.Kubeconfig(), probe[0].Name, foreign},
		{"box", box, boxPod, merged(foreign, onlyShop)},
	} {
		all[from.who] = func(t *testing.T) {
			began := time.Now()
			targets := slices.Sorted(maps.Keys(from.foreign))
			if from.who == "shop" {
				targets = slices.DeleteFunc(targets, func(target string) bool { return strings.Contains(from.foreign[target], "the shop's") })
			}
			got := d.Attempts(t, from.kubeconfig, from.pod, targets...)
			for _, target := range targets {
				outcome := got[target]
				reached := !strings.HasPrefix(outcome, "closed") || strings.Contains(outcome, "refused")
				if reached {
					t.Errorf("a pod of %s reaches %s (%s): %s", from.who, target, from.foreign[target], outcome)
				}
			}
			got = d.Reached(t, from.kubeconfig, from.pod, own...)
			for _, target := range own {
				if !strings.HasPrefix(got[target], "open") {
					t.Errorf("a pod of %s does not reach %s: %s", from.who, target, got[target])
				}
			}
			t.Logf("%d attempts in %s", len(targets), time.Since(began).Round(time.Second))
		}
		all["the front door from "+from.who] = func(t *testing.T) { d.throughTheDoor(t, from.kubeconfig, from.pod) }
	}
	all["the plane from within"] = func(t *testing.T) {
		// Of the plane's address, only its API answers.
		var targets []string
		for _, port := range []int{22, 80, 443, 2379, 2380, 5000, 6444, 7443, 10250, 10257, 10259} {
			targets = append(targets, fmt.Sprintf("tcp:172.30.0.1:%d", port))
		}
		got := d.Attempts(t, d.Kubeconfig(), probe[0].Name, targets...)
		for _, target := range targets {
			if !strings.HasPrefix(got[target], "closed") || strings.Contains(got[target], "refused") {
				t.Errorf("%s is %s", target, got[target])
			}
		}
	}
	sideBySide(t, all)
}

func merged(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// throughTheDoor has a pod do at the platform's front door what people do at a desk, by
// the names that they use.
func (d *suite) throughTheDoor(t *testing.T, kubeconfig, pod string) {
	var ws struct{ Status struct{ APIHost string } }
	if err := json.Unmarshal([]byte(d.Must(t, owner, "ws", "show", datacenter.Workspace, "-o", "json")), &ws); err != nil || ws.Status.APIHost == "" {
		t.Fatal(ws, err)
	}
	read := func(file string) string {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	config, err := clientcmd.LoadFromFile(d.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	trusted := read(d.CA) + "\n"
	for _, c := range config.Clusters {
		trusted += string(c.CertificateAuthorityData)
	}
	password := read(filepath.Join(d.Dir, datacenter.OwnerPassword))
	login, err := json.Marshal(map[string]string{"email": datacenter.OwnerEmail, "password": password})
	if err != nil {
		t.Fatal(err)
	}
	type request struct{ Method, URL, User, Password, Body string }
	asked := []struct {
		request
		want string
	}{
		{request{Method: "GET", URL: "https://" + appHost + "/"}, "200 "},
		{request{Method: "GET", URL: "http://" + appHost + "/"}, "308 "},
		{request{Method: "POST", URL: "https://api." + domain + ":7443/v1/login", Body: string(login)}, `200 {`},
		{request{Method: "GET", URL: d.URL() + "/livez"}, "200 ok"},
		{request{Method: "GET", URL: "https://registry." + domain + ":5000/v2/"}, "401 "},
		{request{Method: "GET", URL: "https://" + d.RegistryAddress() + "/token?service=" + url.QueryEscape(d.RegistryAddress()), User: datacenter.OwnerEmail, Password: password}, `200 {`},
		{request{Method: "GET", URL: "https://" + ws.Status.APIHost + ":6443/version"}, `401 {"kind":"Status"`}, // it hears who has a token
	}
	var command []string
	for _, a := range asked {
		text, err := json.Marshal(a.request)
		if err != nil {
			t.Fatal(err)
		}
		command = append(command, string(text))
	}
	r := d.Kube(t, kubeconfig, trusted, append([]string{"exec", "-i", pod, "--", "/probe", "ask"}, command...)...)
	lines := strings.Split(strings.TrimSpace(r.Out), "\n")
	if r.Code != 0 || len(lines) != len(asked) {
		t.Fatal(r)
	}
	for i, a := range asked {
		if !strings.HasPrefix(lines[i], a.want) {
			t.Errorf("%s %s: got %q, want %q", a.Method, a.URL, lines[i], a.want)
		}
	}
}

// hostAttempts are the addresses of the platform that no pod may reach: all
// that the hosts have, in whatever namespace, with all ports that somebody
// listens on there, but for the front door.
func (d *suite) hostAttempts(t *testing.T) map[string]string {
	t.Helper()
	ports := []int{22, 80, 443, 2379, 2380, 5000, 6443, 6444, 7443, 10250, 10256}
	all := map[string]string{
		"tcp:169.254.169.254:80":                    "metadata of a cloud",
		"tcp:127.0.0.1:6444":                        "issuer at the pod's own loopback",
		"tcp:" + d.Lab.Address().String() + ":5443": "a host beside the platform",
		"tcp:" + d.Lab.Address().String() + ":22":   "a host beside the platform",
	}
	delete(all, "tcp:127.0.0.1:6444") // refused by the pod itself
	for _, h := range d.Lab.Hosts() {
		out, err := h.Run(t.Context(), "sh", "-c", `ip -o -4 addr; for n in $(ls /run/netns); do nsenter --net=/run/netns/$n ip -o -4 addr; done`)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line)
			if len(fields) < 4 {
				continue
			}
			prefix, err := netip.ParsePrefix(fields[3])
			if err != nil || prefix.Addr().IsLoopback() || prefix.Addr().IsLinkLocalUnicast() ||
				slices.ContainsFunc(addressPlan, func(p netip.Prefix) bool { return p.Contains(prefix.Addr()) }) {
				continue
			}
			for _, port := range ports {
				all[fmt.Sprintf("tcp:%s:%d", prefix.Addr(), port)] = h.Name() + " " + fields[1]
			}
			all[fmt.Sprintf("udp:%s:4789", prefix.Addr())] = h.Name() + " " + fields[1]
			all[fmt.Sprintf("udp:%s:53", prefix.Addr())] = h.Name() + " " + fields[1]
		}
	}
	for _, target := range d.Door() {
		delete(all, target)
	}
	return all
}
