// Package ws measures how long a tenant waits: for a workspace, its first
// machine, its first answer, one machine more, and the end of it all.
//
// Parties: testing/bench runs it; nothing else may import it.
package ws

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/multipaas/multipaas/testing/bench/measure"
	"github.com/multipaas/multipaas/testing/bench/site"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/wait"
)

// Section is that of workspaces.
func Section() measure.Section {
	return measure.Section{Name: "ws", About: "a workspace in a datacenter of one server and two nodes, through the API, beside one that stands", Run: run}
}

const (
	rounds   = 3
	patience = 5 * time.Minute
	pollGap  = 20 * time.Millisecond
	gib      = 1 << 30
)

func run(ctx context.Context, env *measure.Env) ([]measure.Result, error) {
	s, err := site.Up(ctx, env)
	if err != nil {
		return nil, err
	}
	values := map[string][]float64{}
	for round := range env.Rounds(rounds) {
		env.Logf("ws: round %d", round+1)
		if err = life(ctx, s, fmt.Sprintf("bench%d", round), values); err != nil {
			break
		}
	}
	var results []measure.Result
	for _, n := range names {
		if len(values[n.name]) == 0 {
			continue
		}
		results = append(results, measure.Result{Name: "ws/" + n.name, Unit: "s", Better: measure.Lower,
			Ours: measure.Summarize(values[n.name]...), Goal: measure.Goal{Value: n.goal}, Note: n.note})
	}
	return results, err
}

var names = []struct {
	name string
	goal float64
	note string
}{
	{"create to API ready", 0, "the plane answers"},
	{"create to machine Ready", 0, ""},
	{"create to first answer", 12, "one machine; the app was asked for at once; by HTTPS through the balancer. The goal is for two free cores"},
	{"scale by one machine", 0, "until the second machine is Ready"},
	{"delete", 0, "until the API knows it no more"},
}

// workspace is what of one is looked at.
type workspace struct {
	Status struct {
		Conditions []struct {
			Type, Status string
		}
		MachinesReady int
	}
}

func (w *workspace) is(condition string) bool {
	for _, c := range w.Status.Conditions {
		if c.Type == condition {
			return c.Status == "True"
		}
	}
	return false
}

// life is that of one workspace from the first request to the last trace.
func life(ctx context.Context, s *site.Site, name string, values map[string][]float64) error {
	path := "/v1/accounts/acme/organizations/web/workspaces/" + name
	note := func(what string, began time.Time) {
		values[what] = append(values[what], time.Since(began).Seconds())
	}
	size := map[string]any{"milliCPU": 1000, "memoryBytes": 2 * gib, "diskBytes": 10 * gib}
	began := time.Now()
	err := s.Do(ctx, http.MethodPut, path, map[string]any{"name": name, "spec": map[string]any{"machines": 1, "machineSize": size}}, nil)
	if err != nil {
		return err
	}
	err = s.Do(ctx, http.MethodPut, path+"/apps/hello", map[string]any{"name": "hello",
		"spec": map[string]any{"image": "multipaas.internal/hello:1", "instances": 1, "port": 8080}}, nil)
	if err != nil {
		return err
	}
	see := func(what string, began time.Time, there func(*workspace) bool) error {
		err := wait.Until(ctx, patience, what, func(ctx context.Context) error {
			var w workspace
			if err := s.Do(ctx, http.MethodGet, path, nil, &w); err != nil {
				return err
			}
			if !there(&w) {
				return fmt.Errorf("it is not: %+v", w.Status)
			}
			return nil
		})
		if err == nil {
			note(what, began)
		}
		return err
	}
	answered := make(chan error, 1)
	var answer time.Time
	go func() {
		err := wait.Until(ctx, patience, "create to first answer", func(ctx context.Context) error { return hello(ctx, s, name) })
		answer = time.Now()
		answered <- err
	}()
	err = see("create to API ready", began, func(w *workspace) bool { return w.is("PlaneReady") })
	if err == nil {
		err = see("create to machine Ready", began, func(w *workspace) bool { return w.Status.MachinesReady >= 1 })
	}
	if err = errors.Join(err, <-answered); err != nil {
		return err
	}
	values["create to first answer"] = append(values["create to first answer"], answer.Sub(began).Seconds())

	began = time.Now()
	if err := s.Do(ctx, http.MethodPatch, path, map[string]any{"spec": map[string]any{"machines": 2}}, nil); err != nil {
		return err
	}
	if err := see("scale by one machine", began, func(w *workspace) bool { return w.Status.MachinesReady >= 2 }); err != nil {
		return err
	}

	began = time.Now()
	if err := s.Do(ctx, http.MethodDelete, path, nil, nil); err != nil {
		return err
	}
	err = wait.Until(ctx, patience, "delete", func(ctx context.Context) error {
		err := s.Do(ctx, http.MethodGet, path, nil, nil)
		var status *site.StatusError
		if errors.As(err, &status) && status.Status == http.StatusNotFound {
			return nil
		}
		return errors.Join(errors.New("it is still there"), err)
	})
	if err == nil {
		note("delete", began)
	}
	return err
}

// hello asks the app once, by a new connection.
func hello(ctx context.Context, s *site.Site, workspace string) error {
	t := &http.Transport{DialContext: s.Dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: s.Pool}}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return datacenter.Answers(ctx, &http.Client{Transport: t}, "https://hello."+workspace+".web.acme."+datacenter.Domain+"/")
}
