// Package plane measures the control plane of a workspace beside upstream's:
// the same versions of kube-apiserver, kube-controller-manager, kube-scheduler
// and etcd, each a process, with the flags that hosted-control-plane managers
// give them.
//
// Parties: testing/bench runs it; nothing else may import it.
package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/lab"
)

// Section is that of planes.
func Section() measure.Section {
	return measure.Section{Name: "plane", About: "the control plane of an empty cluster; stock is upstream's kube-apiserver, -controller-manager, -scheduler and etcd, a process each", Run: run}
}

const (
	rounds   = 3
	patience = 10 * time.Minute // on a busy machine
)

// cluster is a control plane, ours or upstream's.
type cluster interface {
	// Start starts all of its processes.
	Start(ctx context.Context) error
	Stop() error
	PIDs() []int
	Client() *rest.Config
	// Remove removes what it has left, after Stop.
	Remove() error
}

// maker makes clusters of one kind.
type maker struct {
	name string
	make func() (cluster, error)
}

func run(ctx context.Context, env *measure.Env) (results []measure.Result, err error) {
	peers := filepath.Join(env.Root, ".cache", "peers")
	if _, err := os.Stat(peers); err != nil {
		return nil, fmt.Errorf("%w: make bench-peers builds upstream's", err)
	}
	env.VersionOf(ctx, "kube-apiserver", filepath.Join(peers, "kube-apiserver"), "--version")
	env.VersionOf(ctx, "etcd", filepath.Join(peers, "etcd"), "--version")
	kube := filepath.Join(env.Root, "dist", "payload", "kube", "1.36", "kube")
	if k := os.Getenv("MULTIPAAS_KUBE"); k != "" {
		kube = k
	}
	if err := lab.RaiseLimits(); err != nil {
		return nil, err
	}
	makers := []maker{
		{"ours", func() (cluster, error) { return newOurs(env, kube, "ours") }},
		{"stock", func() (cluster, error) { return newStock(env, peers, "stock") }},
	}
	steps := []func(context.Context, *measure.Env, []maker) ([]measure.Result, error){starts, loads, crowd}
	for i, step := range steps {
		with := makers
		if i == 1 {
			with = append(with, maker{"ours on etcd", func() (cluster, error) { return newOursOnEtcd(env, kube, peers, "onetcd") }})
		}
		r, err := step(ctx, env, with)
		results = append(results, r...)
		if err != nil {
			return results, err
		}
	}
	return results, nil
}

// starts measures how long each takes to start, with nothing and again.
func starts(ctx context.Context, env *measure.Env, makers []maker) ([]measure.Result, error) {
	var contenders []measure.Contender
	for _, m := range makers {
		contenders = append(contenders, measure.Contender{Name: m.name, Measure: func(ctx context.Context) (measure.Sample, error) {
			env.Logf("plane: start of %s", m.name)
			c, err := m.make()
			if err != nil {
				return nil, err
			}
			sample, err := life(ctx, c)
			return sample, errors.Join(err, c.Stop(), c.Remove())
		}})
	}
	stats, err := measure.Alternate(ctx, env.Rounds(rounds), contenders...)
	if err != nil {
		return nil, err
	}
	var results []measure.Result
	for _, n := range numbers {
		results = append(results, measure.Result{Name: "plane/" + n.name, Unit: n.unit, Better: measure.Lower, Ours: stats["ours"][n.name],
			Peer: "stock", PeerStat: stats["stock"][n.name], Goal: measure.Goal{Ratio: n.goal}, Note: n.note})
	}
	return results, nil
}

var numbers = []struct {
	name, unit string
	goal       float64
	note       string
}{
	{"cold/readyz", "s", 0.6, "from the start of the processes, with an empty datastore"},
	{"cold/readyz CPU", "s", 0.6, "all processes"},
	{"cold/service account", "s", 0, "the default one of namespace default is there"},
	{"cold/service account CPU", "s", 0, ""},
	{"cold/pod bound", "s", 0, "to a node that was there"},
	{"cold/pod bound CPU", "s", 0, ""},
	{"warm/readyz", "s", 0.6, "a plane whose datastore is there"},
	{"warm/readyz CPU", "s", 0.6, ""},
}

// life takes one cluster through a start and a second one.
func life(ctx context.Context, c cluster) (measure.Sample, error) {
	s := measure.Sample{}
	began := time.Now()
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(c.Client()) // reads files that Start has written
	if err != nil {
		return nil, err
	}
	if err := ready(ctx, client); err != nil {
		return nil, err
	}
	s["cold/readyz"] = time.Since(began).Seconds()
	if s["cold/readyz CPU"], err = cpu(c); err != nil {
		return nil, err
	}
	if err := poll(ctx, "default service account", func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	}); err != nil {
		return nil, err
	}
	s["cold/service account"] = time.Since(began).Seconds()
	if s["cold/service account CPU"], err = cpu(c); err != nil {
		return nil, err
	}
	if err := bind(ctx, client); err != nil {
		return nil, err
	}
	s["cold/pod bound"] = time.Since(began).Seconds()
	if s["cold/pod bound CPU"], err = cpu(c); err != nil {
		return nil, err
	}
	if err := c.Stop(); err != nil {
		return nil, err
	}

	began = time.Now()
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	if err := ready(ctx, client); err != nil {
		return nil, err
	}
	s["warm/readyz"] = time.Since(began).Seconds()
	if s["warm/readyz CPU"], err = cpu(c); err != nil {
		return nil, err
	}
	return s, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cpu is what all processes have used since they were started, in seconds.
func cpu(c cluster) (float64, error) {
	var sum time.Duration
	for _, pid := range c.PIDs() {
		used, err := measure.CPU(pid)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum.Seconds(), nil
}

// poll asks until f is content.
func poll(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

func ready(ctx context.Context, client *kubernetes.Clientset) error {
	return poll(ctx, "readyz", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// bind makes a node and waits until a pod is bound to it.
func bind(ctx context.Context, client *kubernetes.Clientset) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node"}, Status: corev1.NodeStatus{
		Allocatable: corev1.ResourceList{"cpu": quantity("4"), "memory": quantity("8Gi"), "pods": quantity("110")}}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod"}, Spec: corev1.PodSpec{
		Containers:  []corev1.Container{{Name: "c", Image: "i"}},
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}}}
	if err := poll(ctx, "node", func(ctx context.Context) error {
		_, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
		return err
	}); err != nil {
		return err
	}
	if err := poll(ctx, "pod", func(ctx context.Context) error {
		_, err := client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
		return err
	}); err != nil {
		return err
	}
	return poll(ctx, "pod bound", func(ctx context.Context) error {
		p, err := client.CoreV1().Pods("default").Get(ctx, "pod", metav1.GetOptions{})
		if err == nil && p.Spec.NodeName == "" {
			err = errors.New("not bound yet")
		}
		return err
	})
}
