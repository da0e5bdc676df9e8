package attack

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
)

// testPlane makes A's plane, a process of the platform, connect for A: to what
// A writes into nodes, Services and webhooks. Where it gets an answer is seen in
// what it says: an error of TLS or HTTP is one, a time-out is none.
func testPlane(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"detour"}}`)
	targets := map[string]string{}
	for _, h := range s.Lab.Hosts() {
		for _, port := range []int{22, 7443, 10250} {
			targets[fmt.Sprintf("%s:%d", h.Address(), port)] = h.Name()
		}
	}
	for _, port := range []int{80, 443, 2379, 5000, 6443} {
		targets[fmt.Sprintf("%s:%d", s.Server.Address(), port)] = "server"
	}
	for address, what := range s.hostAddresses(t) {
		// A plane's uplink is its own; it has the same address on other hosts.
		if strings.HasPrefix(address.String(), "100.64.") && !strings.Contains(what, " mp-"+s.workspaceID(t, datacenter.Rival, "box")+" ") {
			targets[address.String()+":7443"] = what
		}
	}
	targets["172.30.0.12:10250"] = "kubelet of B's second machine"
	targets["127.0.0.1:6444"], targets["127.0.0.1:2379"] = "loopback of the plane", "loopback of the plane"
	targets["169.254.169.254:80"], targets["169.254.20.10:5000"] = "metadata of a cloud", "link-local endpoints"
	targets["0.0.0.0:6444"] = "any address of the plane"
	const who = "owner of A, through A's plane"

	// The control: the same ways lead to A's own pod.
	own := s.attacker.ip + ":8080"
	all := append([]string{own}, slices.Sorted(maps.Keys(targets))...)
	var wg sync.WaitGroup
	places := make(chan struct{}, 64)
	for i, target := range all {
		address, port := target[:strings.LastIndexByte(target, ':')], target[strings.LastIndexByte(target, ':')+1:]
		name := fmt.Sprintf("detour-%d", i)
		for way, ask := range map[string]func(context.Context) reply{
			"a node's address (nodes/proxy)": func(ctx context.Context) reply {
				if r := k.post(ctx, "/api/v1/nodes", `{"metadata":{"name":"`+name+`"}}`); r.code/100 != 2 && r.code != http.StatusConflict {
					return r
				}
				if r := k.patch(ctx, "merge", "/api/v1/nodes/"+name+"/status", `{"status":{"addresses":[{"type":"InternalIP","address":"`+address+`"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":`+port+`}}}}`); r.code/100 != 2 {
					return r
				}
				return k.do(ctx, http.MethodGet, "/api/v1/nodes/http:"+name+":"+port+"/proxy/healthz", "", "")
			},
			"a pod's address (pods/proxy)": func(ctx context.Context) reply {
				if r := k.post(ctx, "/api/v1/namespaces/detour/pods", podJSON(`"name":"`+name+`"`, `"nodeName":"nowhere"`, "")); r.code/100 != 2 && r.code != http.StatusConflict {
					return r
				}
				if r := k.patch(ctx, "merge", "/api/v1/namespaces/detour/pods/"+name+"/status", `{"status":{"phase":"Running","podIP":"`+address+`","podIPs":[{"ip":"`+address+`"}]}}`); r.code/100 != 2 {
					return r
				}
				return k.do(ctx, http.MethodGet, "/api/v1/namespaces/detour/pods/http:"+name+":"+port+"/proxy/healthz", "", "")
			},
		} {
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				r := ask(t.Context())
				if target == own {
					var err error
					// As a kubelet it is spoken to by TLS, which the pod does not know.
					if r.body != "ok" && !strings.Contains(r.body, "does not look like a TLS handshake") {
						err = fmt.Errorf("%s", r)
					}
					s.control(t, "A's own pod answers by "+way, err)
					return
				}
				s.record(t, attempt{What: "GET " + target + " (" + targets[target] + ") by " + way, From: who, Want: "no answer",
					Got: r.String(), Blocked: r.code != 0 && r.code/100 != 2 && !answered(r.body) && !strings.Contains(r.body, "no endpoints available")})
			})
		}
	}
	wg.Wait()
}

// answered says whether the words of an error come from somebody who answered.
func answered(words string) bool {
	for _, sign := range []string{"x509", "tls:", "connection refused", "EOF", "HTTP/", "HTTPS", "malformed", "reset by peer", "status code", "404 page"} {
		if strings.Contains(words, sign) {
			return true
		}
	}
	return false
}
