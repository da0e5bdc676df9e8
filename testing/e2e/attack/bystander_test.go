package attack

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/status"
	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/wait"
)

// The bounds that B's things stay within while A attacks. They tell a tenant that
// is starved from one that is not; on two cores that everything shares, with the
// attacker's side of the work on them too, they can't tell fast from slow. What is
// measured is in the table.
//
// A bound is longer by four times what the slowest request to a server of the
// test's own took meanwhile, for the machine may do other things; but at most twice as
// long, for an attack may starve that one too.
const (
	// answerWithin is for a request to B's app. Idle it takes some ten
	// milliseconds; after ten seconds people and load balancers give up.
	answerWithin = 10 * time.Second
	// planeWithin is for a read or a write of B's API. Kubernetes' own clients renew
	// their leases within 10 s, or take themselves for cut off.
	planeWithin = 10 * time.Second
	// platformWithin is for the platform's API: agents take it for gone later,
	// after 40 s.
	platformWithin = 10 * time.Second
	// None of B's pods may be started anew, no machine of B's may be anything but
	// Ready, and neither B's plane nor the server may be another process than before.

	// pause is between two requests of a kind: some a second, so that the bystander
	// itself is no load.
	pause = 250 * time.Millisecond
	// spare is what may be added to twice of what something takes alone.
	spare = 2 * time.Second
	// fewest is how many requests of each kind are made at least.
	fewest = 8
)

// bystander is what B and the sysadmin do all the time.
type bystander struct {
	s       *suite
	asks    []ask
	control func(ctx context.Context) error // asks a server of the test's own
	before  standing
}

// ask is one thing that must go on working, again and again.
type ask struct {
	what   string // "B's app"
	within time.Duration
	do     func(ctx context.Context) error
	fewest int  // of it are made at least; 0: as many as of the others
	twice  bool // within is twice what it takes alone, and spare
}

// standing is what must not change.
type standing struct {
	pods     map[string]string // namespace/name of B's pods -> containers and their starts
	machines string            // of B's that are Ready, with since when
	plane    string            // processes of B's plane
	server   int               // process of the server
}

// newBystander looks at how everything is now. It must be well.
func (s *suite) newBystander(t *testing.T) *bystander {
	t.Helper()
	own := newKube(t, s.Kubeconfig())
	own.client.Timeout = 3 * planeWithin
	own.must(t, "/api/v1/namespaces/default/configmaps", `{"metadata":{"name":"bystander"}}`)
	app, api := s.Client(), s.Client()
	app.Timeout, api.Timeout = 3*answerWithin, 3*platformWithin
	s.shop = s.workspaceID(t, datacenter.Owner, "shop")
	n := 0
	b := &bystander{s: s, control: ownServer(t), asks: []ask{
		{what: "B's app through the balancer", within: answerWithin, do: func(ctx context.Context) error {
			_, err := s.Hello(ctx, app)
			return err
		}},
		{what: "reads of B's plane", within: planeWithin, do: func(ctx context.Context) error {
			return own.do(ctx, http.MethodGet, "/api/v1/namespaces/default/pods", "", "").good()
		}},
		{what: "writes of B's plane", within: planeWithin, do: func(ctx context.Context) error {
			n++
			return own.patch(ctx, "merge", "/api/v1/namespaces/default/configmaps/bystander", fmt.Sprintf(`{"data":{"n":"%d"}}`, n)).good()
		}},
		{what: "the platform's API", within: platformWithin, do: func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL()+"/readyz", nil)
			if err != nil {
				return err
			}
			resp, err := api.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
			if err == nil && resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("%s: %s", resp.Status, body)
			}
			return err
		}},
	}}
	wait.For(t, wait.Patience, "B and the platform are well", func(ctx context.Context) (err error) {
		for _, a := range b.asks {
			if err := a.do(ctx); err != nil {
				return fmt.Errorf("%s: %w", a.what, err)
			}
		}
		b.before, err = s.stand(ctx, own)
		return err
	})
	b.asks = append(b.asks, ask{what: "B's pods and machines, its plane and the server as they were", within: planeWithin, do: func(ctx context.Context) error {
		now, err := s.stand(ctx, own)
		if err != nil {
			return err
		}
		return b.before.differs(now)
	}})
	return b
}

// ownServer returns what asks a server of this process, over a TLS connection each
// time, as the app is asked.
func ownServer(t *testing.T) func(context.Context) error {
	t.Helper()
	own := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(own.Close)
	client := own.Client()
	client.Transport.(*http.Transport).DisableKeepAlives = true
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, own.URL, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
}

// good is an error unless the API did what it was asked for.
func (r reply) good() error {
	if r.code/100 != 2 {
		return errors.New(r.String())
	}
	return nil
}

// read gets an object.
func (k *kube) read(ctx context.Context, path string, into any) error {
	r := k.do(ctx, http.MethodGet, path, "", "")
	if err := r.good(); err != nil {
		return err
	}
	return json.Unmarshal([]byte(r.body), into)
}

// stand looks at what must not change.
func (s *suite) stand(ctx context.Context, k *kube) (standing, error) {
	now := standing{pods: map[string]string{}}
	var pods struct {
		Items []struct {
			Metadata struct{ Namespace, Name string }
			Status   struct {
				ContainerStatuses []struct {
					ContainerID  string
					RestartCount int
				}
			}
		}
	}
	if err := k.read(ctx, "/api/v1/pods", &pods); err != nil {
		return now, fmt.Errorf("list B's pods: %w", err)
	}
	for _, p := range pods.Items {
		now.pods[p.Metadata.Namespace+"/"+p.Metadata.Name] = fmt.Sprint(p.Status.ContainerStatuses)
	}
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Conditions []struct{ Type, Status, LastTransitionTime string }
			}
		}
	}
	if err := k.read(ctx, "/api/v1/nodes", &nodes); err != nil {
		return now, fmt.Errorf("list B's machines: %w", err)
	}
	for _, n := range nodes.Items {
		for _, c := range n.Status.Conditions {
			if c.Type == "Ready" {
				now.machines += fmt.Sprintf("%s Ready=%s since %s; ", n.Metadata.Name, c.Status, c.LastTransitionTime)
			}
		}
	}
	st, err := status.Fetch(ctx, s.Server.Root("run", "multipaas", "status.sock"))
	if err != nil {
		return now, err
	}
	if missing := st.Ready(); len(missing) > 0 {
		return now, fmt.Errorf("multipaas status: %s", strings.Join(missing, "; "))
	}
	now.server = st.PID
	for _, i := range st.Items {
		if i.Kind == "workspace" && strings.HasPrefix(i.Name, "acme/") {
			now.plane += i.Name + " is " + i.State + "; "
		}
	}
	now.plane += s.planeProcess(s.shop)
	return now, nil
}

// planeProcess is the process of a workspace's plane, as the server sees it.
func (s *suite) planeProcess(id string) string {
	files, _ := filepath.Glob(s.Server.Root("proc", "[0-9]*", "cmdline"))
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), "\x00plane\x00") && strings.Contains(string(line), "/"+id+"/") {
			return filepath.Base(filepath.Dir(file))
		}
	}
	return ""
}

func (before standing) differs(now standing) error {
	for name, was := range before.pods {
		if now.pods[name] != was {
			return fmt.Errorf("B's pod %s was %s and is %s", name, was, now.pods[name])
		}
	}
	for what, two := range map[string][2]string{
		"B's machines": {before.machines, now.machines}, "B's plane": {before.plane, now.plane},
		"the server's process": {fmt.Sprint(before.server), fmt.Sprint(now.server)},
	} {
		if two[0] != two[1] {
			return fmt.Errorf("%s: was %q and is %q", what, two[0], two[1])
		}
	}
	return nil
}

// measured is how one kind of request went.
type measured struct {
	took  []time.Duration
	bound time.Duration
	errs  []error
}

func (m measured) String() string {
	took := slices.Clone(m.took)
	slices.Sort(took)
	text := fmt.Sprintf("%d asked, %d failed", len(took), len(m.errs))
	if len(took) > 0 {
		at := func(part float64) time.Duration { return took[int(part*float64(len(took)-1))].Round(time.Millisecond) }
		text += fmt.Sprintf(", p50 %s, p99 %s, worst %s of %s", at(0.5), at(0.99), at(1), m.bound.Round(time.Millisecond))
	}
	if len(m.errs) > 0 {
		text += "; first failure: " + m.errs[0].Error()
	}
	return text
}

// bounded is how long a request may take, when the control took so long at most.
func bounded(within, control time.Duration) time.Duration { return within + min(within, 4*control) }

// goOn does what the bystander does until it is stopped, then says how each kind
// of request went.
func (b *bystander) goOn(t *testing.T) (stop func() []measured) {
	t.Helper()
	ended := make(chan struct{})
	asks := append(slices.Clone(b.asks), ask{what: "a server of the test's own", within: time.Minute, do: b.control})
	for i, a := range asks {
		asks[i].fewest = cmp.Or(a.fewest, fewest)
		asks[i].within = cmp.Or(a.within, answerWithin)
	}
	all := make([]measured, len(asks))
	var wg sync.WaitGroup
	for i, a := range asks {
		wg.Go(func() {
			m := &all[i]
			for {
				select {
				case <-ended:
					if len(m.took) >= a.fewest {
						return
					}
				default:
				}
				// The time-out is longer than the bound: what was too slow shall be
				// seen with its time.
				ctx, cancel := context.WithTimeout(t.Context(), 3*a.within)
				began := time.Now()
				err := a.do(ctx)
				cancel()
				m.took = append(m.took, time.Since(began))
				if err != nil {
					m.errs = append(m.errs, err)
				}
				time.Sleep(pause)
			}
		})
	}
	return func() []measured {
		close(ended)
		wg.Wait()
		control := slices.Max(all[len(b.asks)].took)
		for i := range b.asks {
			m := &all[i]
			m.bound = bounded(asks[i].within, control)
			for _, took := range m.took {
				if took > m.bound {
					m.errs = append(m.errs, fmt.Errorf("took %s, bound is %s", took.Round(time.Millisecond), m.bound.Round(time.Millisecond)))
				}
			}
		}
		return all[:len(b.asks)]
	}
}

// alone measures B for so long, while nobody attacks.
func (b *bystander) alone(t *testing.T, long time.Duration) (err error) {
	t.Helper()
	stop := b.goOn(t)
	time.Sleep(long)
	for i, m := range stop() {
		t.Logf("nobody attacks: %s: %s", b.asks[i].what, m)
		if b.asks[i].twice {
			b.asks[i].within = 2*slices.Max(m.took) + spare
		}
		if len(m.errs) > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %s", b.asks[i].what, m))
		}
	}
	return err
}

// during lets A attack while B goes on, and records how that went for B: a row
// for each thing that must go on.
func (b *bystander) during(t *testing.T, what, from string, attack func()) {
	t.Helper()
	stop := b.goOn(t)
	defer func() {
		for i, m := range stop() {
			b.s.record(t, attempt{What: "starve " + b.asks[i].what + ": " + what, From: from, Want: fmt.Sprintf("every one goes well within %s", b.asks[i].within),
				Got: m.String(), Blocked: len(m.errs) == 0})
		}
	}()
	attack()
}
