package guard

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
)

// machineGroup begins the group by which a machine's certificates name it. The
// rest is the UID of the machine, which no other ever has; a name may come again.
const machineGroup = "multipaas:machine:"

// kubeProxy is as whom every machine's kube-proxy speaks.
const kubeProxy = "system:kube-proxy"

// lookEvery is how long a request of a machine that was taken away, a watch that
// it began before, may go on.
const lookEvery = 2 * time.Second

// machineOf says whether a client's certificate speaks for a machine, and of
// which UID it is. One that does and names no machine, or two, has none.
func machineOf(state *tls.ConnectionState) (uid string, ok bool) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return "", false
	}
	subject := state.PeerCertificates[0].Subject
	ok = subject.CommonName == kubeProxy || strings.HasPrefix(subject.CommonName, "system:node:") ||
		slices.Contains(subject.Organization, user.NodesGroup)
	named := 0
	for _, o := range subject.Organization {
		if rest, is := strings.CutPrefix(o, machineGroup); is {
			uid, ok = rest, true
			named++
		}
	}
	if named != 1 {
		uid = ""
	}
	return uid, ok
}

// machines knows which machines live, and which of their requests are open.
type machines struct {
	file string

	mu   sync.Mutex
	open map[string]map[*context.CancelFunc]bool // by UID
}

// living reads who lives. The file is 10 KB at most and machines ask a few times a
// second, so it is not cached. One that is missing or damaged names nobody.
func (m *machines) living() (uids []string) {
	data, err := os.ReadFile(m.file)
	if err != nil || json.Unmarshal(data, &uids) != nil {
		return nil
	}
	return uids
}

// enter says whether the machine lives. ctx ends soon after it has died. leave is
// to be called in the end, whatever the answer.
func (m *machines) enter(parent context.Context, uid string) (ctx context.Context, leave func(), lives bool) {
	ctx, cancel := context.WithCancel(parent)
	m.mu.Lock()
	if m.open == nil {
		m.open = map[string]map[*context.CancelFunc]bool{}
	}
	if m.open[uid] == nil {
		m.open[uid] = map[*context.CancelFunc]bool{}
	}
	m.open[uid][&cancel] = true
	m.mu.Unlock()
	leave = func() {
		cancel()
		m.mu.Lock()
		defer m.mu.Unlock()
		if delete(m.open[uid], &cancel); len(m.open[uid]) == 0 {
			delete(m.open, uid)
		}
	}
	// Looked at once it can be ended: a file that is written meanwhile is met by
	// the next look.
	return ctx, leave, uid != "" && slices.Contains(m.living(), uid)
}

// Watch ends the requests of machines that were taken away, until ctx is done.
func (g *Guard) Watch(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			g.machines.look()
		}
	}
}

func (m *machines) look() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.open) == 0 {
		return
	}
	living := m.living()
	for uid, requests := range m.open {
		if slices.Contains(living, uid) {
			continue
		}
		for cancel := range requests {
			(*cancel)()
		}
	}
}
