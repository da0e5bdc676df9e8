package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
)

const helloPods = "app.kubernetes.io/name=hello"

// testNetwork breaks the network between hosts. What runs goes on running: a
// pod that starts anew counts as lost.
func testNetwork(t *testing.T, s *suite) {
	t.Cleanup(func() {
		if err := s.Lab.Heal(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Run("a node is cut from the server", func(t *testing.T) { s.count("network/partition"); s.partition(t) })
	t.Run("a third of all packets lost", func(t *testing.T) { s.count("network/loss"); s.loss(t) })
}

// untouched waits until both instances answer again, and checks that they are
// the ones from before.
func (s *suite) untouched(t *testing.T, pods map[string]datacenter.Pod, machines map[string]string) {
	t.Helper()
	s.instances(t, 2)
	s.NodesReady(t, 2)
	if now := s.Pods(t, helloPods); !maps.Equal(now, pods) {
		s.losing(t, "pods are\n%v\nwere\n%v", now, pods)
	}
	if now := s.MachineStarts(t); !maps.Equal(now, machines) {
		s.losing(t, "machines are\n%v\nwere\n%v", now, machines)
	}
}

// instances waits until n instances have answered, each within a second round
// of requests.
func (s *suite) instances(t *testing.T, n int) {
	t.Helper()
	c := s.Client()
	s.reaches(t, fmt.Sprintf("%d instances answer", n), func(ctx context.Context) error {
		seen := map[string]bool{}
		for range 20 {
			instance, err := s.Hello(ctx, c)
			if err != nil {
				return err
			}
			seen[instance] = true
		}
		if len(seen) != n {
			return fmt.Errorf("%d do: %v", len(seen), seen)
		}
		return nil
	})
}

// partition cuts a node from the server until the platform has noticed. The
// other node and the app stay; the cut node's pods run on.
func (s *suite) partition(t *testing.T) {
	s.instances(t, 2)
	pods, machines := s.Pods(t, helloPods), s.MachineStarts(t)
	h := s.Nodes[0]
	if err := s.Lab.Partition(t.Context(), []string{"server"}, []string{h.Name()}); err != nil {
		t.Fatal(err)
	}
	s.reaches(t, "the platform notices", func(context.Context) error {
		if state := s.NodeStates(t)[h.Name()]; state == "Ready" {
			return errors.New("the node is Ready")
		}
		return nil
	})
	s.Answers(t)
	s.instances(t, 1)
	if now := s.MachineStarts(t); !maps.Equal(now, machines) {
		s.losing(t, "machines on a node that is cut off are\n%v\nwere\n%v", now, machines)
	}
	if err := s.Lab.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.untouched(t, pods, machines)
}

// loss drops 30 % of a node's packets: slower, but what is asked for comes.
func (s *suite) loss(t *testing.T) {
	pods, machines := s.Pods(t, helloPods), s.MachineStarts(t)
	if err := s.Lab.Loss(t.Context(), s.Nodes[1].Name(), 30); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s.reaches(t, "the app answers", func(ctx context.Context) error { _, err := s.Hello(ctx, s.Client()); return err })
	s.reaches(t, "a pod on the node", func(context.Context) error {
		r := s.Kube(t, s.Kubeconfig(), `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"lossy"},"spec":{"nodeName":"shop-2",
			"containers":[{"name":"c","image":"multipaas.internal/hello:1"}]}}`, "apply", "-f", "-")
		if r.Code == 0 {
			r = s.Kube(t, s.Kubeconfig(), "", "wait", "pod/lossy", "--for=condition=Ready", "--timeout=30s")
		}
		if r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	t.Logf("a pod was ready after %s", time.Since(began).Round(time.Second))
	if err := s.Lab.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Kubectl(t, "delete", "pod", "lossy", "--wait=false")
	s.untouched(t, pods, machines)
}
