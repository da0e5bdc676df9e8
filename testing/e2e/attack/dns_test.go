package attack

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/testing/datacenter"
)

// counts are what differs between two answers of no more meaning: the size, and how long
// a cache still keeps one.
var counts = regexp.MustCompile(`\d+ (bytes|IN)`)

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
	names := rows[map[string]string](t, "dns.yaml", "id", id, "app", datacenter.AppHost)
	what := map[string]string{}
	var questions []string
	// A name that is not there, of an app's form, and one that would be the operator's own.
	const nobodys, sites = "there.is.no.such." + datacenter.Domain, "nothing." + datacenter.Domain
	for name, whose := range names {
		for _, server := range []string{cluster, local} {
			for _, network := range []string{"udp", "tcp"} {
				q := server + "/" + network + "/" + name
				what[q] = whose
				questions = append(questions, q)
			}
		}
	}
	// Below the platform's domain every name of an app's form leads to its front door, as do
	// those that all know; others are the operator's own. What is there must not show in anything that
	// differs from the answer for a name that is not there.
	unnamed := func(q, answer string) string {
		return counts.ReplaceAllString(strings.ReplaceAll(answer, q[strings.LastIndex(q, "/")+1:]+".", "NAME"), "$1")
	}
	ofNobody := map[string]string{}
	var more []string
	for _, q := range questions {
		if strings.HasSuffix(q, "."+datacenter.Domain) {
			name := q[strings.LastIndex(q, "/")+1:]
			front := strings.TrimSuffix(name, "."+datacenter.Domain)
			twin := sites
			if front == "api" || front == "registry" || strings.HasSuffix(front, ".k8s") || strings.Count(front, ".") >= 3 {
				twin = nobodys
			}
			ofNobody[q] = strings.TrimSuffix(q, name) + twin
			more = append(more, ofNobody[q])
		}
	}
	slices.Sort(more)
	got := ask(append(slices.Clone(questions), slices.Compact(more)...))
	for _, q := range questions {
		answer, ok := got[q]
		if same, below := ofNobody[q]; below {
			nothing, asked := got[same]
			s.record(t, attempt{What: "ask for " + what[q] + ": " + q, From: "pod of A, root", Want: "the answer for a name that is not there", Got: answer + "; " + nothing,
				Blocked: ok && asked && unnamed(q, answer) == unnamed(same, nothing)})
			continue
		}
		// An answer of no records, a refusal and a connection that is closed tell nothing.
		told := strings.HasPrefix(answer, "NOERROR") && !strings.HasSuffix(answer, "bytes")
		// Addresses lead back to names of A's own cluster only.
		told = told && (!strings.Contains(q, "/PTR/") || !strings.Contains(answer, ".svc.cluster.local."))
		s.record(t, attempt{What: "ask for " + what[q] + ": " + q, From: "pod of A, root", Want: "nothing told", Got: answer, Blocked: ok && !told})
	}
}
