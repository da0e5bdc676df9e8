package etcd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/pki"
)

// memberEnv makes this test binary a member in that folder, for tests that kill
// it.
const memberEnv = "MULTIPAAS_ETCD_TEST_MEMBER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(memberEnv); dir != "" {
		cfg, err := memberConfig(dir)
		if err == nil {
			err = New(cfg).Run(context.Background(), func() { fmt.Println("ready") })
		}
		fmt.Fprintln(os.Stderr, "member:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// memberConfig is that of a member in a process of its own. It syncs, as the
// platform's does, and compacts every second instead of every five minutes.
func memberConfig(dir string) (Config, error) {
	ca, err := pki.LoadOrCreateCA(filepath.Join(dir, "pki"), "etcd test")
	return Config{Dir: filepath.Join(dir, "etcd"), Name: "one", Socket: filepath.Join(dir, "run", "etcd.sock"), CA: ca, History: time.Second}, err
}

// startMember starts the process and waits until it serves.
func startMember(t *testing.T, dir string) (kill func(), pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), memberEnv+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the member said %q, %v", line, err)
	}
	go io.Copy(io.Discard, out)
	return kill, cmd.Process.Pid
}

// TestKilledAroundCompactions kills the member by kill -9 while it compacts and
// writers write. There is no failpoint in a compaction, because none of its
// steps is ours: the member itself notes what it is going to remove, removes it
// in batches, each a transaction of its database, and goes on after a start. Nor does
// anything of ours defragment: that is done by the member too, at its start.
//
// What was acknowledged must be there, by the revision that was given for it, and
// no revision may be given twice.
func TestKilledAroundCompactions(t *testing.T) {
	dir, err := os.MkdirTemp("", "mp-etcd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg, err := memberConfig(dir)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 6
	if os.Getenv("MULTIPAAS_LONG") != "" {
		rounds = 100
	}
	type ack struct {
		value    int
		revision int64
	}
	const writers = 4
	var mu sync.Mutex
	acked, asked := map[string]ack{}, map[string]int{}
	var highest int64 // revision that anybody was told
	compacted := 0
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range rounds {
		kill, _ := startMember(t, dir)
		c, err := New(cfg).Client()
		if err != nil {
			t.Fatal(err)
		}
		// First what was acknowledged before the last kill.
		resp, err := c.Get(t.Context(), "w/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.Revision < highest {
			t.Errorf("round %d: at revision %d, after %d was told", round, resp.Header.Revision, highest)
		}
		// Whoever asks for the beginning learns whether it is history.
		if _, err := c.Get(t.Context(), "w/", clientv3.WithRev(1)); errors.Is(err, rpctypes.ErrCompacted) {
			compacted++
		}
		there := map[string]ack{}
		for _, kv := range resp.Kvs {
			var value int
			if _, err := fmt.Sscan(strings.TrimLeft(string(kv.Value), "."), &value); err != nil {
				t.Fatal(err)
			}
			there[string(kv.Key)] = ack{value, kv.ModRevision}
		}
		for key, want := range acked {
			got := there[key]
			// A later write of the same writer may have happened without an answer.
			if got != want && (got.value <= want.value || got.value > asked[key] || got.revision <= want.revision) {
				t.Errorf("round %d: %s is %+v, acknowledged was %+v", round, key, got, want)
			}
		}

		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wrote := make(chan struct{}, 1)
		for w := range writers {
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					key := fmt.Sprintf("w/%d/%d", w, n%50)
					mu.Lock()
					value := asked[key] + 1
					asked[key] = value
					mu.Unlock()
					// 4 KiB, so that a compaction has something to remove.
					resp, err := c.Put(ctx, key, fmt.Sprintf("%s%d", strings.Repeat(".", 4096), value))
					if err != nil {
						return
					}
					mu.Lock()
					if resp.Header.Revision <= acked[key].revision {
						t.Errorf("round %d: %s got revision %d after %d", round, key, resp.Header.Revision, acked[key].revision)
					}
					acked[key] = ack{value, resp.Header.Revision}
					highest = max(highest, resp.Header.Revision)
					mu.Unlock()
					select {
					case wrote <- struct{}{}:
					default:
					}
				}
			})
		}
		// Beside the member's own compactions one that is asked for, so that the
		// kill falls into it: it is answered when all is removed.
		for range 50 * writers {
			select {
			case <-wrote:
			case <-time.After(time.Minute):
				t.Fatalf("round %d: nothing was written for a minute", round)
			}
		}
		mu.Lock()
		at := highest
		mu.Unlock()
		done := make(chan error, 1)
		go func() { _, err := c.Compact(ctx, at, clientv3.WithCompactPhysical()); done <- err }()
		chance := time.Duration(rnd.IntN(30)) * time.Millisecond
		if round == 1 {
			chance = time.Minute // one of them is to be done whole
		}
		select {
		case <-done:
		case <-time.After(chance):
		}
		kill()
		cancel()
		wg.Wait()
		if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	t.Logf("%d rounds, %d keys, revision %d; compacted before %d of the starts", rounds, len(acked), highest, compacted)
	if compacted == 0 {
		t.Error("nothing was ever compacted")
	}
}
