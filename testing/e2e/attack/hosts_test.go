package attack

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

// testHosts is what somebody does who has broken into a host, or has one's old disk:
// he has the certificates of the machines that are or were on it, and he reports what
// he likes.
func testHosts(t *testing.T, s *suite) {
	s.machineKeys(t)
	s.claims(t)
}

// machine is one machine as the API shows it.
type machine struct{ Name, UID string }

func (s *suite) machines(t *testing.T, a *asker, who, workspace string) (all []machine) {
	t.Helper()
	account, rest, _ := strings.Cut(workspace, "/")
	organization, name, _ := strings.Cut(rest, "/")
	var list struct{ Items []machine }
	got := a.ask(t, who, http.MethodGet, "/v1/accounts/"+account+"/organizations/"+organization+"/workspaces/"+name+"/machines", "")
	if err := json.Unmarshal([]byte(got.body), &list); err != nil {
		t.Fatal(got)
	}
	return list.Items
}

// stolen is what lies on a host of a machine that is there: its two certificates.
func (s *suite) stolen(t testing.TB, m machine) map[string]tls.Certificate {
	t.Helper()
	all := map[string]tls.Certificate{}
	for _, h := range s.Nodes {
		if _, err := os.Stat(h.Root("var", "lib", "multipaas", "machines", m.UID)); err != nil {
			continue // tenants are not told where their machines are
		}
		for _, name := range []string{"kubelet-client", "kube-proxy"} {
			at := h.Root("var", "lib", "multipaas", "machines", m.UID, "config", "pki", name)
			pair, err := tls.LoadX509KeyPair(at+".crt", at+".key")
			if err != nil {
				t.Fatal(err)
			}
			all[name] = pair
		}
	}
	if len(all) == 0 {
		t.Fatalf("machine %s is on no host", m.Name)
	}
	return all
}

// by speaks to the API of a workspace with a certificate.
func by(t testing.TB, kubeconfig string, pair tls.Certificate) *kube {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.ExecProvider = nil
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig.Certificates = []tls.Certificate{pair}
	tlsConfig.GetClientCertificate = nil
	return &kube{url: config.Host, client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true}}}
}

// wish is something that a machine may ask for, or may want.
type wish struct{ Method, Path, Type, Body string }

// machineKeys uses the certificates of machines: of one that was taken away, of those
// that are there for what is another's, and forged ones.
func (s *suite) machineKeys(t *testing.T) {
	a := s.people(t)
	scale := func(n int) {
		t.Helper()
		s.Must(t, dctest.Rival, "cluster", "scale", "box", "--machines", fmt.Sprint(n), "--timeout", "3m")
	}
	scale(2)
	var first, gone machine
	for _, m := range s.machines(t, a, ownerA, "beta/ops/box") {
		if m.Name == "box-1" {
			first = m
		} else {
			gone = m
		}
	}
	old, mine := s.stolen(t, gone), s.stolen(t, first)
	wishes := rows[struct {
		Wishes, Others []wish
	}](t, "machines.yaml", "gone", gone.Name, "uid", gone.UID)
	kubelet, proxy := by(t, s.box, old["kubelet-client"]), by(t, s.box, old["kube-proxy"])
	controls := func(when string, kubelet, proxy *kube, name string) bool {
		var err error
		if r := kubelet.do(t.Context(), http.MethodGet, "/api/v1/nodes/"+name, "", ""); r.code != http.StatusOK {
			err = errors.New(r.String())
		} else if r := proxy.do(t.Context(), http.MethodGet, "/api/v1/services", "", ""); r.code != http.StatusOK {
			err = errors.New(r.String())
		}
		return s.control(t, "the plane hears the machine "+name+" "+when, err)
	}
	if !controls("while it is there", kubelet, proxy, gone.Name) {
		return
	}
	// A watch that it has begun goes on after the machine, if nobody ends it.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	watch := func(k *kube, path string) *http.Response {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		client := *k.client
		client.Timeout = 0
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	open := watch(proxy, "/apis/discovery.k8s.io/v1/endpointslices?watch=1&timeoutSeconds=3600")
	defer open.Body.Close()
	ended := make(chan time.Time, 1)
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			if _, err := open.Body.Read(buffer); err != nil {
				ended <- time.Now()
				return
			}
		}
	}()
	scale(1)
	took := time.Now()
	refused := func(who, what string, r reply) {
		s.record(t, attempt{What: what, From: who, Want: "401", Got: r.String(), Blocked: r.code == http.StatusUnauthorized})
	}
	try := func(k *kube, who string, all []wish) {
		t.Helper()
		for _, w := range all {
			refused(who, w.Method+" "+w.Path, decided(t.Context(), func() reply { return k.do(t.Context(), w.Method, w.Path, w.Type, w.Body) }))
		}
	}
	if !controls("after another has gone", by(t, s.box, mine["kubelet-client"]), by(t, s.box, mine["kube-proxy"]), first.Name) {
		return
	}
	select {
	case at := <-ended:
		s.record(t, attempt{What: "go on with a watch of EndpointSlices", From: "kube-proxy of a machine that is gone", Want: "it ends", Got: fmt.Sprint("after ", at.Sub(took).Round(time.Second)), Blocked: true})
	case <-time.After(10 * time.Second):
		s.record(t, attempt{What: "go on with a watch of EndpointSlices", From: "kube-proxy of a machine that is gone", Want: "it ends", Got: "it goes on", Blocked: false})
	}
	try(kubelet, "kubelet of a machine that is gone", wishes.Wishes)
	try(proxy, "kube-proxy of a machine that is gone", wishes.Wishes)
	posing := by(t, s.box, old["kubelet-client"])
	posing.header = http.Header{"Impersonate-User": {"system:node:" + first.Name}, "Impersonate-Group": {"system:nodes", "multipaas:machine:" + first.UID}}
	try(posing, "kubelet of a machine that is gone, as another", wishes.Wishes[:8])
	// The certificates of one workspace at the plane of another.
	for name, pair := range mine {
		try(by(t, s.Kubeconfig(), pair), name+" of A's machine, at B's plane", wishes.Wishes)
	}
	// What the workspace's own authority has signed: certificates that machines had
	// under another platform, or that the authority's thief makes.
	ca := s.authority(t, "beta/ops/box")
	machine := func(uid string) string { return "multipaas:machine:" + uid }
	for what, r := range map[string]pki.Request{
		"a kubelet without UID":                {CommonName: "system:node:box-1", Organizations: []string{"system:nodes"}},
		"a kubelet of an unknown UID":          {CommonName: "system:node:box-1", Organizations: []string{"system:nodes", machine("00000000-0000-4000-8000-000000000000")}},
		"a kubelet of two UIDs":                {CommonName: "system:node:box-1", Organizations: []string{"system:nodes", machine(first.UID), machine(gone.UID)}},
		"a kubelet of a part of a UID":         {CommonName: "system:node:box-1", Organizations: []string{"system:nodes", machine(first.UID[:8])}},
		"a kubelet of a UID with more":         {CommonName: "system:node:box-1", Organizations: []string{"system:nodes", machine(first.UID + " ")}},
		"a kubelet of no UID":                  {CommonName: "system:node:box-1", Organizations: []string{"system:nodes", machine("")}},
		"a kubelet of the UID in another case": {CommonName: "system:node:box-1", Organizations: []string{"system:nodes", strings.ToUpper(machine(first.UID))}},
		"kube-proxy without UID":               {CommonName: "system:kube-proxy"},
		"kube-proxy of the machine that went":  {CommonName: "system:kube-proxy", Organizations: []string{machine(gone.UID)}},
		"a node's group under another name":    {CommonName: "anybody", Organizations: []string{"system:nodes"}},
	} {
		r.Client = true
		certPEM, keyPEM, err := ca.Issue(r)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		try(by(t, s.box, pair), what, wishes.Wishes[:12])
	}
	s.theOthers(t, a, wishes.Others)
}

// theOthers uses a machine's good certificate for what is another machine's.
func (s *suite) theOthers(t *testing.T, a *asker, wishes []wish) {
	var one machine
	for _, m := range s.machines(t, a, ownerB, "acme/web/shop") {
		if m.Name == s.victims[0].node {
			one = m
		}
	}
	k := by(t, s.Kubeconfig(), s.stolen(t, one)["kubelet-client"])
	other := s.victims[1]
	var err error
	if r := k.do(t.Context(), http.MethodGet, "/api/v1/nodes/"+one.Name, "", ""); r.code != http.StatusOK {
		err = errors.New(r.String())
	}
	if !s.control(t, "a machine reads its own node", err) {
		return
	}
	for _, w := range wishes {
		fill := strings.NewReplacer("OTHER", other.node, "POD", other.name, "SELF", one.Name)
		r := decided(t.Context(), func() reply {
			return k.do(t.Context(), w.Method, fill.Replace(w.Path), w.Type, fill.Replace(w.Body))
		})
		s.record(t, attempt{What: w.Method + " " + fill.Replace(w.Path), From: "kubelet of the machine " + one.Name, Want: "403 or 404", Got: r.String(),
			Blocked: r.code == http.StatusForbidden || r.code == http.StatusNotFound})
	}
}

// authority is what signs in a workspace, taken from the platform's own store.
func (s *suite) authority(t testing.TB, workspace string) *pki.CA {
	t.Helper()
	got, err := s.Etcd(t).Get(t.Context(), "/multipaas/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range got.Kvs {
		if !strings.HasSuffix(string(kv.Key), "workspacekeys/"+workspace) {
			continue
		}
		one, err := s.Etcd(t).Get(t.Context(), string(kv.Key))
		if err != nil || len(one.Kvs) != 1 {
			t.Fatal(one, err)
		}
		var keys struct{ CACert, CAKey []byte }
		if err := json.Unmarshal(one.Kvs[0].Value, &keys); err != nil {
			t.Fatal(err)
		}
		ca, err := pki.ParseCA(keys.CACert, keys.CAKey)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	t.Fatalf("no authority of %s among %d keys", workspace, len(got.Kvs))
	return nil
}

// invader has joined as a node, and speaks as one.
type invader struct {
	*asker
	name string
}

// invade joins as a node. It is removed, as lost, at the end of the test at the latest.
func (s *suite) invade(t *testing.T, a *asker, admin, name string) *invader {
	t.Helper()
	csr, key := request(t, name)
	body, err := json.Marshal(map[string]any{"name": name, "token": s.Token(t).Token, "csr": csr})
	if err != nil {
		t.Fatal(err)
	}
	got := a.ask(t, "", http.MethodPost, "/v1/agent/join", string(body))
	var joined struct{ Certificate []byte }
	if err := json.Unmarshal([]byte(got.body), &joined); err != nil || len(joined.Certificate) == 0 {
		t.Fatal(got)
	}
	pair := tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(joined.Certificate); block != nil; block, rest = pem.Decode(rest) {
		pair.Certificate = append(pair.Certificate, block.Bytes)
	}
	c := *a
	c.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.Pool, Certificates: []tls.Certificate{pair}}}}
	t.Cleanup(func() { s.giveUp(t, a, admin, name) })
	return &invader{&c, name}
}

func (s *suite) giveUp(t *testing.T, a *asker, admin, name string) {
	t.Helper()
	if got := a.bearer(t, admin, http.MethodDelete, s.URL()+"/v1/nodes/"+name+"?lost=true", ""); got.status >= 300 && got.status != http.StatusNotFound {
		t.Errorf("remove the node: %s", got)
	}
}

// told is what the platform takes a node to be.
type told struct {
	Status struct {
		Phase, Address, Kernel string
		Addresses              []string
		Capacity               struct{ MilliCPU, MemoryBytes, DiskBytes int64 }
	}
}

func (s *suite) node(t *testing.T, a *asker, admin, name string) (n told) {
	t.Helper()
	got := a.bearer(t, admin, http.MethodGet, s.URL()+"/v1/nodes/"+name, "")
	if err := json.Unmarshal([]byte(got.body), &n); err != nil || got.status != http.StatusOK {
		t.Fatal(got)
	}
	return n
}

// claims reports as a host what is not so, and goes on after it was thrown out.
func (s *suite) claims(t *testing.T) {
	a := s.people(t)
	admin := a.admin(t)
	lies := rows[struct {
		Addresses  map[string]string
		Capacities map[string]map[string]int64
		Texts      []string
		Paths      []struct{ Method, URL, Body string }
	}](t, "reports.yaml", "node1", s.Nodes[0].Address().String(), "node2", s.Nodes[1].Address().String(), "server", s.Server.Address().String(),
		"registry", s.RegistryAddress())
	report := func(n *invader, rep map[string]any) answer {
		t.Helper()
		body, err := json.Marshal(rep)
		if err != nil {
			t.Fatal(err)
		}
		for {
			got := n.ask(t, "", http.MethodPost, "/v1/agent/report", string(body))
			if got.status != http.StatusTooManyRequests {
				return got
			}
			time.Sleep(time.Second) // as it is told
		}
	}
	// Each invader may say a few things at once.
	const each = 8
	var liar *invader
	said := 0
	next := func(rep map[string]any) (*invader, answer) {
		t.Helper()
		if said%each == 0 {
			liar = s.invade(t, a, admin, fmt.Sprintf("liar%d", said/each))
			// It has almost nothing, and is where it comes from: ours, on the lab's network.
			report(liar, map[string]any{"address": "192.0.2.1", "capacity": map[string]int64{"milliCPU": 1, "memoryBytes": 1, "diskBytes": 1}})
		}
		said++
		return liar, report(liar, rep)
	}
	for what, address := range lies.Addresses {
		n, got := next(map[string]any{"address": address})
		is := s.node(t, a, admin, n.name)
		s.record(t, attempt{What: "report an address: " + what + ", " + address, From: "a host", Want: "it is not taken for the host's", Got: fmt.Sprintf("%s | %s at %q", got, is.Status.Phase, is.Status.Address),
			Blocked: is.Status.Address == "" && is.Status.Phase != "Ready" && got.status < 500 && got.status != 0})
	}
	s.besidesItself(t, a, admin, lies.Addresses, report)
	for what, capacity := range lies.Capacities {
		n, got := next(map[string]any{"address": "192.0.2.1", "drivers": []string{"sandbox"}, "capacity": capacity})
		c := s.node(t, a, admin, n.name).Status.Capacity
		s.record(t, attempt{What: "report a capacity: " + what, From: "a host", Want: "no more than it had", Got: fmt.Sprintf("%s | %+v", got, c),
			Blocked: max(c.MilliCPU, c.MemoryBytes, c.DiskBytes) <= 1 && min(c.MilliCPU, c.MemoryBytes, c.DiskBytes) >= 0 && got.status < 500 && got.status != 0})
	}
	for _, text := range lies.Texts {
		n, got := next(map[string]any{"address": "192.0.2.1", "kernel": text, "os": text, "version": text, "problems": []map[string]any{{"type": text, "status": text, "message": text}}})
		kept := s.node(t, a, admin, n.name).Status.Kernel
		s.record(t, attempt{What: fmt.Sprintf("report a kernel called %.40q", text), From: "a host", Want: "a short line", Got: fmt.Sprintf("%s | %.60q", got, kept),
			Blocked: len(kept) <= 128 && !strings.ContainsAny(kept, "\x1b\n\r\x00\u202e\u200b") && got.status < 500 && got.status != 0})
	}
	// Other hosts cut tenants off from the platform's hosts: from none that was lied about.
	for _, h := range s.Nodes {
		rules, err := h.Run(t.Context(), "nft", "list", "ruleset")
		for what, address := range lies.Addresses {
			if strings.Contains(address, ":") || !strings.HasPrefix(address, "203.0.113.") && !strings.HasPrefix(address, "198.51.100.") {
				continue
			}
			s.record(t, attempt{What: "have other hosts cut tenants off from " + what + ", " + address, From: "a host", Want: "no rule on " + h.Name(), Got: fmt.Sprint(len(rules), " bytes of rules, ", err), Blocked: err == nil && !strings.Contains(string(rules), address)})
		}
	}

	flood := s.invade(t, a, admin, "flood")
	counts := map[int]int{}
	for i := range 60 {
		counts[flood.ask(t, "", http.MethodPost, "/v1/agent/report", fmt.Sprintf(`{"address":"192.0.2.1","kernel":"%d"}`, i)).status]++
	}
	s.record(t, attempt{What: "60 reports at once", From: "a host", Want: "429 for most", Got: fmt.Sprint(counts), Blocked: counts[http.StatusTooManyRequests] >= 40})

	// Thrown out as lost, it has no word any more, from then on.
	lost := s.invade(t, a, admin, "lost")
	if !s.control(t, "a node is heard", heard(report(lost, map[string]any{"address": "192.0.2.1"}))) {
		return
	}
	s.giveUp(t, a, admin, lost.name)
	wait.For(t, wait.Patience, "the node is gone", func(context.Context) error {
		if got := a.bearer(t, admin, http.MethodGet, s.URL()+"/v1/nodes/"+lost.name, ""); got.status != http.StatusNotFound {
			return errors.New(got.String())
		}
		return nil
	})
	for _, p := range lies.Paths {
		url := p.URL
		if strings.HasPrefix(url, "/") {
			url = s.URL() + url
		}
		got := lost.bearer(t, "", p.Method, url, p.Body, "Content-Type", "application/json", "X-Multipaas-Workspace", "acme/web/shop")
		s.record(t, attempt{What: p.Method + " " + p.URL, From: "a host that was given up", Want: "401, 403, 404 or 410", Got: got.String(), Blocked: slices.Contains([]int{401, 403, 404, 410}, got.status)})
	}
	// That it holds nothing any more is the one word of such a host that is heard: nothing is
	// told for it. Who lives can't say so.
	got := lost.ask(t, "", http.MethodPost, "/v1/agent/wiped", "{}")
	s.record(t, attempt{What: "say that it holds nothing, to be told something", From: "a host that was given up", Want: "200, and no word", Got: got.String(),
		Blocked: got.status == http.StatusOK && strings.TrimSpace(got.body) == "{}"})
	got = flood.ask(t, "", http.MethodPost, "/v1/agent/wiped", "{}")
	s.record(t, attempt{What: "say that it holds nothing, to be forgotten", From: "a host", Want: "409", Got: got.String(), Blocked: got.status == http.StatusConflict})
}

// besidesItself reports to have other hosts' addresses, and anybody's, beside the host's
// own, and shows them from where they are not.
func (s *suite) besidesItself(t *testing.T, a *asker, admin string, lies map[string]string, report func(*invader, map[string]any) answer) {
	t.Helper()
	liar := s.invade(t, a, admin, "manifold")
	var all []string
	for _, address := range lies {
		if !strings.Contains(address, "%") { // a zone makes the report no report
			all = append(all, address)
		}
	}
	got := report(liar, map[string]any{"address": "192.0.2.1", "addresses": all})
	if !s.control(t, "a report of many addresses is heard", heard(got)) {
		return
	}
	taken := func() []string { return s.node(t, a, admin, liar.name).Status.Addresses }
	for what, address := range lies {
		s.record(t, attempt{What: "report another address: " + what + ", " + address, From: "a host", Want: "it is not taken for the host's", Got: fmt.Sprint(taken()),
			Blocked: !slices.Contains(taken(), address)})
		shown := liar.ask(t, "", http.MethodPost, "/v1/agent/address", fmt.Sprintf(`{"address":%q}`, address))
		s.record(t, attempt{What: "show another address from elsewhere: " + what + ", " + address, From: "a host", Want: "422, or no address", Got: fmt.Sprint(shown, " | ", taken()),
			Blocked: (shown.status == http.StatusUnprocessableEntity || shown.status == http.StatusBadRequest) && !slices.Contains(taken(), address)})
	}
}

func heard(got answer) error {
	if got.status != http.StatusOK {
		return errors.New(got.String())
	}
	return nil
}
