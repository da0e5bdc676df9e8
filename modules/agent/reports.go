package agent

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// Look has the agent look after its machines now: one has ended, say. It does
// not block.
func (a *Agent) Look() { wake(a.tell) }

// report tells the server what is, all that is news since the last time at once. When it
// was woken and there is no news the server hears nothing: half of what wakes it changes
// nothing that is told, and what a node may send is kept for news, which would wait.
func (a *Agent) report(ctx context.Context, woken bool) error {
	rep, text, err := a.see(ctx)
	a.mu.Lock()
	known := string(text) == string(a.said)
	a.mu.Unlock()
	if err != nil || woken && known {
		return err
	}
	if !a.pace.TryAccept() {
		// It does not wait here: what is seen of items meanwhile is told at a pace of its own.
		a.forget()
		a.later.Reset(wire.ReportPace)
		return nil
	}
	a.mu.Lock()
	a.said = text
	a.mu.Unlock()
	var answer wire.ReportAnswer
	err = a.cfg.Client.call(ctx, wire.ReportPath, rep, &answer)
	if err != nil {
		a.forget()
	} else {
		select {
		case a.show <- answer.Show:
		default: // it is showing some: what is left is asked for again
		}
	}
	if answer.Anew {
		a.items.anew()
		wake(a.tellItems)
	}
	a.obey(ctx, err, a.tell)
	return err
}

// reportItems tells the server of items what it has yet to hear, by pages. It is apart from
// report so that a sign of life waits for none of them.
func (a *Agent) reportItems(ctx context.Context, _ bool) error {
	for {
		if page, _ := a.items.page(); page.Items == nil {
			return nil
		}
		if err := a.pages.Wait(ctx); err != nil {
			return nil // ctx is done
		}
		page, taken := a.items.page()
		if page.Items == nil {
			return nil
		}
		if err := a.cfg.Client.call(ctx, wire.ItemsPath, page, nil); err != nil {
			a.obey(ctx, err, a.tellItems)
			return err
		}
		taken()
	}
}

// obey waits as long as a busy server has asked for, and then wakes who was refused.
func (a *Agent) obey(ctx context.Context, err error, again chan struct{}) {
	busy, ok := errors.AsType[busy](err)
	if !ok {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(busy.after):
	}
	wake(again)
}

// forget has the next report sent whether it is news or not.
func (a *Agent) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = nil
}

// see looks at what is on this host, for a report, and has made again what has fallen over. It
// hands items over to be told.
func (a *Agent) see(ctx context.Context) (rep wire.Report, text []byte, err error) {
	r := Report{Report: a.cfg.Facts(), Items: map[Ref]any{}}
	a.mu.Lock()
	p := a.plan
	if a.live {
		r.Holds = []string{} // what a state from disk wants may be made yet
	}
	a.mu.Unlock()
	if p.state != nil {
		for _, d := range a.cfg.Drivers {
			kind := d.Kind()
			fallen, err := d.Report(ctx, p.state, func(key string) Progress { return a.progress(p, Ref{kind, key}) }, &r)
			if err != nil {
				return rep, nil, err
			}
			for _, key := range fallen {
				// Until it is ensured it isn't as any state wants it: what needs it
				// waits, and that it is back is news.
				ref := Ref{kind, key}
				a.note(ref, func(d *Progress) { d.serial = 0 })
				a.add(ref)
			}
		}
		r.Problems = append(r.Problems, a.leftovers(p)...)
		news, err := a.items.set(r.Items)
		if err != nil {
			return rep, nil, err
		}
		if news {
			wake(a.tellItems)
		}
	}
	shorten(&r.Report)
	text, err = json.Marshal(r.Report)
	return r.Report, text, err
}

// A server keeps maxText bytes of a text. All texts of a report's machines and networks are
// allTexts together: with a thousand machines, of 200 bytes each without them, it is half of what
// a server takes.
const (
	maxText  = 1024
	minText  = 64
	allTexts = 256 << 10
)

// share is how long each of n texts may be that are so long together.
func share(all, n int) int { return min(max(all/max(n, 1), minText), maxText) }

// cut makes a text so many bytes long at most.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const more = "..."
	return strings.ToValidUTF8(text[:limit-len(more)], "") + more
}

// shorten bounds the texts of a report.
func shorten(rep *wire.Report) {
	limit := share(allTexts, len(rep.Machines)+len(rep.Networks))
	for i := range rep.Machines {
		rep.Machines[i].Message = cut(rep.Machines[i].Message, limit)
	}
	for i := range rep.Networks {
		rep.Networks[i].Message = cut(rep.Networks[i].Message, limit)
	}
	for i := range rep.Problems {
		rep.Problems[i].Message = cut(rep.Problems[i].Message, maxText)
	}
}

// leftovers says what nobody wants and can't be taken away.
func (a *Agent) leftovers(p *plan) []resource.Condition {
	a.mu.Lock()
	defer a.mu.Unlock()
	var texts []string
	for ref, d := range a.done {
		if _, wanted := p.items[ref]; !wanted && d.Problem != "" {
			texts = append(texts, ref.String()+": "+d.Problem)
		}
	}
	if texts == nil {
		return nil
	}
	slices.Sort(texts)
	return []resource.Condition{{
		Type:    "CleanedUp",
		Status:  resource.False,
		Reason:  "NotRemoved",
		Message: strings.Join(texts, "; "),
	}}
}
