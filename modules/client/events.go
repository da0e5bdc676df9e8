package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// maxEventBytes bounds one event; a task with all its steps is a few KB.
const maxEventBytes = 1 << 20

// silence is how long a stream may be quiet before it is opened anew: the
// server sends a comment well within it. A connection that died without a word,
// as when a firewall forgot it, would else be waited on for ever.
const silence = 60 * time.Second

// readEvents calls fn for each server-sent event in r until r ends or fn
// returns an error. Comments and events without data are left out.
func readEvents(r io.Reader, fn func(event string, data []byte) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxEventBytes)
	event := "message"
	var data []byte
	for lines.Scan() {
		line := bytes.TrimSuffix(lines.Bytes(), []byte("\r"))
		if len(line) == 0 {
			if data != nil {
				if err := fn(event, data); err != nil {
					return err
				}
			}
			event, data = "message", nil
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			event = string(value)
		case "data":
			if data != nil {
				data = append(data, '\n')
			}
			if len(data)+len(value) > maxEventBytes {
				return fmt.Errorf("read events: one is larger than %d bytes", maxEventBytes)
			}
			data = append(data, value...)
			if data == nil {
				data = []byte{}
			}
		}
	}
	return lines.Err()
}

// errEnded ends the stream of a task that is done or has failed.
var errEnded = errors.New("task ended")

// watchTask calls show for every state of the task that the server tells of,
// once, until the stream breaks (nil) or the task has ended (errEnded).
func (r *remote) watchTask(ctx context.Context, id string, show func(*resource.Task)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := r.send(ctx, http.MethodGet, apiPath("tasks", id, "events"), nil, []string{"Accept", "text/event-stream"})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, err := r.read(resp)
		return err
	}
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	body := readerFunc(func(b []byte) (int, error) {
		n, err := resp.Body.Read(b)
		watchdog.Reset(silence)
		return n, err
	})
	return readEvents(body, func(event string, data []byte) error {
		if event != "task" {
			return nil
		}
		task := &resource.Task{}
		if err := json.Unmarshal(data, task); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		show(task)
		if ended(task) {
			return errEnded
		}
		return nil
	})
}

func ended(t *resource.Task) bool {
	return t.Status.State == resource.TaskDone || t.Status.State == resource.TaskFailed
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
