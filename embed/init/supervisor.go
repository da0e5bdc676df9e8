package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// A service that ends is started again after firstBackoff, doubled each
	// time up to lastBackoff: a kubelet that was killed is back at once, one
	// that can't start costs six starts a minute.
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 10 * time.Second
	// steady is how long a service must have run for its backoff to begin anew.
	steady = 30 * time.Second
	// leftoverTimeout is what processes that no service owns (pods, mostly)
	// get between SIGTERM and the machine's end.
	leftoverTimeout = 3 * time.Second
)

// supervisor runs the services of one machine.
type supervisor struct {
	cfg      Config
	console  io.Writer
	reaper   *reaper
	services []*service

	mu    sync.Mutex // guards state
	state State
}

// service is one of them, while it is supervised.
type service struct {
	ServiceConfig
	index  int
	log    *logFile
	ready  chan struct{} // closed when it has been ready once
	stop   context.CancelFunc
	ended  chan struct{} // closed when it is stopped for good
	onceUp sync.Once
}

func newSupervisor(cfg Config, console io.Writer) *supervisor {
	return &supervisor{cfg: cfg, console: console, reaper: newReaper()}
}

// Run starts the services and keeps them running until ctx is done; then it
// stops them. It fails only if it can't begin.
func (s *supervisor) Run(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.LogDir, 0o755); err != nil {
		return err
	}
	s.state = State{PID: os.Getpid(), Started: time.Now().UTC()}
	for i, cfg := range s.cfg.Services {
		log, err := openLogFile(filepath.Join(s.cfg.LogDir, cfg.Name+".log"), s.cfg.LogBytes)
		if err != nil {
			return fmt.Errorf("service %s: %w", cfg.Name, err)
		}
		s.services = append(s.services, &service{
			ServiceConfig: cfg, index: i, log: log,
			ready: make(chan struct{}), ended: make(chan struct{}),
		})
		s.state.Services = append(s.state.Services, ServiceState{
			Name: cfg.Name, State: stateWaiting, Since: s.state.Started, WaitingFor: cfg.After,
		})
	}
	if err := s.state.write(s.cfg.StateFile); err != nil {
		return err
	}

	reaped := make(chan struct{})
	defer close(reaped)
	go s.reaper.Run(reaped)

	// hard ends when the time to stop is up: then everything is killed.
	hard, killAll := context.WithCancel(context.Background())
	defer killAll()
	for _, svc := range s.services {
		var own context.Context
		own, svc.stop = context.WithCancel(context.WithoutCancel(ctx))
		go s.supervise(own, hard, svc)
	}
	<-ctx.Done()

	s.setStopping()
	timer := time.AfterFunc(time.Duration(s.cfg.StopTimeout), killAll)
	defer timer.Stop()
	for _, svc := range slices.Backward(s.services) {
		svc.stop()
		<-svc.ended
	}
	s.endLeftovers(hard)
	return nil
}

// supervise starts a service again and again until ctx is done, then stops it.
func (s *supervisor) supervise(ctx, hard context.Context, svc *service) {
	defer close(svc.ended)
	defer s.set(svc, func(st *ServiceState) { st.State, st.PID, st.WaitingFor = stateStopped, 0, nil })
	if !s.awaitOthers(ctx, svc) {
		return
	}
	backoff := firstBackoff
	for restarts := 0; ; restarts++ {
		began := time.Now()
		how := s.runOnce(ctx, hard, svc, restarts)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= steady {
			backoff = firstBackoff
		}
		s.printf("%s: %s; starting again in %s", svc.Name, how, backoff)
		s.set(svc, func(st *ServiceState) { st.State, st.PID, st.LastExit = stateBackoff, 0, how })
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// awaitOthers waits for the services that svc comes after and says for which
// ones in the state.
func (s *supervisor) awaitOthers(ctx context.Context, svc *service) bool {
	for i, name := range svc.After {
		s.set(svc, func(st *ServiceState) { st.WaitingFor = svc.After[i:] })
		other := s.services[slices.IndexFunc(s.services, func(o *service) bool { return o.Name == name })]
		select {
		case <-other.ready:
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// runOnce runs a service until it ends by itself or is stopped, and says how
// it ended.
func (s *supervisor) runOnce(ctx, hard context.Context, svc *service, restarts int) string {
	pid, ended, err := s.start(svc)
	if err != nil {
		return err.Error()
	}
	s.set(svc, func(st *ServiceState) {
		st.State, st.PID, st.Restarts, st.WaitingFor = stateStarting, pid, restarts, nil
	})
	probing, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	up := make(chan struct{})
	go func() {
		probe, _ := parseProbe(svc.Ready) // validated
		if probe.wait(probing) == nil {
			close(up)
		}
	}()
	for {
		select {
		case <-up:
			up = nil
			s.set(svc, func(st *ServiceState) { st.State = stateReady })
			svc.onceUp.Do(func() { close(svc.ready) })
		case status := <-ended:
			return describe(status)
		case <-ctx.Done():
			s.set(svc, func(st *ServiceState) { st.State = stateStopping })
			status := terminate(hard, pid, ended, time.Duration(svc.StopTimeout))
			return describe(status)
		}
	}
}

// start starts a service's process in a session of its own, its output going
// to its log.
func (s *supervisor) start(svc *service) (int, <-chan syscall.WaitStatus, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer writer.Close()
	pid, ended, err := s.reaper.Start(svc.Argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(environment(), svc.Env...),
		Files: []uintptr{null.Fd(), writer.Fd(), writer.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		reader.Close()
		return 0, nil, fmt.Errorf("start %s: %w", svc.Argv[0], err)
	}
	go func() {
		// Until the last process that holds the other end has ended, which
		// may outlive the service.
		defer reader.Close()
		io.Copy(svc.log, reader)
	}()
	return pid, ended, nil
}

// environment is this process's own, with what containers often come without.
func environment() []string {
	env := os.Environ()
	for name, fallback := range map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
	} {
		if os.Getenv(name) == "" {
			env = append(env, name+"="+fallback)
		}
	}
	return env
}

// terminate ends a service's process and what is left of its group.
func terminate(hard context.Context, pid int, ended <-chan syscall.WaitStatus, timeout time.Duration) syscall.WaitStatus {
	defer syscall.Kill(-pid, syscall.SIGKILL)
	// Only the first process: it decides how its children end.
	syscall.Kill(pid, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(hard, timeout)
	defer cancel()
	select {
	case status := <-ended:
		return status
	case <-ctx.Done():
	}
	syscall.Kill(-pid, syscall.SIGKILL)
	return <-ended
}

// endLeftovers gives the processes that no service owns a chance to end by
// themselves. What does not, the kernel kills when process 1 ends.
func (s *supervisor) endLeftovers(hard context.Context) {
	if os.Getpid() != 1 {
		return // -1 would mean everybody
	}
	syscall.Kill(-1, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(hard, leftoverTimeout)
	defer cancel()
	for s.reaper.collect() && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal: " + status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// set changes the state of one service and writes the state file.
func (s *supervisor) set(svc *service, change func(*ServiceState)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state.Services[svc.index]
	before := st.State
	change(st)
	if st.State != before {
		st.Since = time.Now().UTC()
	}
	s.save()
}

func (s *supervisor) setStopping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Stopping = true
	s.save()
}

// save writes the state file. A machine goes on without one.
func (s *supervisor) save() {
	if err := s.state.write(s.cfg.StateFile); err != nil {
		s.printf("write state: %v", err)
	}
}

func (s *supervisor) printf(format string, args ...any) {
	fmt.Fprintf(s.console, "init: "+format+"\n", args...)
}
