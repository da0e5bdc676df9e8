package balancer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/multipaas/multipaas/testing/bench/measure"
)

// load is one way of asking.
type load struct {
	name    string
	path    string
	h1      bool
	clients int
	streams int  // requests at once on each connection
	fresh   bool // a new connection for each request
	seconds int
}

var (
	summary = regexp.MustCompile(`requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
	elapsed = regexp.MustCompile(`finished in ([0-9.]+)(ms|s|us)`)
)

// run asks a proxy for a while by h2load and returns requests per second, the
// 50th and 99th percentile of their times, and the CPU time that the proxy,
// process pid, took for 1,000 of them.
func (s *site) run(ctx context.Context, l load, port, pid int) (measure.Sample, error) {
	// A first run fills caches and says how many requests make up the time. A
	// run by time (-D) was tried: h2load often goes on for ever.
	at := l.clients * l.streams
	n, all := 4*at, time.Duration(0)
	for {
		times, took, err := s.h2load(ctx, l, port, n)
		if err != nil {
			return nil, err
		}
		n = max(4*at, int(float64(len(times))*float64(l.seconds)/took.Seconds()))
		if all += took; all > 300*time.Millisecond {
			break
		}
		n = min(n, 20*len(times)) // the first ones are slow: they open the connections
	}
	before, err := measure.CPU(pid)
	if err != nil {
		return nil, err
	}
	times, took, err := s.h2load(ctx, l, port, n)
	if err != nil {
		return nil, err
	}
	after, err := measure.CPU(pid)
	if err != nil {
		return nil, err
	}
	count := float64(len(times))
	return measure.Sample{
		"rate": count / took.Seconds(),
		"p50":  measure.Percentile(times, 0.50),
		"p99":  measure.Percentile(times, 0.99),
		"cpu":  (after - before).Seconds() * 1e6 / count, // ms for 1,000 requests
	}, nil
}

// h2load makes n requests and returns the time of each in milliseconds.
func (s *site) h2load(ctx context.Context, l load, port, n int) (times []float64, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	log := filepath.Join(s.env.Dir, "h2load.tsv")
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, 0, err
	}
	args := []string{"h2load", "-t", "1", "-n", strconv.Itoa(n), "-c", strconv.Itoa(l.clients), "-m", strconv.Itoa(l.streams),
		"--log-file", log, "--connect-to", fmt.Sprintf("127.0.0.1:%d", port)}
	if l.h1 {
		args = append(args, "--h1")
	}
	if l.fresh {
		args = append(args, "-H", "Connection: close")
	}
	args = append(args, "https://"+hostOf(0)+l.path)
	out, err := s.net.Command(ctx, s.rest, args...).CombinedOutput()
	if err != nil {
		return nil, 0, fmt.Errorf("h2load: %w\n%s", err, out)
	}
	m := elapsed.FindSubmatch(out)
	if m == nil {
		return nil, 0, fmt.Errorf("h2load says something unknown:\n%s", out)
	}
	if took, err = time.ParseDuration(string(m[1]) + string(m[2])); err != nil {
		return nil, 0, err
	}
	if m := summary.FindSubmatch(out); m == nil || string(m[5]) != "0" || string(m[6]) != "0" || string(m[7]) != "0" {
		return nil, 0, fmt.Errorf("h2load: requests went wrong:\n%s", out)
	}
	f, err := os.Open(log)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		c := strings.Split(lines.Text(), "\t")
		if len(c) < 3 || c[1] != "200" {
			return nil, 0, fmt.Errorf("h2load: a request ended with %q", lines.Text())
		}
		us, err := strconv.ParseFloat(c[2], 64)
		if err != nil {
			return nil, 0, err
		}
		times = append(times, us/1000)
	}
	if len(times) == 0 {
		return nil, 0, fmt.Errorf("h2load: no request was answered:\n%s", out)
	}
	return times, took, nil
}
