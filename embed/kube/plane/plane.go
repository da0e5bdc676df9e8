package plane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/klog/v2"

	"github.com/multipaas/multipaas/embed/kube/budget"
	"github.com/multipaas/multipaas/embed/kube/guard"
	"github.com/multipaas/multipaas/embed/kube/storage"
)

// stopTimeout bounds the stop of each part: 3 of them and kine's own 2 s make
// less than 20 s, after which the parent kills.
const stopTimeout = 5 * time.Second

// part is one of the servers in this process.
type part struct {
	name string
	run  func(context.Context) error
	// ready, if there is one, is waited for before the next part starts.
	ready func(context.Context) error
}

// Run runs the control plane until ctx is done, then stops it, and returns nil
// if that went well. It may be called once in a process.
func Run(ctx context.Context, cfg Config) error {
	logs.InitLogs()
	defer logs.FlushLogs()
	// All three apply the same logging configuration; upstream expects one
	// component per process and makes the second time an error.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged

	var parts []part
	var store budget.Store = estimate{}
	if cfg.Kine != nil {
		k := newKine(*cfg.Kine)
		parts = append(parts, part{name: "kine", run: k.run, ready: k.awaitReady})
		store = nil
		if k.cfg.File != "" {
			s, err := newSQLite(k.cfg)
			if err != nil {
				return err
			}
			defer s.Close()
			store = s
		}
	}
	room := budget.New(cfg.Budget, store)
	n := newUnserved(cfg.Storage != nil)
	g, err := guard.New(cfg.Guard, room, n.wrote)
	if err != nil {
		return err
	}
	parts = append(parts,
		part{name: "kube-apiserver",
			run: func(ctx context.Context) error { return runAPIServer(ctx, cfg.APIServer, g, cfg.Usage) },
			ready: func(ctx context.Context) error {
				err := awaitReady(ctx, cfg.ReadyURL, cfg.ReadyCA)
				if err == nil {
					g.Started()
				}
				return err
			}},
		part{name: "kube-controller-manager", run: func(ctx context.Context) error { return runControllerManager(ctx, cfg.ControllerManager) }},
		part{name: "kube-scheduler", run: func(ctx context.Context) error { return runScheduler(ctx, cfg.Scheduler) }},
		part{name: "unserved", run: func(ctx context.Context) error { return n.run(ctx, cfg.ControllerManager) }},
		part{name: "memory", run: giveBack},
		part{name: "machines", run: func(ctx context.Context) error { g.Watch(ctx); return nil }},
		part{name: "budget", run: func(ctx context.Context) error { room.Run(ctx); <-ctx.Done(); return nil }},
	)
	if cfg.Storage != nil {
		parts = append(parts, part{name: "storage", run: func(ctx context.Context) error {
			storage.Run(ctx, *cfg.Storage)
			return nil
		}})
	}
	return runParts(ctx, parts)
}

// startedAfter is when caches are filled and what a start needs is garbage.
const startedAfter = 20 * time.Second

// restPercent is GOGC once the start is over. The collector lets the heap grow by
// that much of live heap, stacks and globals together, 120 MB in an empty
// cluster; a start makes so much garbage that it gets more (embed/plane).
const restPercent = 35

// giveBack returns to the kernel what only the start needed, and keeps less
// room for garbage from then on.
func giveBack(ctx context.Context) error {
	select {
	case <-time.After(startedAfter):
		debug.SetGCPercent(restPercent)
		debug.FreeOSMemory()
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

// runParts starts parts in order, waits for the end of ctx or of the first
// part, and stops those that run in the reverse order.
func runParts(ctx context.Context, parts []part) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := func() error {
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			return cause
		}
		return nil
	}
	for _, p := range parts {
		// A part's own context outlives ctx: it ends when its turn has come.
		partCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		began := time.Now()
		go func() {
			defer close(ended)
			err := p.run(partCtx)
			if partCtx.Err() == nil {
				if err == nil {
					err = errors.New("ended by itself")
				}
				cancel(fmt.Errorf("%s: %w", p.name, err))
			} else if err != nil {
				klog.ErrorS(err, "Stopped with an error", "part", p.name)
			}
		}()
		defer func() {
			stop()
			select {
			case <-ended:
			case <-time.After(stopTimeout):
				err = errors.Join(err, fmt.Errorf("%s: did not stop in %s", p.name, stopTimeout))
			}
		}()
		if p.ready != nil {
			if p.ready(ctx) != nil {
				return failed()
			}
			klog.InfoS("Ready", "part", p.name, "after", time.Since(began).Round(time.Millisecond))
		}
	}
	<-ctx.Done()
	return failed()
}

// awaitReady asks url until it answers 200. There is no other signal that the
// API server's start hooks, the roles of RBAC among them, have run.
func awaitReady(ctx context.Context, url, caFile string) error {
	pool, err := certutil.NewPool(caFile)
	if err != nil {
		return err
	}
	client := &http.Client{
		Timeout:   2 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true},
	}
	return wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (ready bool, err error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, nil
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK, nil
	})
}
