package attack

import (
	"errors"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
)

// testDNS asks the resolvers that A has for what isn't A's.
func testDNS(t *testing.T, s *suite) {
	const cluster, local = "10.43.0.10:53", "169.254.20.10:53"
	own := cluster + "/udp/A/tool.default.svc.cluster.local"
	ask := func(questions []string) map[string]string {
		r := s.in(t, s.attacker, append([]string{"/tool", "ask"}, questions...)...)
		all := map[string]string{}
		for line := range strings.Lines(r.Out) {
			question, answer, _ := strings.Cut(strings.TrimSpace(line), " ")
			all[question] = answer
		}
		return all
	}
	var err error
	if got := ask([]string{own})[own]; !strings.HasPrefix(got, "NOERROR") || !strings.Contains(got, " A 10.43.") {
		err = errors.New(got)
	}
	if !s.control(t, "A resolves its own Service", err) {
		return
	}
	id := s.workspaceID(t, datacenter.Owner, "shop")
	names := map[string]string{
		"A/hello.default.svc.cluster.local": "B's Service", "A/probe.default.svc.cluster.local": "B's Service",
		"A/server": "a host", "A/node1": "a host", "A/server." + datacenter.Domain: "a host", "A/" + datacenter.Domain: "the platform's domain",
		"A/" + datacenter.AppHost: "B's app", "A/" + id + ".k8s." + datacenter.Domain: "B's API", "SOA/" + datacenter.Domain: "the platform's domain",
		"NS/" + datacenter.Domain: "the platform's domain", "ANY/" + datacenter.Domain: "the platform's domain", "AXFR/" + datacenter.Domain: "the platform's zone",
		"IXFR/" + datacenter.Domain: "the platform's zone", "AXFR/.": "the root zone", "ANY/.": "the root", "NS/.": "the root",
		"PTR/10.1.96.10.in-addr.arpa": "a host's address", "PTR/1.0.30.172.in-addr.arpa": "the plane's address",
		"TXT/version.bind": "the resolver's version", "TXT/hostname.bind": "the resolver's host", "TXT/id.server.bind": "the resolver's host",
		"A/metadata.google.internal": "metadata of a cloud", "A/multipaas.internal": "the platform's registry", "A/localtest.me": "a name that leads to loopback",
		"A/169.254.169.254.nip.io": "a name that leads to metadata", "SRV/_etcd-server._tcp." + datacenter.Domain: "the platform's etcd",
	}
	what := map[string]string{}
	var questions []string
	for name, whose := range names {
		for _, server := range []string{cluster, local} {
			for _, network := range []string{"udp", "tcp"} {
				q := server + "/" + network + "/" + name
				what[q] = whose
				questions = append(questions, q)
			}
		}
	}
	got := ask(questions)
	for _, q := range questions {
		answer, ok := got[q]
		// An answer of no records, a refusal and a connection that is closed tell nothing.
		told := strings.HasPrefix(answer, "NOERROR") && !strings.HasSuffix(answer, "bytes")
		// Addresses lead back to names of A's own cluster only.
		told = told && (!strings.Contains(q, "/PTR/") || !strings.Contains(answer, ".svc.cluster.local."))
		s.record(t, attempt{What: "ask for " + what[q] + ": " + q, From: "pod of A, root", Want: "nothing told", Got: answer, Blocked: ok && !told})
	}
}
