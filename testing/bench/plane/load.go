package plane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/testing/bench/measure"
)

const loadTime = 2 * time.Second

// loads asks the API servers as fast as they answer: clients with a connection
// each, which read, or change, a ConfigMap of a kilobyte that is theirs.
func loads(ctx context.Context, env *measure.Env, makers []maker) ([]measure.Result, error) {
	counts := []int{1, 10, 100}
	var contenders []measure.Contender
	for _, m := range makers {
		contenders = append(contenders, measure.Contender{Name: m.name, Measure: func(ctx context.Context) (sample measure.Sample, err error) {
			env.Logf("plane: load on %s", m.name)
			c, err := m.make()
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, c.Stop(), c.Remove()) }()
			if err := begin(ctx, c); err != nil {
				return nil, err
			}
			sample = measure.Sample{}
			for _, n := range counts {
				if err := load(ctx, c, n, sample); err != nil {
					return nil, fmt.Errorf("%d clients: %w", n, err)
				}
			}
			return sample, nil
		}})
	}
	stats, err := measure.Alternate(ctx, 1, contenders...)
	if err != nil {
		return nil, err
	}
	var results []measure.Result
	for _, ours := range []string{"ours", "ours on etcd"} {
		on := map[string]string{"ours": "kine", "ours on etcd": "etcd"}[ours]
		for _, what := range []string{"reads", "writes"} {
			for _, n := range counts {
				for _, number := range []struct {
					name, unit string
					better     measure.Better
				}{{"rate", "1/s", measure.Higher}, {"p99", "ms", measure.Lower}} {
					key := loadKey(what, n, number.name)
					results = append(results, measure.Result{Name: fmt.Sprintf("plane/%s: %s", on, key), Unit: number.unit, Better: number.better,
						Ours: stats[ours][key], Peer: "stock", PeerStat: stats["stock"][key],
						Note: "a ConfigMap of 1 KB for each client, which has a connection of its own; stock is on etcd"})
				}
			}
		}
	}
	return results, nil
}

func loadKey(what string, clients int, number string) string {
	return fmt.Sprintf("%s, %d, %s", what, clients, number)
}

// load measures n clients: reads first, then writes.
func load(ctx context.Context, c cluster, n int, sample measure.Sample) error {
	clients := make([]*kubernetes.Clientset, n)
	objects := make([]*corev1.ConfigMap, n)
	for i := range clients {
		config := c.Client() // with a Dial of its own, so that connections are not shared
		config.QPS = -1
		var err error
		if clients[i], err = kubernetes.NewForConfig(config); err != nil {
			return err
		}
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("load-%d-%d", n, i)}, Data: map[string]string{"text": strings.Repeat("x", 1<<10)}}
		// The namespace is there a moment after readyz.
		err = poll(ctx, "object", func(ctx context.Context) error {
			var err error
			objects[i], err = clients[i].CoreV1().ConfigMaps("default").Create(ctx, object, metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, what := range []string{"reads", "writes"} {
		times, took, err := hammer(ctx, n, func(ctx context.Context, i, turn int) error {
			api := clients[i].CoreV1().ConfigMaps("default")
			if what == "reads" {
				_, err := api.Get(ctx, objects[i].Name, metav1.GetOptions{})
				return err
			}
			objects[i].Data["turn"] = fmt.Sprint(turn)
			changed, err := api.Update(ctx, objects[i], metav1.UpdateOptions{})
			if err == nil {
				objects[i] = changed
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		sample[loadKey(what, n, "rate")] = float64(len(times)) / took.Seconds()
		sample[loadKey(what, n, "p99")] = measure.Percentile(times, 0.99)
	}
	return nil
}

// hammer has n clients ask in turns of their own until the time is over, and
// returns how long each turn took in milliseconds.
func hammer(ctx context.Context, n int, ask func(ctx context.Context, i, turn int) error) (times []float64, took time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			var own []float64
			var failed error
			for turn := 0; time.Since(began) < loadTime && failed == nil; turn++ {
				asked := time.Now()
				failed = ask(ctx, i, turn)
				own = append(own, float64(time.Since(asked))/float64(time.Millisecond))
			}
			mu.Lock()
			defer mu.Unlock()
			times, err = append(times, own...), errors.Join(err, failed)
		})
	}
	wg.Wait()
	return times, time.Since(began), err
}
