package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// wire is a connection to QEMU (QMP) or to the agent in a guest (QGA). Both
// take a JSON object a line and answer with one; QEMU tells of events between.
type wire struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Scanner
	id   int
}

// maxAnswer bounds a line: the agent sends the output of a command in one.
const maxAnswer = 64 << 20

// dial connects to a socket that QEMU has made.
func dial(socket string) (*wire, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	in := bufio.NewScanner(conn)
	in.Buffer(make([]byte, 0, 64<<10), maxAnswer)
	return &wire{conn: conn, in: in}, nil
}

func (w *wire) close() { _ = w.conn.Close() }

// refused is an error that the other side has answered.
type refused struct {
	Class string `json:"class"`
	Text  string `json:"desc"`
}

func (r *refused) Error() string { return r.Text }

// call sends a command and decodes what is returned into out, unless that is
// nil. It gives up after patience, and then the wire is of no more use.
func (w *wire) call(patience time.Duration, command string, arguments, out any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	w.id++
	request := map[string]any{"execute": command, "id": w.id}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(w.conn).Encode(request); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for w.in.Scan() {
		var answer struct {
			ID     int             `json:"id"`
			Return json.RawMessage `json:"return"`
			Error  *refused        `json:"error"`
		}
		// Lines that are no answer to this: QEMU's greeting and events.
		if err := json.Unmarshal(w.in.Bytes(), &answer); err != nil || answer.ID != w.id {
			continue
		}
		if answer.Error != nil {
			return fmt.Errorf("%s: %w", command, answer.Error)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(answer.Return, out)
	}
	if err := w.in.Err(); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return fmt.Errorf("%s: %w", command, errors.New("the other side has hung up"))
}
