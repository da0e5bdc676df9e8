package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/dctest"
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
	t.Run("an address taken by another host", func(t *testing.T) { s.count("network/address"); s.addressTaken(t) })
	t.Run("a switch with a smaller MTU", func(t *testing.T) { s.count("network/mtu"); s.narrow(t) })
}

// untouched waits until both instances answer again, and checks that they are
// the ones from before.
func (s *suite) untouched(t *testing.T, pods map[string]dctest.Pod, machines map[string]string) {
	t.Helper()
	s.instances(t, 2)
	s.NodesReady(t, 2)
	if now := s.PodsLike(t, helloPods, pods); !maps.Equal(now, pods) {
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

// within checks how long the platform takes to notice. The limit is for a machine
// that does nothing else; one that does may take twice as long.
func (s *suite) within(t *testing.T, limit time.Duration, what string, notice func()) {
	t.Helper()
	began := time.Now()
	notice()
	took := time.Since(began).Round(time.Second)
	t.Logf("%s: after %s", what, took)
	if took > 2*limit {
		s.losing(t, "%s: after %s, want %s at most", what, took, 2*limit)
	}
}

// addressTaken lets a host that is none of the platform's use a node's address,
// and talk by it, for as long as the node takes to notice and a little more.
func (s *suite) addressTaken(t *testing.T) {
	s.instances(t, 2)
	pods, machines := s.Pods(t, helloPods), s.MachineStarts(t)
	victim := s.Nodes[0]
	thief, err := s.Lab.AddHost(t.Context(), "stranger")
	if err != nil {
		t.Fatal(err)
	}
	run := func(script string) string {
		t.Helper()
		out, err := thief.Run(t.Context(), "bash", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	mac := run("cat /sys/class/net/eth0/address")
	own, stolen := fmt.Sprintf("%v/%d", thief.Address(), s.Lab.Subnet().Bits()), fmt.Sprintf("%v/%d", victim.Address(), s.Lab.Subnet().Bits())
	run("ip address flush dev eth0 && ip address add " + stolen + " dev eth0")
	gaveBack := false
	giveBack := func() {
		if !gaveBack {
			gaveBack = true
			run("ip address flush dev eth0 && ip address add " + own + " dev eth0")
		}
	}
	defer giveBack()
	// It asks for the server's hardware address, so that the server believes it.
	talk := func() {
		run(fmt.Sprintf("ip neigh flush dev eth0; timeout 2 bash -c 'exec 3<>/dev/tcp/%v/7443' 2>/dev/null || true", s.Server.Address()))
	}
	talk()
	var text string
	s.within(t, 30*time.Second, "the node sees that its address was taken", func() { text = s.problem(t, victim, "address-taken") })
	if !strings.Contains(text, mac) || !strings.Contains(text, victim.Address().String()) {
		s.losing(t, "the problem does not say who has which address: %s", text)
	}
	if out, err := victim.Run(t.Context(), "multipaas", "status"); err != nil || !strings.Contains(string(out), "Another host uses the address of this one") {
		s.losing(t, "multipaas status does not name the problem: %v\n%s", err, out)
	}
	talk()
	s.Answers(t)
	if now := s.MachineStarts(t); !maps.Equal(now, machines) {
		s.losing(t, "machines of a node whose address was taken are\n%v\nwere\n%v", now, machines)
	}
	giveBack()
	s.within(t, time.Minute, "the node sees that it is over", func() { s.solved(t, victim, "address-taken") })
	s.untouched(t, pods, machines)
}

// narrow lets a switch drop full packets between a node and the others: the
// machines go on, what is large arrives, and the node says what is wrong.
func (s *suite) narrow(t *testing.T) {
	s.instances(t, 2)
	pods, machines := s.Pods(t, helloPods), s.MachineStarts(t)
	h := s.Nodes[0]
	// An image that no machine has yet, and an object that fills many packets.
	s.PushProgram(t, "narrow", "./testing/e2e/probe")
	if err := s.Lab.Narrow(t.Context(), h.Name(), 1400); err != nil {
		t.Fatal(err)
	}
	var text string
	s.within(t, 90*time.Second, "the node sees what the path carries", func() { text = s.problem(t, h, "path-narrow") })
	if !strings.Contains(text, "packets of 1500 bytes") || !strings.Contains(text, "those of 1400 do") {
		s.losing(t, "the problem does not say what the path carries: %s", text)
	}
	s.within(t, 90*time.Second, "the server sees it too", func() { s.problem(t, s.Server, "path-narrow") })
	s.Apply(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"List","items":[
		{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"narrow"},"data":{"large":%q}},
		{"apiVersion":"v1","kind":"Pod","metadata":{"name":"narrow"},"spec":{"nodeName":"shop-1","terminationGracePeriodSeconds":1,
			"volumes":[{"name":"large","configMap":{"name":"narrow"}}],
			"containers":[{"name":"c","image":%q,"args":["wait"],"volumeMounts":[{"name":"large","mountPath":"/large"}]}]}}]}`,
		strings.Repeat("0123456789abcdef", 200<<10/16), s.Image("acme/web", "narrow")))
	began := time.Now()
	s.reaches(t, "a pod behind the narrow path, with an image and an object to fetch", func(context.Context) error {
		if r := s.Kube(t, s.Kubeconfig(), "", "wait", "pod/narrow", "--for=condition=Ready", "--timeout=30s"); r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	t.Logf("a pod with 200 KB to mount and an image to pull was ready after %s", time.Since(began).Round(time.Second))
	s.instances(t, 2)
	if err := s.Lab.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.within(t, 90*time.Second, "the node sees that it is over", func() { s.solved(t, h, "path-narrow") })
	s.Kubectl(t, "delete", "pod/narrow", "configmap/narrow", "--wait=false")
	s.untouched(t, pods, machines)
}
