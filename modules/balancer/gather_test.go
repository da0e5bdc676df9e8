package balancer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/multipaas/multipaas/testing/wait"
)

// TestGatherer: all arrives, in order and before the end; who does not read
// holds up nobody for long and costs little memory.
func TestGatherer(t *testing.T) {
	ours, client := net.Pipe()
	g := &gatherer{Conn: ours, leave: func() {}}
	g.start()
	var want bytes.Buffer
	got := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(client)
		got <- all
	}()
	for i := range 5000 {
		p := fmt.Appendf(nil, "%d,", i)
		want.Write(p)
		if n, err := g.Write(p); n != len(p) || err != nil {
			t.Fatalf("write %d: %d, %v", i, n, err)
		}
		clear(p) // the caller's buffer is its own again
	}
	// crypto/tls does this before it closes.
	if err := g.SetWriteDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if all := <-got; !bytes.Equal(all, want.Bytes()) {
		t.Errorf("got %d bytes, want the %d that were written", len(all), want.Len())
	}
	if _, err := g.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: got %v", err)
	}

	ours, client = net.Pipe()
	defer client.Close()
	g = &gatherer{Conn: ours, leave: func() {}}
	g.start()
	taken := make(chan int)
	go func() {
		n, p := 0, make([]byte, 16<<10)
		for {
			m, err := g.Write(p)
			if n += m; err != nil {
				taken <- n
				return
			}
		}
	}()
	wait.True(t, wait.Patience, "the writer waits", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.waiting != nil && len(*g.waiting) >= maxGathered
	})
	began := time.Now()
	g.Close()
	if took := time.Since(began); took > lastWords+5*time.Second {
		t.Errorf("closing took %s while nobody reads", took)
	}
	if n := <-taken; n > 3*maxGathered {
		t.Errorf("%d bytes were taken for a client that does not read", n)
	}
}
