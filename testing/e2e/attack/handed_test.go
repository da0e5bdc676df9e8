package attack

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// handed makes A's plane connect for A in the ways that need objects of more than
// one kind: kinds of A's own that a webhook converts, API groups that are handed
// on to a Service, and Services that are asked through the API. Where such a
// Service leads, A writes by hand.
//
// It is called with the targets of testPlane, and with A's own pod for control.
func (s *suite) handed(t *testing.T, k *kube, targets map[string]string) {
	own := s.attacker.ip + ":8080"
	all := map[string]string{own: "A's own pod"}
	maps.Copy(all, targets)
	for _, port := range []string{"443", "10257"} {
		all["127.0.0.1:"+port] = "loopback of the plane"
	}
	// There the plane itself listens for its own, and the platform with documents
	// that are public.
	delete(all, "127.0.0.1:6444")
	delete(all, "0.0.0.0:6444")
	ways := []handing{
		{what: "an API group that is handed to a Service with an EndpointSlice by hand", ask: s.aggregated, every: true},
		{what: "a Service with Endpoints by hand (services/proxy)", ask: s.serviceProxy, every: true},
		{what: "the URL of a webhook that converts a kind of A's own", ask: s.convertedByURL},
		{what: "a Service by the name of something outside, for a webhook that converts", ask: s.convertedByName, noControl: true},
		{what: "a Service with an EndpointSlice by hand, for a webhook that converts", ask: s.convertedBySlice},
	}
	var wg sync.WaitGroup
	places := make(chan struct{}, 64) // most of them wait half a minute for nobody
	for i, target := range slices.Sorted(maps.Keys(all)) {
		for n, way := range ways {
			if target != own && !way.every && !long() && !several(target) {
				continue
			}
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
				defer cancel()
				address, port := target[:strings.LastIndexByte(target, ':')], target[strings.LastIndexByte(target, ':')+1:]
				tried, got := way.ask(ctx, k, fmt.Sprintf("handed%d-%d", n, i), address, port)
				if target == own {
					if !way.noControl {
						var err error
						if !tried || !answered(got) && !strings.HasSuffix(got, " ok") {
							err = fmt.Errorf("%s", got)
						}
						s.control(t, "A's own pod is reached by "+way.what, err)
					}
					return
				}
				if !tried {
					s.control(t, "A's plane tries "+target+" by "+way.what, fmt.Errorf("%s", got))
					return
				}
				s.record(t, attempt{What: "call " + target + " (" + all[target] + ") by " + way.what, From: "owner of A, through A's plane", Want: "no answer",
					Got: got, Blocked: unreached(got) || strings.HasPrefix(target, "127.") && strings.Contains(got, "connection refused")})
			})
		}
	}
	wg.Wait()
	for _, path := range []string{"/apis/apiregistration.k8s.io/v1/apiservices?labelSelector=handed%3Dyes", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?labelSelector=handed%3Dyes"} {
		k.do(context.WithoutCancel(t.Context()), http.MethodDelete, path, "", "")
	}
}

// handing is one way to have the plane connect. It says whether the plane has
// tried, or the API has refused what A wrote, and what came of it.
type handing struct {
	what             string
	ask              func(ctx context.Context, k *kube, name, address, port string) (tried bool, got string)
	every, noControl bool
}

// several are enough for what costs the plane a kind of its own each: the dialer
// is the same for all.
func several(target string) bool {
	for _, end := range []string{":7443", ":2379", "127.0.0.1:443", "172.30.0.12:10250", "169.254.169.254:80"} {
		if strings.HasSuffix(target, end) && !strings.HasPrefix(target, "100.64.") {
			return true
		}
	}
	return false
}

// make writes objects, path and body in turn. What is not ok was refused, in the
// API's own words, or not decided before ctx was done.
func (k *kube) make(ctx context.Context, pathsAndBodies ...string) (ok, refused bool, words string) {
	for i := 0; i+1 < len(pathsAndBodies); i += 2 {
		r := decided(ctx, func() reply { return k.post(ctx, pathsAndBodies[i], pathsAndBodies[i+1]) })
		if r.code/100 != 2 && r.code != http.StatusConflict {
			return false, !r.undecided(), r.String()
		}
	}
	return true, false, ""
}

const handedServices = "/api/v1/namespaces/detour/services"

// serviceBySlice is a Service without a selector, and where it leads by hand.
func serviceBySlice(name, address, port string) []string {
	return []string{
		handedServices, `{"metadata":{"name":"` + name + `"},"spec":{"ports":[{"name":"a","port":443,"targetPort":` + port + `}]}}`,
		"/apis/discovery.k8s.io/v1/namespaces/detour/endpointslices", `{"metadata":{"name":"` + name + `","labels":{"kubernetes.io/service-name":"` + name + `"}},"addressType":"IPv4",
			"ports":[{"name":"a","port":` + port + `,"protocol":"TCP"}],"endpoints":[{"addresses":["` + address + `"],"conditions":{"ready":true}}]}`,
	}
}

// aggregated hands an API group to a Service. The plane asks it at once, whether it
// is available, and says in the group's status what came of that.
func (s *suite) aggregated(ctx context.Context, k *kube, name, address, port string) (bool, string) {
	const groups = "/apis/apiregistration.k8s.io/v1/apiservices"
	if ok, refused, words := k.make(ctx, serviceBySlice(name, address, port)...); !ok {
		return refused, words
	}
	if ok, _, words := k.make(ctx, groups, `{"metadata":{"name":"v1.`+name+`.test","labels":{"handed":"yes"}},"spec":{"group":"`+name+`.test","version":"v1","groupPriorityMinimum":1000,"versionPriority":10,
		"insecureSkipTLSVerify":true,"service":{"namespace":"detour","name":"`+name+`","port":443}}}`); !ok {
		return false, words
	}
	got := ""
	for ; ctx.Err() == nil; time.Sleep(300 * time.Millisecond) {
		var group struct {
			Status struct {
				Conditions []struct{ Type, Status, Reason, Message string }
			}
		}
		if err := k.read(ctx, groups+"/v1."+name+".test", &group); err != nil {
			got = err.Error()
			continue
		}
		for _, c := range group.Status.Conditions {
			got = c.Status + " " + c.Reason + ": " + c.Message
			if c.Reason == "FailedDiscoveryCheck" {
				return true, got
			}
			if c.Status == "True" {
				return true, "200 " + got
			}
		}
	}
	return false, got
}

// serviceProxy asks a Service through the API. Only a pod's address will do: so a
// pod that runs nowhere says that it has this one.
func (s *suite) serviceProxy(ctx context.Context, k *kube, name, address, port string) (bool, string) {
	const pods = "/api/v1/namespaces/detour/pods"
	status := `{"status":{"phase":"Running","podIP":"` + address + `","podIPs":[{"ip":"` + address + `"}]}}`
	if r := k.withStatus(ctx, pods, name, podJSON(`"name":"`+name+`"`, `"nodeName":"nowhere"`, ""), status); r.code/100 != 2 {
		return false, r.String()
	}
	if ok, refused, words := k.make(ctx, handedServices, `{"metadata":{"name":"`+name+`"},"spec":{"ports":[{"name":"a","port":80,"targetPort":`+port+`}]}}`,
		"/apis/discovery.k8s.io/v1/namespaces/detour/endpointslices", `{"metadata":{"name":"`+name+`","labels":{"kubernetes.io/service-name":"`+name+`"}},"addressType":"IPv4",
			"ports":[{"name":"a","port":`+port+`,"protocol":"TCP"}],"endpoints":[{"addresses":["`+address+`"],"targetRef":{"kind":"Pod","namespace":"detour","name":"`+name+`"}}]}`,
		"/api/v1/namespaces/detour/endpoints", `{"metadata":{"name":"`+name+`"},"subsets":[{"addresses":[{"ip":"`+address+`","targetRef":{"kind":"Pod","namespace":"detour","name":"`+name+`"}}],"ports":[{"name":"a","port":`+port+`}]}]}`); !ok {
		return refused, words
	}
	r := k.proxied(ctx, handedServices+"/http:"+name+":a/proxy/healthz")
	return r.tried(), r.String()
}

func (s *suite) convertedByURL(ctx context.Context, k *kube, name, address, port string) (bool, string) {
	return s.converted(ctx, k, name, `"url":"https://`+address+`:`+port+`/healthz"`)
}

func (s *suite) convertedByName(ctx context.Context, k *kube, name, address, port string) (bool, string) {
	if ok, refused, words := k.make(ctx, handedServices, `{"metadata":{"name":"`+name+`"},"spec":{"type":"ExternalName","externalName":"`+address+`","ports":[{"port":`+port+`}]}}`); !ok {
		return refused, words
	}
	return s.converted(ctx, k, name, `"service":{"namespace":"detour","name":"`+name+`","port":`+port+`}`)
}

func (s *suite) convertedBySlice(ctx context.Context, k *kube, name, address, port string) (bool, string) {
	if ok, refused, words := k.make(ctx, serviceBySlice(name, address, port)...); !ok {
		return refused, words
	}
	return s.converted(ctx, k, name, `"service":{"namespace":"detour","name":"`+name+`","port":443}`)
}

// converted makes a kind with two versions and an object of the one that is not
// stored: the webhook is asked to convert it.
func (s *suite) converted(ctx context.Context, k *kube, name, webhook string) (bool, string) {
	version := func(name string, stored bool) string {
		return fmt.Sprintf(`{"name":%q,"served":true,"storage":%t,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}`, name, stored)
	}
	group := name + ".test"
	if ok, refused, words := k.make(ctx, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", `{"metadata":{"name":"things.`+group+`","labels":{"handed":"yes"}},"spec":{"group":"`+group+`","scope":"Namespaced",
		"names":{"plural":"things","singular":"thing","kind":"Thing"},"versions":[`+version("v1", true)+`,`+version("v2", false)+`],
		"conversion":{"strategy":"Webhook","webhook":{"conversionReviewVersions":["v1"],"clientConfig":{`+webhook+`}}}}}`); !ok {
		return refused, words
	}
	object, err := json.Marshal(map[string]any{"apiVersion": group + "/v2", "kind": "Thing", "metadata": map[string]string{"name": "a"}})
	if err != nil {
		return false, err.Error()
	}
	var r reply
	for ; ctx.Err() == nil; time.Sleep(300 * time.Millisecond) { // until the kind is served
		r = k.post(ctx, "/apis/"+group+"/v2/namespaces/detour/things", string(object))
		if strings.Contains(r.body, "conversion webhook") {
			return true, r.String()
		}
	}
	return false, r.String()
}
