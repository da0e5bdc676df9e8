package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"unicode"
)

// FuzzReadEvents reads any bytes as a stream of events: bounded, in pieces as at
// once, and what was read reads the same when it is sent on.
func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("event: task\ndata: {}\n\n"))
	f.Add([]byte(": comment\r\ndata\ndata:x\r\n\r\nid: 1\n\n"))
	f.Add([]byte("data: a\r\rdata: b\n\nevent:\ndata\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		type event struct{ name, data string }
		read := func(r io.Reader) (got []event) {
			_ = readEvents(r, func(name string, data []byte) error {
				if data == nil || len(data) > maxEventBytes {
					t.Errorf("event %q with %d bytes", name, len(data))
				}
				if strings.Contains(name, "\n") {
					t.Errorf("event %q", name)
				}
				got = append(got, event{name, string(data)})
				return nil
			})
			return got
		}
		got := read(bytes.NewReader(in))
		if pieces := read(&slow{in}); fmt.Sprint(pieces) != fmt.Sprint(got) {
			t.Errorf("in pieces: %q, at once: %q", pieces, got)
		}
		var again bytes.Buffer
		for _, e := range got {
			fmt.Fprintf(&again, "event: %s\ndata: %s\n\n", e.name, strings.ReplaceAll(e.data, "\n", "\ndata: "))
		}
		if strings.Contains(again.String(), "\r") {
			return // an end of a line, to who reads it again
		}
		if back := read(&again); fmt.Sprint(back) != fmt.Sprint(got) {
			t.Errorf("sent on, %q becomes %q", got, back)
		}
	})
}

// slow gives one byte at a time.
type slow struct{ left []byte }

func (s *slow) Read(p []byte) (int, error) {
	if len(s.left) == 0 {
		return 0, io.EOF
	}
	p[0], s.left = s.left[0], s.left[1:]
	return 1, nil
}

// FuzzAnswers has the server answer a command with anything: the command ends
// with a code of the table, and nothing that it prints for people steers their
// terminal.
func FuzzAnswers(f *testing.F) {
	type answer struct {
		status      int
		contentType string
		body        []byte
	}
	var say atomic.Pointer[answer]
	serve(f, func(w http.ResponseWriter, r *http.Request) {
		a := say.Load()
		w.Header().Set("Content-Type", a.contentType)
		w.WriteHeader(a.status)
		_, _ = w.Write(a.body)
	})
	commands := [][]string{{"accounts"}, {"ws", "show"}, {"ws"}, {"tasks", "follow", "t1"}, {"apps"}, {"nodes"}, {"images"}, {"ns"}, {"tasks", "show", "t1"}, {"ws", "show", "-o", "json"}}
	for i := range commands {
		f.Add(byte(i), 200, "application/json", []byte(`{"items":[{"name":"a\u001b[2J","status":{"phase":"Ready","conditions":[{"type":"x","status":"True","message":"\u0007"}]}}]}`))
		f.Add(byte(i), 200, "application/json", []byte(`{"name":"shop","spec":{"machines":-1,"machineSize":{"memoryBytes":-9223372036854775808}},"status":{"phase":"\u009b1m"}}`))
	}
	f.Add(byte(0), 409, "application/problem+json", []byte(`{"detail":"It is so.\u001b[2J","remedy":"\u0000","errors":[{"location":"body.","message":"\u202e"}]}`))
	f.Add(byte(3), 200, "text/event-stream", []byte("event: task\ndata: {\"name\":\"t1\",\"status\":{\"state\":\"done\",\"steps\":[{\"type\":\"\\u001b\"}]}}\n\n"))
	f.Add(byte(0), 200, "application/json", []byte(`{"items":[],"next":"x"}`))
	f.Add(byte(0), 302, "text/html", []byte("<html>"))
	f.Fuzz(func(t *testing.T, which byte, status int, contentType string, body []byte) {
		if status < 200 || status > 599 || strings.ContainsAny(contentType, "\r\n") {
			return
		}
		args := commands[int(which)%len(commands)]
		if args[0] == "tasks" && args[1] == "follow" && (status != 200 || !ends(body)) {
			return // it rightly comes back for more, for minutes
		}
		if bytes.Contains(body, []byte("next")) && len(body) > 40 {
			return // pages for ever
		}
		say.Store(&answer{status, contentType, body})
		var out, errw strings.Builder
		code := Main(t.Context(), args, nil, &out, &errw)
		if code < 0 || code > ExitDenied {
			t.Errorf("mp %v: code %d", args, code)
		}
		if status >= 400 && code == ExitOK {
			t.Errorf("mp %v is content with status %d", args, status)
		}
		if args[len(args)-1] == "json" {
			if code == ExitOK && !json.Valid([]byte(out.String())) {
				t.Errorf("mp %v printed no JSON: %q", args, out.String())
			}
			return
		}
		for _, text := range []string{out.String(), errw.String()} {
			if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("mp %v printed %q", args, text)
			}
		}
	})
}

// ends says that the stream tells of the end of its task.
func ends(body []byte) (end bool) {
	_ = readEvents(bytes.NewReader(body), func(event string, data []byte) error {
		var v struct {
			Status struct{ State string }
		}
		end = end || event == "task" && json.Unmarshal(data, &v) == nil && (v.Status.State == "done" || v.Status.State == "failed")
		return nil
	})
	return end
}
