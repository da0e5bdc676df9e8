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
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
)

// testPlane makes A's plane, a process of the platform, connect for A: to what
// A writes into nodes, Services and webhooks. Where it gets an answer is seen in
// what it says: an error of TLS or HTTP is one, a time-out is none.
func testPlane(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"detour"}}`)
	// Where pods are said to run that run nowhere: those of a node that isn't there are
	// deleted.
	k.must(t, "/api/v1/nodes", `{"metadata":{"name":"nowhere"}}`)
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
		if strings.HasPrefix(address.String(), "100.64.") && !strings.Contains(what, " mp-"+s.workspaceID(t, dctest.Rival, "box")+" ") {
			targets[address.String()+":7443"] = what
		}
	}
	targets["172.30.0.12:10250"] = "kubelet of B's second machine"
	targets["127.0.0.1:6444"], targets["127.0.0.1:2379"] = "loopback of the plane", "loopback of the plane"
	targets["169.254.169.254:80"], targets["169.254.20.10:5000"] = "metadata of a cloud", "link-local endpoints"
	targets["0.0.0.0:6444"] = "any address of the plane"
	const who = "owner of A, through A's plane"

	var meanwhile sync.WaitGroup // what is not answered takes the plane half a minute
	meanwhile.Go(func() { s.called(t, k, targets) })
	began := time.Now()
	meanwhile.Go(func() {
		s.handed(t, k, targets)
		t.Logf("what is handed on took %s", time.Since(began).Round(time.Second))
	})
	defer meanwhile.Wait()

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
				status := `{"status":{"addresses":[{"type":"InternalIP","address":"` + address + `"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":` + port + `}}}}`
				if r := k.withStatus(ctx, "/api/v1/nodes", name, `{"metadata":{"name":"`+name+`"}}`, status); r.code/100 != 2 {
					return r
				}
				return k.proxied(ctx, "/api/v1/nodes/http:"+name+":"+port+"/proxy/healthz")
			},
			"a pod's address (pods/proxy)": func(ctx context.Context) reply {
				const pods = "/api/v1/namespaces/detour/pods"
				status := `{"status":{"phase":"Running","podIP":"` + address + `","podIPs":[{"ip":"` + address + `"}]}}`
				if r := k.withStatus(ctx, pods, name, podJSON(`"name":"`+name+`"`, `"nodeName":"nowhere"`, ""), status); r.code/100 != 2 {
					return r
				}
				return k.proxied(ctx, pods+"/http:"+name+":"+port+"/proxy/healthz")
			},
		} {
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				r := ask(ctx)
				if target == own {
					var err error
					// As a kubelet it is spoken to by TLS, which the pod does not know.
					if r.body != "ok" && !strings.Contains(r.body, "does not look like a TLS handshake") {
						err = fmt.Errorf("%s", r)
					}
					s.control(t, "A's own pod answers by "+way, err)
					return
				}
				if !r.tried() {
					s.control(t, "A's plane tries "+target+" by "+way, fmt.Errorf("%s", r))
					return
				}
				s.record(t, attempt{What: "GET " + target + " (" + targets[target] + ") by " + way, From: who, Want: "no answer",
					Got: r.String(), Blocked: r.code >= 400 && unreached(r.body)})
			})
		}
	}
	wg.Wait()
}

// withStatus makes an object with a status of A's own, or returns what kept it from
// that.
func (k *kube) withStatus(ctx context.Context, path, name, object, status string) reply {
	r := decided(ctx, func() reply { return k.post(ctx, path, object) })
	if r.code/100 != 2 && r.code != http.StatusConflict {
		return r
	}
	return decided(ctx, func() reply { return k.patch(ctx, "merge", path+"/"+name+"/status", status) })
}

// proxied asks through the API until it has tried to connect, or has refused to.
func (k *kube) proxied(ctx context.Context, path string) reply {
	r := k.do(ctx, http.MethodGet, path, "", "")
	for !r.tried() && ctx.Err() == nil {
		time.Sleep(300 * time.Millisecond)
		r = k.do(ctx, http.MethodGet, path, "", "")
	}
	return r
}

// tried says that the API has connected for A, or tried to, or has refused it: all
// but troubles of its own, and objects that it has not heard of yet.
func (r reply) tried() bool {
	for _, sign := range []string{"error trying to reach service", "failed calling webhook"} {
		if strings.Contains(r.body, sign) {
			return true
		}
	}
	return !r.undecided() && !strings.Contains(r.body, "no endpoints available")
}

// unreached says whether the words of an error are of a plane that reached nobody,
// or of one that refused to try. Words that it doesn't know are somebody's answer.
func unreached(words string) bool {
	if answered(words) {
		return false
	}
	for _, sign := range []string{": i/o timeout", "context deadline exceeded", "timed out waiting for", "request canceled while waiting for connection", "connect: no route to host", "connect: network is unreachable",
		"address not allowed", "may not be in the loopback range", "may not be in the link-local range", "unsupported service type"} {
		if strings.Contains(words, sign) {
			return true
		}
	}
	return false
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

// called makes A's plane call webhooks and servers of API groups that A names. On
// the plane's own loopback nobody but the plane itself and the platform's public
// documents listens: there a refused connection is what should happen.
func (s *suite) called(t *testing.T, k *kube, targets map[string]string) {
	own := s.attacker.ip + ":8080"
	some := map[string]string{own: "A's own pod"}
	for target, what := range targets {
		if _, port, _ := strings.Cut(target, ":"); port != "22" && target != "0.0.0.0:6444" && target != "127.0.0.1:6444" {
			some[target] = what
		}
	}
	for _, port := range []string{"80", "443", "5000", "7443", "10250", "10257", "10259"} {
		some["127.0.0.1:"+port] = "loopback of the plane"
	}
	blocked := func(target string, r reply) bool {
		if strings.HasPrefix(target, "127.") && strings.Contains(r.body, "connection refused") {
			return true
		}
		return r.code >= 400 && unreached(r.body)
	}
	// A way is prepared, and asked until it was taken. The plane waits for longer than
	// TLS does for somebody who takes a connection and says nothing: that is told.
	ways := map[string]func(ctx context.Context, name, target string) reply{
		"a webhook's URL": func(ctx context.Context, name, target string) reply {
			if r := k.post(ctx, "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", `{"metadata":{"name":"`+name+`"},"webhooks":[{"name":"a.`+name+`.test",
				"clientConfig":{"url":"https://`+target+`/healthz"},"rules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["configmaps"]}],
				"objectSelector":{"matchLabels":{"called":"`+name+`"}},"sideEffects":"None","admissionReviewVersions":["v1"],"timeoutSeconds":15,"failurePolicy":"Fail"}]}`); r.code/100 != 2 && r.code != http.StatusConflict {
				return r
			}
			return k.post(ctx, "/api/v1/namespaces/detour/configmaps?dryRun=All", `{"metadata":{"name":"`+name+`","labels":{"called":"`+name+`"}}}`)
		},
		"a Service by the name of something outside, for a webhook": func(ctx context.Context, name, target string) reply {
			address, port, _ := strings.Cut(target, ":")
			name = "by-name-" + name
			if r := k.post(ctx, "/api/v1/namespaces/detour/services", `{"metadata":{"name":"`+name+`"},"spec":{"type":"ExternalName","externalName":"`+address+`","ports":[{"port":`+port+`}]}}`); r.code/100 != 2 && r.code != http.StatusConflict {
				return r
			}
			if r := k.post(ctx, "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", `{"metadata":{"name":"`+name+`"},"webhooks":[{"name":"a.`+name+`.test",
				"clientConfig":{"service":{"namespace":"detour","name":"`+name+`","port":`+port+`}},"rules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["configmaps"]}],
				"objectSelector":{"matchLabels":{"called":"`+name+`"}},"sideEffects":"None","admissionReviewVersions":["v1"],"timeoutSeconds":15,"failurePolicy":"Fail"}]}`); r.code/100 != 2 && r.code != http.StatusConflict {
				return r
			}
			return k.post(ctx, "/api/v1/namespaces/detour/configmaps?dryRun=All", `{"metadata":{"name":"`+name+`","labels":{"called":"`+name+`"}}}`)
		},
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, 32)
	for i, target := range slices.Sorted(maps.Keys(some)) {
		for way, ask := range ways {
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				name := fmt.Sprintf("called-%d", i)
				r := ask(ctx, name, target)
				for (r.code/100 == 2 || !r.tried()) && ctx.Err() == nil { // the API server has not heard of the webhook yet
					time.Sleep(200 * time.Millisecond)
					r = ask(ctx, name, target)
				}
				if target == own {
					// By name nothing of A's is reached either; the other way is the control.
					if way == "a webhook's URL" {
						var err error
						if !strings.Contains(r.body, "HTTPS") {
							err = fmt.Errorf("%s", r)
						}
						s.control(t, "A's own pod is called by "+way, err)
					}
					return
				}
				if !r.tried() {
					s.control(t, "A's plane tries "+target+" by "+way, fmt.Errorf("%s", r))
					return
				}
				s.record(t, attempt{What: "call " + target + " (" + some[target] + ") by " + way, From: "owner of A, through A's plane", Want: "no answer",
					Got: r.String(), Blocked: blocked(target, r)})
			})
		}
	}
	wg.Wait()
	k.do(t.Context(), http.MethodDelete, "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations", "", "")
}
