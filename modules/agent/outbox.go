package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/multipaas/multipaas/modules/wire"
)

// Report is what drivers see in a look.
type Report struct {
	wire.Report
	// Items are what is seen of things of which there may be very many: each as wire.Item says
	// of its kind, under the driver's kind and the thing's UID. A text in one is cut (see cut).
	Items map[Ref]any
}

// anewEvery is how often all items are told though nothing has changed: what a server could not
// place, since it had not heard of the thing itself yet say, is wrong for no longer. A thousand
// volumes are 300 KB, of which a server writes nothing.
const anewEvery = time.Minute

// outbox is what the server has to hear of items. It is safe for concurrent use.
type outbox struct {
	mu    sync.Mutex
	now   map[Ref][]byte // what there is to say
	taken map[Ref][]byte // what the server has taken down; replaced when it shall hear all again
	since time.Time      // when it was replaced
}

// set makes items what there is to say. news is whether the server has yet to hear some of it.
func (o *outbox) set(items map[Ref]any) (news bool, err error) {
	now := make(map[Ref][]byte, len(items))
	for ref, item := range items {
		if now[ref], err = json.Marshal(item); err != nil {
			return false, fmt.Errorf("what is seen of %s: %w", ref, err)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.now = now; time.Since(o.since) >= anewEvery {
		o.forget()
	}
	for ref := range o.taken {
		if _, ok := now[ref]; !ok {
			delete(o.taken, ref) // no state has it
		}
	}
	for ref, text := range now {
		if !bytes.Equal(o.taken[ref], text) {
			return true, nil
		}
	}
	return false, nil
}

// page is some of what the server has yet to hear, and what to call once it has taken it down.
func (o *outbox) page() (page wire.Items, taken func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	sent, size := map[Ref][]byte{}, 0
	for ref, text := range o.now {
		if bytes.Equal(o.taken[ref], text) {
			continue
		}
		if len(sent) == wire.MaxPageItems || len(sent) > 0 && size+len(text) > wire.MaxPageBytes {
			break
		}
		size += len(text)
		sent[ref] = text
		page.Items = append(page.Items, wire.Item{Kind: ref.Kind, Report: text})
	}
	to := o.taken // if all shall be told again meanwhile, these too
	return page, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for ref, text := range sent {
			to[ref] = text
		}
	}
}

// anew has all of it told again.
func (o *outbox) anew() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forget()
}

func (o *outbox) forget() { o.taken, o.since = map[Ref][]byte{}, time.Now() }
