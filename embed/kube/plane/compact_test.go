package plane

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// kineEnv makes this test binary a kine in that folder, for tests that kill it.
const kineEnv = "MULTIPAAS_KINE_TEST"

func TestMain(m *testing.M) {
	if dir := os.Getenv(kineEnv); dir != "" {
		fmt.Fprintln(os.Stderr, "kine:", runKine(kineIn(dir)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// kineIn is as embed/plane has it.
func kineIn(dir string) KineConfig {
	file := filepath.Join(dir, "state.db")
	return KineConfig{Socket: filepath.Join(dir, "kine.sock"), File: file,
		Endpoint: "sqlite://" + file + "?_journal_mode=WAL&_busy_timeout=30000&_synchronous=NORMAL&_txlock=immediate&cache=shared" +
			"&_pragma=journal_size_limit(67108864)&_kine_disable_startup_vacuum=1"}
}

// runKine serves, and drops history all the time, as a plane does whose
// datastore is nearly full.
func runKine(cfg KineConfig) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	k := newKine(cfg)
	ended := make(chan error, 1)
	go func() { ended <- k.run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-k.ready:
	}
	s, err := newSQLite(cfg)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		if err := s.Reclaim(ctx, 0); err != nil {
			return err
		}
		// All free pages, not only many of them.
		rows, err := s.db.QueryContext(ctx, "PRAGMA incremental_vacuum(16)")
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		if err := rows.Close(); err != nil {
			return err
		}
		fmt.Println("reclaimed")
	}
}

// TestKilledAroundCompactions kills kine by kill -9 while it compacts, its
// database gives pages back, and writers write. There is no failpoint in
// it: kine removes a batch of revisions and notes how far it is in one
// transaction, and each step of Reclaim is one of SQLite's; between two of them
// nothing of ours is half done.
//
// What was acknowledged must be there, by the revision that was given for it, and
// no revision may be given twice.
func TestKilledAroundCompactions(t *testing.T) {
	dir := t.TempDir()
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
	var highest int64
	reclaimed := 0
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range rounds {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), kineEnv+"="+dir)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		kill := sync.OnceFunc(func() { _ = cmd.Process.Kill() })
		t.Cleanup(kill)
		said := make(chan string, 1<<16)
		go func() {
			defer close(said)
			for lines := bufio.NewScanner(out); lines.Scan(); {
				select {
				case said <- lines.Text():
				default:
				}
			}
		}()
		if line := <-said; line != "ready" {
			t.Fatalf("round %d: kine said %q", round, line)
		}
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + kineIn(dir).Socket}})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Get(t.Context(), "/w/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.Revision < highest {
			t.Errorf("round %d: at revision %d, after %d was told", round, resp.Header.Revision, highest)
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
				at := map[string]int64{}
				for n := 0; ctx.Err() == nil; n++ {
					key := fmt.Sprintf("/w/%d/%d", w, n%20)
					if _, known := at[key]; !known {
						at[key] = there[key].revision
					}
					mu.Lock()
					value := asked[key] + 1
					asked[key] = value
					mu.Unlock()
					text := fmt.Sprintf("%s%d", strings.Repeat(".", 4096), value)
					// As Kubernetes writes: kine knows no other transactions.
					resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", at[key])).
						Then(clientv3.OpPut(key, text)).Else(clientv3.OpGet(key)).Commit()
					if err != nil {
						return
					}
					if !resp.Succeeded {
						t.Errorf("round %d: %s was changed by somebody else after revision %d", round, key, at[key])
						return
					}
					at[key] = resp.Header.Revision
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
		for range 30 * writers {
			select {
			case <-wrote:
			case <-time.After(30 * time.Second):
				t.Fatalf("round %d: nothing was written for 30 s", round)
			}
		}
		for line := range said { // behind the start of one more
			if reclaimed++; line == "reclaimed" {
				break
			}
		}
		time.Sleep(time.Duration(rnd.IntN(30)) * time.Millisecond) // chance, no wait for anything
		kill()
		cancel()
		wg.Wait()
		_ = cmd.Wait()
		_ = c.Close()
	}
	t.Logf("%d rounds, %d keys, revision %d, history dropped %d times at least", rounds, len(acked), highest, reclaimed)
}
