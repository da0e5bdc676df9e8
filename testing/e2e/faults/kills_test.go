package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/multipaas/multipaas/testing/lab"
)

// testKills ends processes by kill -9 from outside, at no point in particular.
func testKills(t *testing.T, s *suite) {
	s.Answers(t)
	s.NodesReady(t, 2)
	rounds := 2
	if long() {
		rounds = 20
	}
	before := s.MustInventories(t)
	s.acked(t, "kine's plane", s.Kubeconfig(), rounds, func() { s.end(t, s.Server, "kube plane --config", 1) })
	s.acked(t, "kine's server", s.Kubeconfig(), rounds, func() {
		s.start(t, s.Server, "")
		s.answers(t)
	})
	for _, kill := range []struct {
		words string
		n     int // processes with these words on a node; 0: one or more
	}{
		{"runtime/containerd --config", 1},
		{"kube kubelet", 1},
		{"containerd-shim-runc-v2", 0},
		{"/opt/multipaas/init --config", 1},
	} {
		t.Run(kill.words, func(t *testing.T) {
			s.end(t, s.Nodes[0], kill.words, kill.n)
			s.serves(t)
			s.count("kill " + kill.words)
		})
	}
	t.Run("server and node at once", func(t *testing.T) {
		machines := s.MachineStarts(t)
		s.kill(t, s.Server)
		s.kill(t, s.Nodes[0])
		s.restore(t, s.Server)
		s.restore(t, s.Nodes[0])
		s.serves(t)
		if now := s.MachineStarts(t); !maps.Equal(now, machines) {
			s.losing(t, "machines are %v, were %v", now, machines)
		}
		s.count("kill server and node")
	})
	s.restore(t, s.Server)
	s.serves(t) // what comes next begins with a plane that does
	s.nothingIsLeft(t, before)
}

// end kills all processes of a host whose command line holds some words, and
// waits until others have taken their places.
func (s *suite) end(t *testing.T, h *lab.Host, words string, n int) {
	t.Helper()
	old := s.Processes(t, h, words)
	if len(old) == 0 || n > 0 && len(old) != n {
		t.Fatalf("%s runs %d processes of %q, want %d", h.Name(), len(old), words, n)
	}
	for pid := range old {
		// One of several may end another.
		if _, err := h.Run(t.Context(), "kill", "-9", pid); err != nil && len(old) == 1 {
			t.Fatal(err)
		}
	}
	s.reaches(t, words+" runs again", func(context.Context) error {
		now := s.Processes(t, h, words)
		for pid, started := range old {
			if now[pid] == started {
				return fmt.Errorf("%s has not ended", pid)
			}
		}
		if len(now) < len(old) {
			return fmt.Errorf("%d of %d", len(now), len(old))
		}
		return nil
	})
}

// serves waits until the app answers, the nodes are Ready and commands run in
// the cluster.
func (s *suite) serves(t *testing.T) {
	t.Helper()
	c := s.Client()
	s.reaches(t, "the app answers", func(ctx context.Context) error {
		_, err := s.Hello(ctx, c)
		return err
	})
	s.reaches(t, "the machines are ready", s.phase(t, "shop", "Ready", 2))
	s.reaches(t, "a rollout comes to its end", func(context.Context) error {
		r := s.Kube(t, s.Kubeconfig(), "", "rollout", "status", "deploy/hello", "--timeout", "20s")
		if r.Code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
}

// acked writes ConfigMaps one after the other in a workspace, and kills in
// between. What was acknowledged must be there afterwards.
func (s *suite) acked(t *testing.T, name, kubeconfig string, kills int, kill func()) {
	t.Run("acknowledged writes, "+name+" killed", func(t *testing.T) {
		cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Timeout, cfg.QPS, cfg.Burst = 5*time.Second, -1, 0
		client, err := kubernetes.NewForConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		label := fmt.Sprintf("w%d", time.Now().UnixNano())
		ctx, cancel := context.WithCancel(t.Context())
		var (
			wg     sync.WaitGroup
			mu     sync.Mutex
			acked  []string
			broken int
		)
		for writer := range 4 {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d-%d", label, writer, i), Labels: map[string]string{"written": label}}}
					_, err := client.CoreV1().ConfigMaps("default").Create(ctx, m, metav1.CreateOptions{})
					mu.Lock()
					if err == nil {
						acked = append(acked, m.Name)
					} else {
						broken++
					}
					mu.Unlock()
					if err != nil {
						time.Sleep(50 * time.Millisecond) // what starts anew needs the processor more
					}
				}
			})
		}
		grows := func() {
			mu.Lock()
			had := len(acked)
			mu.Unlock()
			s.reaches(t, "writes are taken", func(context.Context) error {
				mu.Lock()
				defer mu.Unlock()
				if len(acked) < had+50 {
					return fmt.Errorf("%d more", len(acked)-had)
				}
				return nil
			})
		}
		grows()
		for range kills {
			kill()
			grows()
		}
		cancel()
		wg.Wait()
		s.reaches(t, "all that was acknowledged is there", func(ctx context.Context) error {
			list, err := client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{LabelSelector: "written=" + label})
			if err != nil {
				return err
			}
			there := map[string]bool{}
			for i := range list.Items {
				there[list.Items[i].Name] = true
			}
			lost := slices.DeleteFunc(slices.Clone(acked), func(name string) bool { return there[name] })
			if len(lost) > 0 {
				return fmt.Errorf("%d of %d acknowledged writes are not there, the first is %s", len(lost), len(acked), lost[0])
			}
			t.Logf("%d writes acknowledged and there, %d broke off, %d kills", len(acked), broken, kills)
			return nil
		})
		s.count("kill " + name)
		s.reaches(t, "they can be deleted", func(ctx context.Context) error {
			return client.CoreV1().ConfigMaps("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "written=" + label})
		})
	})
}
