package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"

	"github.com/multipaas/multipaas/modules/wire"
)

// SendHost has volumes that other hosts wait for. Implemented by modules/volume.
type SendHost interface {
	// Send writes a volume that is put away to w, from an offset on. It blocks as long as w does.
	Send(ctx context.Context, uid string, from int64, w io.Writer) error
}

// Sends drives what is sent to other hosts, through the server. An item is one try: who waits asks again,
// and the server makes another of it. A try ends after stepTimeout at the latest, so that nobody holds a worker
// for long, and the next goes on where it ended.
func Sends(log *slog.Logger, client *Client, host SendHost) Driver { return sends{log, client, host} }

type sends struct {
	log    *slog.Logger
	client *Client
	host   SendHost
}

func (sends) Kind() string { return "send" }

func (d sends) Wanted(s *wire.State) (items []Item) {
	for _, one := range s.Sends {
		items = append(items, Item{Key: one.ID, Workspace: one.NetworkID,
			Ensure: func(ctx context.Context) error {
				if err := d.send(ctx, one); err != nil {
					d.log.Info("a volume was not sent to the end", "uid", one.UID, "from", one.From, "err", err)
				}
				return nil // see Sends
			}})
	}
	return items
}

func (d sends) send(ctx context.Context, one wire.Send) error {
	read, write := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		err := d.host.Send(ctx, one.UID, one.From, write)
		_ = write.CloseWithError(err) // nil is the end
		sent <- err
	}()
	err := d.client.send(ctx, one.ID, read)
	cancel()
	_ = read.Close() // whoever writes still learns that nobody reads
	return errors.Join(<-sent, err)
}

func (sends) Drop(context.Context, string) error { return nil }

func (sends) List(context.Context) ([]string, error) { return nil, nil }

func (sends) Report(context.Context, *wire.State, func(string) Progress, *Report) (fallen []string, err error) {
	return nil, nil
}

// send posts a stream that another host waits for.
func (c *Client) send(ctx context.Context, id string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.server+wire.SendPath+"?id="+url.QueryEscape(id), body)
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
	q := url.Values{"volume": {v.Key}, "uid": {v.UID}, "from": {strconv.FormatInt(from, 10)}}
	res, err := c.do(ctx, http.MethodGet, wire.FetchPath+"?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask for volume %s: %w", v.Key, err)
	}
	return res.Body, nil
}
