package dctest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/datacenter"
	"github.com/multipaas/multipaas/testing/wait"
)

// Dial connects to the server, whatever host name is asked for.
func (d *Datacenter) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return datacenter.Dialer(d.Server.Address())(ctx, network, address)
}

// Client trusts the platform's authority and nothing else.
func (d *Datacenter) Client() *http.Client { return datacenter.Client(d.Server.Address(), d.Pool) }

// Hello asks the app and returns the instance that answered.
func (d *Datacenter) Hello(ctx context.Context, c *http.Client) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+datacenter.AppHost+"/", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return resp.Header.Get("X-Instance"), err
}

// Answers waits until the app answers.
func (d *Datacenter) Answers(t testing.TB) {
	t.Helper()
	c := d.Client()
	wait.For(t, wait.Patience, "the app answers", func(ctx context.Context) error {
		_, err := d.Hello(ctx, c)
		return err
	})
}

// NodesReady waits until acme/web/shop has n Ready nodes.
func (d *Datacenter) NodesReady(t testing.TB, n int) {
	t.Helper()
	wait.For(t, wait.Patience, "the nodes are Ready", func(context.Context) error {
		r := d.Kube(t, d.Kubeconfig(), "", "get", "nodes", "-o", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{" "}{end}`)
		if got := strings.TrimSpace(r.Out); got != strings.TrimSpace(strings.Repeat("True ", n)) {
			return fmt.Errorf("those that are Ready: %q %s", got, r.Err)
		}
		return nil
	})
}

// Pod is what of a pod the tests look at.
type Pod struct {
	Name, Node, IP, ContainerID string
	Restarts                    int
}

// Pods returns the pods with a label, by name. Those that are going don't count.
func (d *Datacenter) Pods(t testing.TB, selector string) map[string]Pod {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name              string
				DeletionTimestamp *time.Time
			}
			Spec   struct{ NodeName string }
			Status struct {
				PodIP             string
				ContainerStatuses []struct {
					ContainerID  string
					RestartCount int
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(d.Kubectl(t, "get", "pods", "-l", selector, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	all := map[string]Pod{}
	for _, i := range list.Items {
		if i.Metadata.DeletionTimestamp != nil {
			continue
		}
		p := Pod{Name: i.Metadata.Name, Node: i.Spec.NodeName, IP: i.Status.PodIP}
		for _, c := range i.Status.ContainerStatuses {
			p.ContainerID, p.Restarts = c.ContainerID, c.RestartCount
		}
		all[p.Name] = p
	}
	return all
}

// PodsLike returns the pods once they are the wanted ones; if they are not within
// half a minute, as they are then. Kubelets that have just started report again what
// runs; a pod that was started anew never becomes the one from before.
func (d *Datacenter) PodsLike(t testing.TB, selector string, want map[string]Pod) map[string]Pod {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		now := d.Pods(t, selector)
		if maps.Equal(now, want) || time.Now().After(end) {
			return now
		}
	}
}
