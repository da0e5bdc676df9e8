package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/failpoint"
	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/lab"
	"github.com/multipaas/multipaas/testing/wait"
)

const patience = wait.Patience

// operation is something that takes several steps in one process.
type operation struct {
	name   string
	on     *lab.Host
	points []string // in the order in which they are reached; NAME@n for the n-th time
	// ask begins it. With again set it is asked anew after each kill, as a person
	// would whose request broke off; else the process goes on by itself.
	ask   func() error
	again bool
	// reached says what is not yet as wanted, once nothing kills any more.
	reached func(ctx context.Context) error
}

// walk kills the process at each point in turn, starts it again with the next
// one, and then waits for what was wanted.
func (s *suite) walk(t *testing.T, op operation) {
	t.Helper()
	whole := t.Run(op.name, func(t *testing.T) {
		began := time.Now()
		defer func() { t.Logf("%d points in %s", len(op.points), time.Since(began).Round(100*time.Millisecond)) }()
		defer s.Tell(t)
		for i, point := range op.points {
			began := time.Now()
			s.start(t, op.on, point)
			if op.ask != nil && (i == 0 || op.again) {
				s.answers(t)
				if err := s.askUntilDead(t, op); err != nil {
					t.Logf("%s: %v", point, err) // it dies in the middle of the answer
				}
			}
			s.dies(t, op.on, point)
			t.Logf("%s after %s", point, time.Since(began).Round(10*time.Millisecond))
		}
		s.start(t, op.on, "")
		s.answers(t)
		if op.ask != nil && op.again {
			s.reaches(t, op.name+" when asked again", func(context.Context) error { return op.ask() })
		}
		if op.reached != nil {
			s.reaches(t, op.name, op.reached)
		}
	})
	if !whole {
		t.FailNow() // what comes next needs it
	}
}

// askUntilDead asks until the process that shall die has: what is needed for the
// request, a plane or a login, may itself take a while to come back.
func (s *suite) askUntilDead(t *testing.T, op operation) error {
	deadline := time.Now().Add(patience)
	for {
		err := op.ask()
		if err == nil || s.pid(t, op.on) == 0 || time.Now().After(deadline) {
			return err
		}
		time.Sleep(200 * time.Millisecond) // pacing what is asked again
	}
}

// reaches waits for a state, and counts it as lost if it does not come.
func (s *suite) reaches(t *testing.T, what string, reached func(context.Context) error) {
	t.Helper()
	if err := wait.Until(t.Context(), patience, what, reached); err != nil {
		s.losing(t, "%v", err)
		t.FailNow()
	}
}

// service is what a host runs when nothing is broken.
func (s *suite) service(t testing.TB, h *lab.Host) lab.Service {
	t.Helper()
	if known, ok := s.services[h.Name()]; ok {
		return known
	}
	data, err := os.ReadFile(filepath.Join(h.Dir(), "services", "multipaas.json"))
	var service lab.Service
	if err == nil {
		err = json.Unmarshal(data, &service)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.services[h.Name()] = service
	return service
}

// start kills a host's appliance, if it runs, and starts it to die at a point;
// "" is nowhere. It is not started again when it does.
func (s *suite) start(t testing.TB, h *lab.Host, point string) {
	t.Helper()
	service := s.service(t, h)
	service.Once = true
	service.Env = slices.Clone(service.Env)
	if point != "" {
		service.Env = append(service.Env, failpoint.Variable+"="+point)
	}
	s.kill(t, h)
	s.logged[h.Name()] = 0
	if info, err := os.Stat(h.LogFile("multipaas")); err == nil {
		s.logged[h.Name()] = info.Size()
	}
	if err := h.Start(t.Context(), service); err != nil {
		t.Fatal(err)
	}
}

// restore starts a host's appliance as it was before all.
func (s *suite) restore(t testing.TB, h *lab.Host) {
	t.Helper()
	s.kill(t, h)
	if err := h.Start(t.Context(), s.service(t, h)); err != nil {
		t.Fatal(err)
	}
	s.PartsReady(t, h)
}

// kill ends a host's appliance by SIGKILL, and waits until it is gone: who waits for a lock of
// the kernel's has his files open for seconds after.
func (s *suite) kill(t testing.TB, h *lab.Host) {
	t.Helper()
	pid := s.pid(t, h)
	if pid == 0 {
		return
	}
	if err := h.Signal(t.Context(), "multipaas", unix.SIGKILL); err != nil && s.pid(t, h) != 0 {
		t.Fatal(err)
	}
	wait.For(t, patience, "the end of who was killed", func(context.Context) error {
		if s.pid(t, h) == pid {
			return fmt.Errorf("process %d of %s is there", pid, h.Name())
		}
		return nil
	})
}

// status is how a host's appliance is.
func (s *suite) status(t testing.TB, h *lab.Host) lab.ServiceStatus {
	t.Helper()
	services, err := h.Services(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range services {
		if service.Name == "multipaas" {
			return service
		}
	}
	return lab.ServiceStatus{}
}

func (s *suite) pid(t testing.TB, h *lab.Host) int { return s.status(t, h).PID }

// said is what a host's appliance has logged since it was started.
func (s *suite) said(t testing.TB, h *lab.Host) string {
	t.Helper()
	f, err := os.Open(h.LogFile("multipaas"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, s.logged[h.Name()], 64<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// dies waits until a host's appliance has died at the point, and of SIGKILL.
func (s *suite) dies(t *testing.T, h *lab.Host, point string) {
	t.Helper()
	name, _, _ := strings.Cut(point, "@")
	deadline := time.Now().Add(patience)
	for {
		status := s.status(t, h)
		if status.PID == 0 {
			text := s.said(t, h)
			if status.Exit != unix.SIGKILL.String() || !strings.Contains(text, failpoint.Mark(name)+"\n") {
				s.losing(t, "%s should have died at %s, and ended with %s:\n%s", h.Name(), point, status.Exit, tail(text, 15))
				t.FailNow()
			}
			s.count(name)
			return
		}
		if time.Now().After(deadline) {
			s.losing(t, "%s has not got to %s within %s:\n%s", h.Name(), point, patience, tail(s.said(t, h), 15))
			t.FailNow()
		}
		time.Sleep(20 * time.Millisecond) // the lab has no event for it
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// answers waits until the server's API does.
func (s *suite) answers(t testing.TB) {
	t.Helper()
	c := s.Client()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := alive(ctx, c, s.URL())
		if err == nil || s.pid(t, s.Server) == 0 {
			return // dead: the point is on the way up
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the API: %v", err)
		}
	}
}

func alive(ctx context.Context, c *http.Client, url string) error {
	return datacenter.Answers(ctx, c, url+"/livez")
}

// mp is the client's command as an error: done already is done.
func (s *suite) mp(t *testing.T, who string, args ...string) func() error {
	return func() error {
		r := s.MP(t, who, args...)
		if r.Code == 0 || r.Code == exitConflict && slices.Contains(args[:2], "create") {
			return nil
		}
		return errors.New(r.String())
	}
}

// gone is the client's command that deletes as an error: gone already is done.
func (s *suite) gone(t *testing.T, who string, args ...string) func() error {
	return func() error {
		if r := s.MP(t, who, args...); r.Code != 0 && r.Code != exitNotFound {
			return errors.New(r.String())
		}
		return nil
	}
}

// Exit codes of the client.
const (
	exitNotFound = 3
	exitConflict = 4
)

// phase waits for one of a workspace, with so many machines ready.
func (s *suite) phase(t *testing.T, name, phase string, machines int) func(context.Context) error {
	return func(context.Context) error {
		r := s.MP(t, datacenter.Owner, "ws", "show", name, "-o", "json")
		var ws struct {
			Status struct {
				Phase         string
				MachinesReady int
				Conditions    []struct{ Type, Status, Message string }
			}
		}
		if r.Code != 0 {
			return errors.New(r.String())
		}
		if err := json.Unmarshal([]byte(r.Out), &ws); err != nil {
			return err
		}
		if ws.Status.Phase != phase || ws.Status.MachinesReady != machines {
			return fmt.Errorf("workspace %s is %s with %d machines ready: %+v", name, ws.Status.Phase, ws.Status.MachinesReady, ws.Status.Conditions)
		}
		return nil
	}
}

// nothingIsLeft waits until nothing is on the hosts and in the datastore that
// was not there before.
func (s *suite) nothingIsLeft(t *testing.T, before map[string]inventory.Inventory) {
	t.Run("nothing is left", func(t *testing.T) {
		for _, l := range s.Leaks(t, time.Minute, before) {
			s.leaking(t, "%s", l)
		}
	})
}
