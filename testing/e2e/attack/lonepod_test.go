package attack

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// started is how a container fared.
type started struct {
	ran   bool   // it ran to its end
	words string // what Kubernetes says of it, why it was refused above all
	lines map[string]string
}

func (s started) String() string {
	if !s.ran {
		return "refused: " + s.words
	}
	return fmt.Sprintf("ran: %v", s.lines)
}

// opened are the things that a container got at, of those that it tried.
func (s started) opened() (all []string) {
	for name, got := range s.lines {
		if strings.HasPrefix(got, "open") {
			all = append(all, name)
		}
	}
	return all
}

// lonePod makes a pod of A's on A's machine, unless the API refuses it, and waits
// until each of the containers named has ended or has been refused by kubelet
// or containerd. One that is missing in the answer did neither in time.
func (s *suite) lonePod(t testing.TB, k *kube, namespace, name, spec string, containers ...string) (all map[string]started, refused *reply) {
	t.Helper()
	pods := "/api/v1/namespaces/" + namespace + "/pods"
	body := fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"terminationGracePeriodSeconds":0,"restartPolicy":"Never","nodeName":%q,%s}}`, name, s.attacker.node, spec)
	// Kubelet starts the containers of a pod one after the other.
	ctx, cancel := context.WithTimeout(t.Context(), imagePatience+time.Duration(len(containers))*10*time.Second)
	defer cancel()
	r := k.post(ctx, pods, body)
	for r.code == 0 || r.code == http.StatusTooManyRequests || r.code >= 500 ||
		r.code == http.StatusForbidden && strings.Contains(r.body, "serviceaccount") { // a namespace's comes a moment later
		select {
		case <-ctx.Done():
			return nil, &r
		case <-time.After(300 * time.Millisecond):
		}
		r = k.post(ctx, pods, body)
	}
	if r.code/100 != 2 {
		return nil, &r
	}
	defer k.do(context.WithoutCancel(t.Context()), http.MethodDelete, pods+"/"+name+"?gracePeriodSeconds=0", "", "")
	all = map[string]started{}
	began := time.Now()
	for ; len(all) < len(containers) && ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		var pod struct {
			Status struct {
				Phase, Reason, Message string
				ContainerStatuses      []struct {
					Name  string
					State struct {
						Waiting    *struct{ Reason, Message string }
						Terminated *struct{ Reason, Message string }
					}
				}
			}
		}
		if k.read(ctx, pods+"/"+name, &pod) != nil {
			continue
		}
		why := ""
		if pod.Status.Phase == "Failed" && len(pod.Status.ContainerStatuses) == 0 {
			why = pod.Status.Reason + ": " + pod.Status.Message
		} else if pod.Status.Phase == "Pending" && time.Since(began) > 5*time.Second { // before, it may be the network that is being made
			why = k.noSandbox(ctx, namespace, name)
		}
		if why != "" {
			for _, c := range containers {
				all[c] = started{words: why}
			}
			continue
		}
		for _, c := range pod.Status.ContainerStatuses {
			if _, have := all[c.Name]; have || !slices.Contains(containers, c.Name) {
				continue
			}
			if x := c.State.Waiting; x != nil && x.Message != "" && x.Reason != "ContainerCreating" && x.Reason != "PodInitializing" && !passes(x.Message) {
				all[c.Name] = started{words: x.Reason + ": " + x.Message}
			}
			x := c.State.Terminated
			switch {
			case x == nil:
			case x.Reason == "StartError" || x.Reason == "ContainerCannotRun":
				all[c.Name] = started{words: x.Reason + ": " + x.Message}
			default:
				one := started{ran: true, words: x.Reason + " " + x.Message, lines: map[string]string{}}
				log := k.do(ctx, http.MethodGet, pods+"/"+name+"/log?container="+c.Name, "", "")
				if log.good() != nil {
					continue // the next look reads it
				}
				for line := range strings.Lines(log.body) {
					what, got, _ := strings.Cut(strings.TrimSpace(line), " ")
					one.lines[what] = got
				}
				all[c.Name] = one
			}
		}
	}
	return all, nil
}

// passes says whether kubelet had trouble of its own, and will try again.
func passes(words string) bool {
	return containsAny(words, []string{"context deadline exceeded", "is reserved for", "pull QPS exceeded", "connection refused", "connection reset", "429 Too Many Requests", "503 Service Unavailable"})
}

// noUsers is how a machine says that it has no users to give to a pod's own user namespace.
const noUsers = "failed to create network namespace for sandbox"

// noSandbox is why the runtime refused a pod's sandbox; "" if it did not.
func (k *kube) noSandbox(ctx context.Context, namespace, pod string) string {
	var events struct{ Items []struct{ Message string } }
	err := k.read(ctx, "/api/v1/namespaces/"+namespace+"/events?fieldSelector=reason%3DFailedCreatePodSandBox,involvedObject.name%3D"+pod, &events)
	if err != nil {
		return ""
	}
	for _, e := range events.Items { // others are of what passes: a network that is being made, say
		for _, words := range []string{"OCI runtime", noUsers} {
			if _, end, found := strings.Cut(e.Message, words); found {
				return words + end
			}
		}
	}
	return ""
}
