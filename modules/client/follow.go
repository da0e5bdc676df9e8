package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/multipaas/multipaas/modules/resource"
)

// roomGrace is how long a command waits for room that the platform doesn't have:
// a workspace that is just being deleted leaves within seconds. Whoever gives
// --timeout waits as long as that says.
const roomGrace = 30 * time.Second

// errNoRoom ends a wait for room.
var errNoRoom = errors.New("no room")

// follow shows the task's progress until it ends. It opens the stream again
// when it breaks, and goes on with the task that has replaced this one. A task that
// failed, the end of the time, room that has been missing for grace (0 is no limit)
// and Ctrl-C are errors; all but the first leave the platform working and say how
// to come back.
func (c *call) follow(id string, timeout, grace time.Duration) (*resource.Task, error) {
	r, err := c.remote()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancelCause(c.Context.Context)
	defer stop(nil)
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var last *resource.Task
	var patience *time.Timer // runs while there is no room
	p := newProgress(c.program)
	defer p.stop()
	for backoff := firstBackoff; ; backoff = min(2*backoff, 5*time.Second) {
		err := r.watchTask(ctx, id, func(t *resource.Task) {
			last, backoff = t, firstBackoff
			p.show(t)
			switch s := missing(t); {
			case s == nil || s.Reason != resource.NoCapacity:
				if patience != nil {
					patience.Stop()
					patience = nil
				}
			case patience == nil && grace > 0:
				patience = time.AfterFunc(grace, func() { stop(errNoRoom) })
			}
		})
		if errors.Is(err, errEnded) && last.Status.State == resource.TaskReplaced && last.Status.ReplacedBy != "" {
			id = last.Status.ReplacedBy // it does what is still wanted of this one
			continue
		}
		if errors.Is(err, errEnded) {
			return last, taskError(last)
		}
		prob, ok := errors.AsType[*Problem](err)
		if ok && prob.Status < http.StatusInternalServerError && prob.Status != http.StatusTooManyRequests {
			return last, err
		}
		if ctx.Err() == nil {
			p.lost(err)
		}
		select {
		case <-time.After(backoff):
			continue
		case <-ctx.Done():
		}
		if c.Context.Context.Err() != nil {
			return last, &failure{text: "detached from task " + id, remedy: c.comeBack(id), code: ExitInterrupted}
		}
		text := fmt.Sprintf("task %s has not ended within %v", id, timeout)
		if context.Cause(ctx) == errNoRoom {
			text = fmt.Sprintf("%s of %s waits", last.Spec.Operation, last.Spec.Target)
		}
		switch s := missing(last); {
		case s != nil:
			text += ": " + s.Message
		case err != nil && last == nil:
			text += ": " + err.Error()
		}
		return last, &failure{text: text, remedy: c.comeBack(id), code: ExitTimeout}
	}
}

// missing is the first step of a task that says what it waits for, or nil: what
// comes later often waits for that.
func missing(t *resource.Task) *resource.Condition {
	if t == nil {
		return nil
	}
	for i := range t.Status.Steps {
		if s := &t.Status.Steps[i]; s.Status == resource.False && s.Message != "" {
			return s
		}
	}
	return nil
}

func (c *call) comeBack(task string) string {
	return "the platform goes on; come back with '" + c.hint("tasks", "follow", task) + "'"
}

// hint is a command line for the user, with the name he called us by.
func (c *call) hint(words ...string) string {
	name := c.program.name
	if name == "multipaas token" {
		name = "multipaas mp"
	}
	return name + " " + strings.Join(words, " ")
}

// taskError is the error in a task that has failed, or nil.
func taskError(t *resource.Task) error {
	if t.Status.State != resource.TaskFailed {
		return nil
	}
	text, message := fmt.Sprintf("%s of %s failed", t.Spec.Operation, t.Spec.Target), t.Status.Message
	for _, s := range t.Status.Steps {
		if s.Status == resource.False && s.Final {
			message = cmp.Or(message, s.Message)
		}
	}
	if message != "" {
		text += ": " + message
	}
	return failf("see the steps with 'mp tasks show "+t.Name+"'", "%s", text)
}

// settle follows an accepted task unless the user does not want to wait, and
// then calls done to show what has become of it. now is shown when not waiting.
func (c *call) settle(task string, now func() error, done func() error) error {
	if task == "" {
		return done()
	}
	if c.Bool("no-wait") || !c.Bool("wait") {
		if err := now(); err != nil {
			return err
		}
		c.note("The platform is working on it; follow it with '%s'.", c.hint("tasks", "follow", task))
		return nil
	}
	grace := c.roomGrace
	if c.IsSet("timeout") {
		grace = 0
	}
	if _, err := c.follow(task, c.Duration("timeout"), grace); err != nil {
		return err
	}
	return done()
}

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
		if task.Ended() {
			return errEnded
		}
		return nil
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
