package plane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/testing/bench/measure"
)

const (
	settle   = 30 * time.Second // what a start leaves has been collected and given back: ours does it after 20 s
	idleTime = 30 * time.Second
	together = 4 // planes that start at once
)

// crowd keeps more and more planes of ours and of upstream's, side by side, and
// looks at what each takes while nobody asks anything. Both rest at the same time:
// a process's memory and CPU time are its own.
func crowd(ctx context.Context, env *measure.Env, makers []maker) (results []measure.Result, err error) {
	counts := []int{1, 5, 20}
	if env.Quick {
		counts = []int{1, 2}
	}
	stand := map[string][]cluster{}
	defer func() {
		work := errgroup.Group{}
		work.SetLimit(together)
		for _, list := range stand {
			for _, c := range list {
				work.Go(func() error { return errors.Join(c.Stop(), c.Remove()) })
			}
		}
		err = errors.Join(err, work.Wait())
	}()
	for _, n := range counts {
		for _, m := range makers {
			env.Logf("plane: %d of %s", n, m.name)
			more, err := startMany(ctx, m, n-len(stand[m.name]))
			stand[m.name] = append(stand[m.name], more...)
			if err != nil {
				return results, err
			}
		}
		if err := pause(ctx, settle); err != nil {
			return results, err
		}
		idle := map[string]float64{}
		if n == 1 {
			if idle, err = idleCPU(ctx, stand); err != nil {
				return results, err
			}
		}
		add := func(what, unit string, ours, stock, goal float64, note string) {
			results = append(results, measure.Result{Name: fmt.Sprintf("plane/%d idle/%s", n, what), Unit: unit, Better: measure.Lower,
				Ours: measure.Summarize(ours), Peer: "stock", PeerStat: measure.Summarize(stock), Goal: measure.Goal{Ratio: goal}, Note: note})
		}
		if n == 1 {
			add("CPU", "cores", idle["ours"], idle["stock"], 0.5, "")
		}
		var memory [2]measure.Memory
		for i, m := range makers[:2] {
			var pids []int
			for _, c := range stand[m.name] {
				pids = append(pids, c.PIDs()...)
			}
			if memory[i], err = measure.MemoryOfEach(pids...); err != nil {
				return results, err
			}
		}
		each := func(bytes int64) float64 { return float64(bytes) / 1e6 / float64(n) }
		ours, stock := memory[0], memory[1]
		add("anonymous", "MB", each(ours.Anonymous), each(stock.Anonymous), 0.5, "per plane: heap and stacks, which nobody else has")
		add("proportional", "MB", each(ours.Proportional), each(stock.Proportional), 0, "per plane: file pages shared with others count by their share")
		add("resident", "MB", each(ours.Resident), each(stock.Resident), 0, "per plane: file pages count for each process")
	}
	return results, nil
}

// startMany starts n clusters, a few at a time, and returns those that it made
// also if one failed.
func startMany(ctx context.Context, m maker, n int) ([]cluster, error) {
	var made []cluster
	for range max(n, 0) {
		c, err := m.make()
		if err != nil {
			return made, err
		}
		made = append(made, c)
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(together)
	for _, c := range made {
		work.Go(func() error { return begin(ctx, c) })
	}
	return made, work.Wait()
}

// begin starts a cluster and waits until it is ready. It runs as long as its
// Stop is not called.
func begin(ctx context.Context, c cluster) error {
	if err := c.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(c.Client())
	if err != nil {
		return err
	}
	return ready(ctx, client)
}

// idleCPU is how much of a core each of the clusters takes, by maker.
func idleCPU(ctx context.Context, stand map[string][]cluster) (map[string]float64, error) {
	read := func() (map[string]float64, error) {
		used := map[string]float64{}
		for name, list := range stand {
			for _, c := range list {
				s, err := cpu(c)
				if err != nil {
					return nil, err
				}
				used[name] += s / float64(len(list))
			}
		}
		return used, nil
	}
	before, err := read()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := pause(ctx, idleTime); err != nil {
		return nil, err
	}
	used, err := read()
	if err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	for name := range used {
		used[name] = (used[name] - before[name]) / took
	}
	return used, nil
}
