package balancer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/modules/balancer"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/bench/measure"
)

// oursEnv is the variable that makes this program the balancer; its value says
// how.
const oursEnv = "MULTIPAAS_BENCH_BALANCER"

// order is what the process of our balancer is told.
type order struct {
	Dir     string // of the run
	Port    int
	Profile string // file for a CPU profile; empty: none
}

// Hook makes this process the balancer if it was started for that; then it does
// not return. main calls it first.
func Hook() {
	text := os.Getenv(oursEnv)
	if text == "" {
		return
	}
	var o order
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		err = o.serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench balancer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (o order) serve() (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ca, err := pki.LoadOrCreateCA(filepath.Join(o.Dir, "pki"), "bench")
	if err != nil {
		return err
	}
	etcd, err := newEtcd(o.Dir)
	if err != nil {
		return err
	}
	client, err := etcd.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	if o.Profile != "" {
		f, err := os.Create(o.Profile)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	b := balancer.New(balancer.Config{
		HTTPSAddr: fmt.Sprintf("127.0.0.1:%d", o.Port), Dir: balancerDir(o.Dir), Domain: domain,
		Store: store.New(client), Etcd: client, Signer: signer{ca}, Workspaces: planesAway{},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	return b.Run(ctx, func() {})
}

func balancerDir(dir string) string { return filepath.Join(dir, "balancer") }

// signer signs as the server does.
type signer struct{ ca *pki.CA }

func (s signer) Sign(_ context.Context, csrPEM []byte, hosts []string) ([]byte, error) {
	return s.ca.Sign(csrPEM, pki.Request{CommonName: hosts[0], Hosts: hosts, Server: true})
}

// planesAway is a server whose planes don't run: the balancer serves with the
// endpoints that it had saved. Pods are dialed directly.
type planesAway struct{}

func (planesAway) Client(context.Context, string) (kubernetes.Interface, error) {
	return nil, errors.New("no plane runs here")
}

func (planesAway) Dialer(string) (func(context.Context, string, string) (net.Conn, error), error) {
	return (&net.Dialer{}).DialContext, nil
}

// startOurs starts our balancer with the n routes that were seeded and waits
// until the last of them is served, which took so long.
func (s *site) startOurs(ctx context.Context, n int) (*measure.Child, time.Duration, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	o := order{Dir: s.env.Dir, Port: oursPort}
	if s.env.Profile != "" {
		o.Profile = fmt.Sprintf("%s.balancer-%d.pprof", s.env.Profile, n)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, 0, err
	}
	cmd := s.net.Command(context.Background(), s.measured, self)
	cmd.Env = append(os.Environ(), oursEnv+"="+string(text))
	began := time.Now()
	c, err := s.start("ours", cmd)
	if err != nil {
		return nil, 0, err
	}
	s.proxies["ours"] = proxy{c.PID, oursPort}
	err = c.Await(ctx, 2*time.Minute, func(ctx context.Context) error {
		_, err := s.get(ctx, oursPort, hostOf(n-1))
		return err
	})
	return c, time.Since(began), err
}
