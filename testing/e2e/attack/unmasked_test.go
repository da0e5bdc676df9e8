package attack

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// testUnmasked asks for pods whose /proc hides nothing. Pod Security's baseline
// lets a pod have that if it has users of its own, who are nobody outside: whether
// machines can run such pods or not, the machine must stay closed.
func testUnmasked(t *testing.T, s *suite) {
	k := newKube(t, s.box)
	k.must(t, "/api/v1/namespaces", `{"metadata":{"name":"unmasked"}}`)
	const alone, own = `"procMount":"Unmasked",`, `"hostUsers":false,`
	type pod struct{ what, spec, context string }
	pods := map[string]pod{
		"control":     {"nothing special", ``, ``},
		"alone":       {"procMount Unmasked", ``, alone},
		"host-users":  {"procMount Unmasked and hostUsers true", `"hostUsers":true,`, alone},
		"own-users":   {"hostUsers false", own, ``},
		"both":        {"hostUsers false and procMount Unmasked", own, alone},
		"both-admin":  {"hostUsers false, procMount Unmasked and SYS_ADMIN", own, alone + `"capabilities":{"add":["SYS_ADMIN"]},`},
		"both-free":   {"hostUsers false, procMount Unmasked and no seccomp", own, alone + `"seccompProfile":{"type":"Unconfined"},`},
		"both-host":   {"hostUsers false, procMount Unmasked and host network", own + `"hostNetwork":true,`, alone},
		"both-pids":   {"hostUsers false, procMount Unmasked and host PID", own + `"hostPID":true,`, alone},
		"both-shared": {"hostUsers false, procMount Unmasked and one PID namespace for the pod", own + `"shareProcessNamespace":true,`, alone},
	}
	results, replies := map[string]map[string]started{}, map[string]*reply{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for name, p := range pods {
		wg.Go(func() {
			container := func(name string, args ...string) string {
				return fmt.Sprintf(`{"name":%q,"image":%q,"args":["%s"],"securityContext":{%s"runAsUser":0,"runAsGroup":0}}`, name, s.Image("beta/ops", "tool"), strings.Join(args, `","`), p.context)
			}
			all, r := s.lonePod(t, k, "unmasked", name, p.spec+`"containers":[`+container("open", append([]string{"open"}, machineFiles...)...)+","+
				container("write", append([]string{"write"}, kernelFiles...)...)+","+container("gain", "gain")+"]", "open", "write", "gain")
			mu.Lock()
			defer mu.Unlock()
			results[name], replies[name] = all, r
		})
	}
	wg.Wait()
	var err error
	for _, c := range []string{"open", "write", "gain"} {
		if got := results["control"][c]; !got.ran || len(got.lines) == 0 {
			err = errors.Join(err, fmt.Errorf("%s: %s; %v", c, got, replies["control"]))
		}
	}
	if !s.control(t, "such a pod without anything special runs", err) {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(pods)) {
		p := pods[name]
		record := func(what, got string, blocked bool) {
			s.record(t, attempt{What: "a pod with " + p.what + ": " + what, From: owner, Want: "refused, or the machine stays closed", Got: got, Blocked: blocked})
		}
		if r := replies[name]; r != nil {
			record("have it made", r.String(), refused(*r) || r.code == http.StatusUnprocessableEntity && strings.Contains(r.body, "hostUsers"))
			continue
		}
		for _, c := range []string{"open", "write", "gain"} {
			got, ok := results[name][c]
			if !ok {
				s.control(t, "a pod with "+p.what+" runs or is refused", fmt.Errorf("container %s: neither", c))
				continue
			}
			if !got.ran {
				record("have it run ("+c+")", got.String(), strings.Contains(got.words, "OCI runtime create failed") && strings.Contains(got.words, "operation not permitted") ||
					strings.HasPrefix(got.words, noUsers))
				continue
			}
			for _, line := range slices.Sorted(maps.Keys(got.lines)) {
				outcome := got.lines[line]
				blocked := shut(outcome)
				if c == "gain" {
					blocked = notGained(line, outcome)
				}
				if c == "write" && (ofPod[line] || strings.Contains(outcome, "no such file")) {
					continue
				}
				record(c+" "+line, outcome, blocked)
			}
		}
	}
}

// ofPod are files of the kernel that are the pod's own, where its /proc is not
// masked: its network namespace, its name.
var ofPod = map[string]bool{"/proc/sys/net/ipv4/ip_forward": true, "/proc/sys/kernel/hostname": true}
