package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"

	"github.com/multipaas/multipaas/modules/wire"
)

// SendHost has volumes that others wait for, other hosts or tenants. Implemented by modules/volume.
type SendHost interface {
	// Send writes a volume that is put away to w, from an offset on. It blocks as long as w does.
	Send(ctx context.Context, uid string, from int64, w io.Writer) error
	// Export writes a snapshot to w as a file, from an offset on, for some minutes at most. Nothing: that was all. An error that
	// comes again whenever that is asked for has a method Lasting that says so.
	Export(ctx context.Context, v wire.Volume, f wire.File, w io.Writer) error
	// Import makes a volume of a file that fetch asks for, from an offset on, for some minutes at most.
	Import(ctx context.Context, v wire.Volume, fetch func(ctx context.Context, from int64) (io.ReadCloser, error)) error
}

// Sends drives what is sent to other hosts, and to tenants and from them, through the server. An item is one try: who
// waits asks again,
// and the server makes another of it. A try ends after stepTimeout at the latest, so that nobody holds a worker
// for long, and the next goes on where it ended.
func Sends(log *slog.Logger, client *Client, host SendHost) Driver {
	return &sends{log: log, client: client, host: host, tried: map[string]bool{}}
}

type sends struct {
	log    *slog.Logger
	client *Client
	host   SendHost

	mu    sync.Mutex
	tried map[string]bool // of the last state
}

// try has do done once. Who waits for that asks again, and the server makes another item of it.
func (d *sends) try(id string, do func() error, what string, args ...any) error {
	d.mu.Lock()
	again := d.tried[id]
	d.tried[id] = true
	d.mu.Unlock()
	if again {
		return nil
	}
	if err := do(); err != nil {
		d.log.Info(what, append(args, "err", err)...)
	}
	return nil
}

// forget drops what no state names any more.
func (d *sends) forget(items []Item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.tried, func(id string, _ bool) bool {
		return !slices.ContainsFunc(items, func(i Item) bool { return i.Key == id })
	})
}

func (*sends) Kind() string { return "send" }

func (d *sends) Wanted(s *wire.State) (items []Item) {
	for _, one := range s.Sends {
		items = append(items, Item{Key: one.ID, Workspace: one.NetworkID,
			Ensure: func(ctx context.Context) error {
				return d.try(one.ID, func() error {
					return d.send(ctx, one.ID, func(ctx context.Context, w io.Writer) error {
						return d.host.Send(ctx, one.UID, one.From, w)
					})
				}, "a volume was not sent to the end", "uid", one.UID, "from", one.From)
			}})
	}
	for _, one := range s.Files {
		i := slices.IndexFunc(s.Volumes, func(v wire.Volume) bool { return v.UID == one.UID && !v.Remove && !v.Keep })
		if i < 0 {
			continue
		}
		items = append(items, Item{Key: one.ID, Workspace: one.NetworkID,
			Ensure: func(ctx context.Context) error {
				return d.try(one.ID, func() error { return d.file(ctx, s.Volumes[i], one) },
					"a volume's file was not read or written to the end", "uid", one.UID, "import", one.Import)
			}})
	}
	d.forget(items)
	return items
}

func (d *sends) file(ctx context.Context, v wire.Volume, one wire.File) error {
	if one.Import {
		asked := false
		err := d.host.Import(ctx, v, func(ctx context.Context, from int64) (io.ReadCloser, error) {
			asked = true
			return d.client.FetchFile(ctx, one.ID, from)
		})
		if err != nil && !asked { // who sends it waits to be asked
			err = errors.Join(err, d.client.send(ctx, failed(one.ID, err), nil))
		}
		return err
	}
	return d.send(ctx, one.ID, func(ctx context.Context, w io.Writer) error { return d.host.Export(ctx, v, one, w) })
}

// send sends what do writes. Before something is written, what is wrong goes to who waits instead.
func (d *sends) send(ctx context.Context, id string, do func(context.Context, io.Writer) error) error {
	read, write := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		err := do(ctx, write)
		_ = write.CloseWithError(err) // nil is the end
		sent <- err
	}()
	body := bufio.NewReaderSize(read, 64<<10)
	var err error
	if _, wrong := body.Peek(1); wrong != nil && !errors.Is(wrong, io.EOF) {
		err = d.client.send(ctx, failed(id, wrong), nil)
	} else {
		err = d.client.send(ctx, url.Values{"id": {id}}, body)
	}
	cancel()
	_ = read.Close() // whoever writes still learns that nobody reads
	return errors.Join(<-sent, err)
}

func (*sends) Drop(context.Context, string) error { return nil }

func (*sends) List(context.Context) ([]string, error) { return nil, nil }

func (*sends) Report(context.Context, *wire.State, func(string) Progress, *Report) (fallen []string, err error) {
	return nil, nil
}

// failed asks to tell who waits why nothing comes.
func failed(id string, err error) url.Values {
	q := url.Values{"id": {id}, "failed": {cut(err.Error(), maxText)}}
	if is, ok := errors.AsType[interface {
		error
		Lasting() bool
	}](err); ok && is.Lasting() {
		q.Set("lasting", "true")
	}
	return q
}

// send posts a stream that somebody waits for.
func (c *Client) send(ctx context.Context, q url.Values, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.server+wire.SendPath+"?"+q.Encode(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return readAnswer(res, nil)
}

// Fetch asks for a volume that this host shall have, from an offset on: a stream, as the host that has it
// sends it. It blocks until that one has begun. The caller closes the stream.
func (c *Client) Fetch(ctx context.Context, v wire.Volume, from int64) (io.ReadCloser, error) {
	return c.fetch(ctx, "volume "+v.Key, from, url.Values{"volume": {v.Key}, "uid": {v.UID}})
}

// FetchFile is Fetch for what a tenant sends: see wire.File.
func (c *Client) FetchFile(ctx context.Context, id string, from int64) (io.ReadCloser, error) {
	return c.fetch(ctx, "a file", from, url.Values{"id": {id}})
}

func (c *Client) fetch(ctx context.Context, what string, from int64, q url.Values) (io.ReadCloser, error) {
	q.Set("from", strconv.FormatInt(from, 10))
	res, err := c.do(ctx, http.MethodGet, wire.FetchPath+"?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask for %s: %w", what, err)
	}
	return res.Body, nil
}
