package client

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// fileProgress says on standard error how much of a file is there, and ends requests that stall.
type fileProgress struct {
	*program
	verb     string
	terminal bool

	mu     sync.Mutex
	base   int64     // where the last request began: all before is there
	bytes  int64     // what has come since, or gone out, included
	moved  time.Time // when that was another
	grew   time.Time // when base was less
	told   time.Time
	said   string
	cancel context.CancelFunc // of the request at hand
	watch  *time.Ticker
	done   chan struct{}
}

func (c *call) fileProgress(verb string) *fileProgress {
	p := &fileProgress{program: c.program, verb: verb, terminal: isTerminal(c.err) && os.Getenv("TERM") != "dumb",
		moved: time.Now(), grew: time.Now(), told: time.Now(), watch: time.NewTicker(time.Second), done: make(chan struct{})}
	go p.look()
	return p
}

// look tells, each second on a terminal, and else twice a minute.
func (p *fileProgress) look() {
	var stalled time.Time
	for {
		select {
		case <-p.done:
			return
		case <-p.watch.C:
		}
		p.mu.Lock()
		if p.terminal {
			p.draw()
		} else if time.Since(p.told) > 30*time.Second {
			p.told = time.Now()
			p.note("..    %s %s", resource.Bytes.Text(p.bytes), p.verb)
		}
		if p.cancel != nil && time.Since(p.moved) > fileStall && time.Since(stalled) > fileStall {
			stalled = time.Now()
			p.cancel()
		}
		p.mu.Unlock()
	}
}

// draw is called with mu held.
func (p *fileProgress) draw() {
	_, _ = io.WriteString(p.err, "\r\x1b[K      "+resource.Bytes.Text(p.bytes)+" "+p.verb)
}

// begin is of a request, which cancel ends.
func (p *fileProgress) begin(cancel context.CancelFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel = cancel
}

// waits says why nothing comes, each reason once.
func (p *fileProgress) waits(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text := printable(err.Error()); text != p.said && time.Since(p.moved) > 5*time.Second {
		p.said = text
		if p.terminal {
			_, _ = io.WriteString(p.err, "\r\x1b[K")
		}
		p.note("..    waits: %s", text)
	}
}

// at is how much there is for sure, and quiet for how long there was no more.
func (p *fileProgress) at() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.base
}

func (p *fileProgress) quiet() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.grew)
}

// reads is in, which begins at an offset in the file.
func (p *fileProgress) reads(in io.Reader, at int64) io.Reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at > p.base {
		p.grew = time.Now()
	}
	p.base, p.bytes = at, at
	return fileReader{in, p}
}

type fileReader struct {
	io.Reader
	p *fileProgress
}

func (r fileReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	if r.p.bytes += int64(n); n > 0 {
		r.p.moved = time.Now()
	}
	return n, err
}

func (p *fileProgress) stop() {
	close(p.done)
	p.watch.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		_, _ = io.WriteString(p.err, "\r\x1b[K")
	}
}
