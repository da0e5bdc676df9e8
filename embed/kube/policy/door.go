package policy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// socketName is where the CNI plugin asks, in Config.Dir: it writes an id and
// reads "ok", or why not.
const socketName = "policy.sock"

// patience bounds the wait for one pod. The container runtime asks again.
const patience = 20 * time.Second

// ask is the wish that the rules for a pod hold.
type ask struct {
	id   string
	ctx  context.Context
	done chan struct{}
}

// listen answers the CNI plugin until what it returns is called.
func (k *keeper) listen(ctx context.Context) (func(), error) {
	path := filepath.Join(k.cfg.Dir, socketName)
	if err := os.MkdirAll(k.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	// Of a process that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go k.hear(ctx, conn)
		}
	}()
	return func() { _ = l.Close() }, nil
}

// hear answers one question. Without an id it is only word of a change.
func (k *keeper) hear(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience + 5*time.Second))
	line, _ := bufio.NewReader(io.LimitReader(conn, 1024)).ReadString('\n')
	id := strings.TrimSpace(line)
	if id == "" {
		k.changed()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	k.catchUp(ctx, id)
	a := &ask{id: id, ctx: ctx, done: make(chan struct{})}
	answer := "ok"
	select {
	case k.asks <- a:
		select {
		case <-a.done:
		case <-ctx.Done():
			answer = k.reason()
		}
	case <-ctx.Done():
		answer = k.reason()
	}
	fmt.Fprintln(conn, answer)
}

// catchUp waits until the policies that were there when a pod was made are known. The
// watch may be behind: by some milliseconds, or by seconds when the API server was away.
// One that doesn't answer has had nothing made that this machine could know of. Each pod
// costs a list of its namespace: a watch that is current and shows nothing can't be told
// from one that is behind, unless somebody asks how far the API server is.
func (k *keeper) catchUp(ctx context.Context, id string) {
	r, err := readResident(filepath.Join(k.cfg.Dir, podsDir, id))
	if err != nil || k.list == nil {
		return // it is not answered before it can be read
	}
	for ctx.Err() == nil {
		there, err := k.list(ctx, r.Namespace)
		pause := time.Second // some of them may be gone already
		if err != nil {
			if status := apierrors.APIStatus(nil); !errors.As(err, &status) {
				return
			}
			k.doubt(fmt.Errorf("list NetworkPolicies of %s: %w", r.Namespace, err))
			pause = 100 * time.Millisecond // on a new machine the right to do so may come after it
		}
		for again := time.Now().Add(pause); time.Now().Before(again); {
			if err == nil && k.knows(r.Namespace, there) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(20 * time.Millisecond): // a look costs nothing
			}
		}
	}
}

// listPolicies asks the API server itself for the policies of a namespace: by name, with
// their revisions.
func (k *keeper) listPolicies(ctx context.Context, namespace string) (map[string]string, error) {
	list, err := k.client.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	there := map[string]string{}
	for _, p := range list.Items {
		there[p.Name] = p.ResourceVersion
	}
	return there, nil
}

// knows says whether policies of a namespace are known as they are in there, or newer.
func (k *keeper) knows(namespace string, there map[string]string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, revision := range there {
		p := k.world.policies[namespace][name]
		if p == nil {
			return false
		}
		if order, err := resourceversion.CompareResourceVersion(p.ResourceVersion, revision); err == nil && order < 0 {
			return false
		}
	}
	return true
}

// reason is why somebody waits.
func (k *keeper) reason() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	why := "the API server has not told of this pod"
	switch {
	case k.err != nil:
		why = strings.ReplaceAll(k.err.Error(), "\n", " ")
	case !k.policies:
		why = "the NetworkPolicies have not been read"
	case !k.pods:
		why = "pods and namespaces have not been read"
	}
	return "the rules that NetworkPolicies ask for are not in place, so it gets no network yet: " + why
}

// asked returns who else asks now.
func (k *keeper) asked() (all []*ask) {
	for {
		select {
		case a := <-k.asks:
			all = append(all, a)
		default:
			return all
		}
	}
}

// answer tells those whose rules hold, and returns the others.
func (k *keeper) answer(waiting []*ask, residents map[string]resident) []*ask {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.DeleteFunc(waiting, func(a *ask) bool {
		r, noted := residents[a.id]
		if noted && k.world.known(r) {
			close(a.done)
			return true
		}
		return a.ctx.Err() != nil
	})
}

func isThere(err error) bool { return apierrors.IsAlreadyExists(err) }

func sameRanges(a, b *node) bool { return slices.Equal(a.ranges, b.ranges) }

func sameLabels(a, b *namespace) bool { return maps.Equal(a.Labels, b.Labels) }

func samePod(a, b *pod) bool {
	return a.UID == b.UID && a.node == b.node && a.told == b.told && maps.Equal(a.Labels, b.Labels) && slices.Equal(a.ports, b.ports)
}
