package attack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
	"github.com/multipaas/multipaas/testing/wait"
)

// claimedPorts are what A's Services answer on at addresses that aren't A's. Not
// among them is 6443, by which A's own machine would lose its plane.
var claimedPorts = []int{80, 443, 5000, 7443, 8080, 10250}

// testExternal lets A claim addresses of others for Services of its own, by
// externalIPs and by what a Service's status says of a load balancer: kube-proxy
// takes what goes to them wherever it is asked to. That must be nowhere but in A's
// own machine, where A may cheat itself.
func testExternal(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	s.putTool(t)
	const services = "/api/v1/namespaces/default/services"
	victims := map[string]string{} // address -> whose
	for _, v := range s.victims {
		victims[v.ip] = "B's pod"
	}
	r := s.Kube(t, s.Kubeconfig(), "", "get", "service", "tool", "-o", "jsonpath={.spec.clusterIP}")
	serviceOfB := strings.TrimSpace(r.Out)
	if _, err := netip.ParseAddr(serviceOfB); err != nil {
		t.Fatal(r)
	}
	victims[serviceOfB] = "B's Service"
	for _, h := range s.Lab.Hosts() {
		victims[h.Address().String()] = h.Name()
	}
	victims[plan.Plane.String()] = "the plane"
	victims["172.30.0.12"], victims["172.30.8.1"] = "B's second machine", "a host's place in the network"
	victims["169.254.20.10"], victims["169.254.169.254"] = "link-local endpoints", "metadata of a cloud"
	// Nobody's: what A claims here is for the control.
	const nobodys, nobodys2 = "198.51.100.77", "198.51.100.78"

	own := s.attacker.name
	// Another pod of A's asks, on the same machine: the Services lead to the first.
	k.must(t, "/api/v1/namespaces/default/pods", fmt.Sprintf(`{"metadata":{"name":"asker"},"spec":{"terminationGracePeriodSeconds":0,"nodeName":%q,"containers":[{"name":"c","image":%q,"args":["wait"],
		"readinessProbe":{"httpGet":{"port":8080,"path":"/healthz"},"periodSeconds":1}}]}}`, s.attacker.node, s.Image("beta/ops", "tool")))
	if r := s.Kube(t, s.box, "", "wait", "--for=condition=Ready", "pod/asker", "--timeout=5m"); r.Code != 0 {
		t.Fatal(r)
	}
	asker := pod{kubeconfig: s.box, name: "asker", node: s.attacker.node}
	var ports []string
	for _, p := range claimedPorts {
		ports = append(ports, fmt.Sprintf(`{"name":"p%d","port":%[1]d,"targetPort":8080}`, p))
	}
	made := 0
	claim := func(way, address string) reply {
		made++
		name := fmt.Sprintf("claim-%d", made)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		common := `"selector":{"app":"tool"},"ports":[` + strings.Join(ports, ",") + `]`
		if way == "externalIPs" {
			r := decided(ctx, func() reply {
				return k.post(ctx, services, `{"metadata":{"name":"`+name+`","labels":{"claim":"yes"}},"spec":{`+common+`,"externalIPs":["`+address+`"]}}`)
			})
			if r.code == http.StatusConflict { // a try whose answer was lost has made it
				r.code = http.StatusCreated
			}
			return r
		}
		return k.withStatus(ctx, services, name, `{"metadata":{"name":"`+name+`","labels":{"claim":"yes"}},"spec":{`+common+`,"type":"LoadBalancer","allocateLoadBalancerNodePorts":false}}`,
			`{"status":{"loadBalancer":{"ingress":[{"ip":"`+address+`"}]}}}`)
	}
	defer func() {
		ctx := context.WithoutCancel(t.Context())
		k.do(ctx, http.MethodDelete, services+"?labelSelector=claim%3Dyes", "", "")
		// What follows needs the link-local registry of A's machine.
		wait.For(t, wait.Patience, "A's machine has its registry back", func(context.Context) error {
			if got := s.asks(t, asker, "http://169.254.20.10:5000/who")["http://169.254.20.10:5000/who"]; strings.Contains(got, s.attacker.name) {
				return errors.New(got)
			}
			return nil
		})
		k.do(ctx, http.MethodDelete, "/api/v1/namespaces/default/pods/asker?gracePeriodSeconds=0", "", "")
	}()
	// One way is over before the next: that finds nothing done.
	withdraw := func() {
		ctx := context.WithoutCancel(t.Context())
		k.do(ctx, http.MethodDelete, services+"?labelSelector=claim%3Dyes", "", "")
		wait.For(t, wait.Patience, "A's claims are gone", func(ctx context.Context) error {
			var left struct{ Items []any }
			if err := k.read(ctx, services+"?labelSelector=claim%3Dyes", &left); err != nil || len(left.Items) > 0 {
				return fmt.Errorf("%d are left: %v", len(left.Items), err)
			}
			return nil
		})
	}
	for _, way := range []string{"externalIPs", "a load balancer's status"} {
		withdraw()
		free := nobodys
		if way != "externalIPs" {
			free = nobodys2
		}
		taken := map[string]string{}
		for _, address := range append(slices.Sorted(maps.Keys(victims)), free) {
			r := claim(way, address)
			if r.code/100 == 2 {
				taken[address] = victims[address]
				if address == free {
					taken[address] = "nobody's"
				}
				continue
			}
			// What the API does not take is refused, and that's that.
			s.record(t, attempt{What: "claim " + address + " (" + victims[address] + ") by " + way, From: owner, Want: "refused, or of no effect outside A's machine",
				Got: r.String(), Blocked: r.code == http.StatusUnprocessableEntity || r.code == http.StatusForbidden})
		}
		if way == "externalIPs" && len(taken) == 0 {
			continue // refused for anybody; the other way is the control
		}
		// The control: in A's machine all of them lead to A's own pod now. The last
		// one says that kube-proxy has got that far, for each of them.
		var urls []string
		for address := range taken {
			// Not one of the network of A's own pods: those are neighbours, and nobody
			// is there.
			if !strings.HasPrefix(address, "10.42.1.") {
				urls = append(urls, "http://"+address+":8080/who")
			}
		}
		var got map[string]string
		var err error
		for end := time.Now().Add(time.Minute); ; time.Sleep(300 * time.Millisecond) {
			err = nil
			if got = s.asks(t, asker, urls...); len(got) != len(urls) {
				err = fmt.Errorf("%d of %d were asked", len(got), len(urls))
			}
			for url, answer := range got {
				if !strings.HasSuffix(answer, " "+own) {
					err = errors.Join(err, fmt.Errorf("%s is %q", url, answer))
				}
			}
			if err == nil || time.Now().After(end) {
				break
			}
		}
		if len(urls) < 2 {
			err = errors.New("none was taken")
		}
		if !s.control(t, "A's pod gets its own answer from addresses that A claimed by "+way, err) {
			continue
		}
		s.untouched(t, way, taken)
	}
}

// asks lets a pod ask URLs.
func (s *suite) asks(t testing.TB, p pod, urls ...string) map[string]string {
	t.Helper()
	return answers(s.in(t, p, append([]string{"/tool", "get"}, urls...)...).Out)
}

func answers(out string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(out) {
		url, got, _ := strings.Cut(strings.TrimSpace(line), " ")
		all[url] = got
	}
	return all
}

// untouched asks all addresses that A has claimed from B's pods and from every
// host: nobody but A gets A's answer, and who is really there is still heard.
func (s *suite) untouched(t *testing.T, way string, taken map[string]string) {
	var urls []string
	for address := range taken {
		for _, port := range claimedPorts {
			for _, scheme := range []string{"http", "https"} {
				urls = append(urls, fmt.Sprintf("%s://%s:%d/who", scheme, address, port))
			}
		}
	}
	slices.Sort(urls)
	from := map[string]func(...string) map[string]string{}
	for _, v := range s.victims {
		from["B's pod on "+v.node] = func(urls ...string) map[string]string { return s.asks(t, v, urls...) }
	}
	for _, p := range s.spaces(t) {
		if p.name != "" && !strings.HasPrefix(p.name, "mp-") {
			continue // machines: asked from the pods in them
		}
		from[p.String()] = func(urls ...string) map[string]string {
			out, err := p.command(t.Context(), append([]string{hostTool, "get"}, urls...)...).Output()
			if err != nil {
				t.Logf("%s: %v", p, err) // what it did not ask is asked again
			}
			return answers(string(out))
		}
	}
	own := "mp-" + s.workspaceID(t, dctest.Rival, "box")
	maps.DeleteFunc(from, func(who string, _ func(...string) map[string]string) bool { return strings.HasSuffix(who, own) })
	// The true answers. Pods reach the server's front door, and hosts reach no pod.
	truth := map[string]string{}
	for _, v := range s.victims {
		truth["http://"+v.ip+":8080/who"] = v.name
	}
	server := s.Server.Address().String()
	truth["https://"+server+":7443/livez"], truth["http://"+server+":80/"] = "200 ok", "404"
	truly := slices.Sorted(maps.Keys(truth))
	heardBy := map[string]map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for who, ask := range from {
		wg.Go(func() {
			all := slices.Concat(truly, urls)
			got := ask(all...)
			for range 5 {
				rest := slices.DeleteFunc(slices.Clone(all), func(url string) bool { _, ok := got[url]; return ok })
				if len(rest) == 0 {
					break
				}
				maps.Copy(got, ask(rest...))
			}
			mu.Lock()
			defer mu.Unlock()
			heardBy[who] = got
		})
	}
	for _, v := range s.victims {
		wg.Go(func() {
			for _, target := range []string{"tcp:" + plan.Plane.String() + ":6443", "tcp:169.254.20.10:5000"} {
				answer := truthfully("open", func() string { return s.tries(t, v, []string{target})[target] })
				s.record(t, attempt{What: "keep B's pod on " + v.node + " from " + target + " by " + way, From: owner, Want: "open", Got: answer, Blocked: strings.HasPrefix(answer, "open")})
			}
		})
	}
	wg.Wait()
	for _, who := range slices.Sorted(maps.Keys(from)) {
		got := heardBy[who]
		for _, address := range slices.Sorted(maps.Keys(taken)) {
			heard, stolen := 0, []string{}
			for _, url := range urls {
				if !strings.Contains(url, "://"+address+":") {
					continue
				}
				answer, ok := got[url]
				if !ok {
					t.Errorf("%s did not ask %s", who, url)
				}
				if !strings.HasPrefix(answer, "none") {
					heard++
				}
				if strings.Contains(answer, s.attacker.name) {
					stolen = append(stolen, url)
				}
			}
			s.record(t, attempt{What: "take what " + who + " sends to " + address + " (" + taken[address] + ") by " + way, From: owner, Want: "not A's answer, from any port",
				Got: fmt.Sprintf("A's answer by %q; others' by %d", stolen, heard), Blocked: len(stolen) == 0})
		}
	}
	for _, who := range slices.Sorted(maps.Keys(from)) {
		ofB := strings.HasPrefix(who, "B's pod")
		for _, url := range truly {
			if ofB || !strings.HasPrefix(url, "http://10.42.") && !strings.Contains(who, " mp-") {
				got := heardBy[who][url]
				if !strings.Contains(got, truth[url]) {
					got = truthfully(truth[url], func() string { return from[who](url)[url] })
				}
				s.record(t, attempt{What: "keep " + who + " from " + url + " by " + way, From: owner, Want: truth[url], Got: got, Blocked: strings.Contains(got, truth[url])})
			}
		}
	}
}

// truthfully asks up to five times, until the answer holds what it should. Hundreds
// are asked at once here, and one may come too late; who is cut off hears nothing, ever.
func truthfully(want string, ask func() string) (got string) {
	for range 5 {
		if got = ask(); strings.Contains(got, want) {
			break
		}
		time.Sleep(time.Second)
	}
	return got
}
