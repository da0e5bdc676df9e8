package child

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

const (
	// A file and the one before it: two times 10 MiB hold the last hours of a
	// chatty API server.
	maxLogFile = 10 << 20
	// One line of output becomes one log record of at most this size; the rest
	// goes into the next.
	maxLine = 16 << 10
)

// output takes what a child prints, over all of its lives.
type output struct {
	log *slog.Logger

	mu   sync.Mutex
	path string
	file *os.File // nil: no file
	size int64
}

func newOutput(log *slog.Logger, path string) (*output, error) {
	o := &output{log: log, path: path}
	if path == "" {
		return o, nil
	}
	return o, o.open()
}

func (o *output) open() error {
	f, err := os.OpenFile(o.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	o.file, o.size = f, info.Size()
	return nil
}

// Close closes the file.
func (o *output) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		return nil
	}
	err := o.file.Close()
	o.file = nil
	return err
}

// writeFile never fails: a full disk must not stop the child, which would
// block, or die of a broken pipe.
func (o *output) writeFile(line []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file == nil {
		return
	}
	if o.size+int64(len(line))+1 > maxLogFile {
		err := errors.Join(o.file.Close(), os.Rename(o.path, o.path+".1"))
		o.file = nil
		if err = errors.Join(err, o.open()); err != nil {
			o.log.Warn("log file not rotated; goes on without one", "file", o.path, "err", err)
			return
		}
	}
	n, _ := o.file.Write(append(line, '\n'))
	o.size += int64(n)
}

// stream returns a writer for one of the child's streams. It is used by one
// goroutine at a time.
func (o *output) stream(name string) *stream { return &stream{out: o, name: name} }

type stream struct {
	out  *output
	name string
	part []byte // a line without its end
}

func (s *stream) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		s.part = append(s.part, line...)
		if whole, ok := bytes.CutSuffix(s.part, []byte{'\n'}); ok {
			s.line(whole)
			s.part = s.part[:0]
		}
	}
	for len(s.part) > maxLine {
		s.line(s.part[:maxLine:maxLine])
		s.part = append(s.part[:0], s.part[maxLine:]...)
	}
	return len(p), nil
}

func (s *stream) line(line []byte) {
	s.out.writeFile(line)
	s.out.log.Debug("output", "stream", s.name, "line", string(line))
}

// flush passes on a last line that has no end.
func (s *stream) flush() {
	if len(s.part) > 0 {
		s.line(s.part)
		s.part = nil
	}
}
