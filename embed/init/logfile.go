package main

import (
	"os"
	"sync"
)

// logFile is a file that is renamed to NAME.1 and begun anew before it grows
// over its bound, so a service's output takes at most twice the bound.
// It is safe for concurrent use.
type logFile struct {
	path     string
	maxBytes int64

	mu        sync.Mutex
	file      *os.File
	sizeBytes int64
}

func openLogFile(path string, maxBytes int64) (*logFile, error) {
	l := &logFile{path: path, maxBytes: maxBytes}
	return l, l.open(os.O_APPEND)
}

func (l *logFile) open(flag int) error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|flag, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.sizeBytes = f, info.Size()
	return nil
}

// Write never fails for want of a log: a service must not be stopped by a
// full disk. It says that all was written, and drops what could not be.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0; {
		if l.sizeBytes >= l.maxBytes {
			l.rotate()
		}
		part := rest[:min(int64(len(rest)), max(l.maxBytes-l.sizeBytes, 1))]
		if _, err := l.file.Write(part); err != nil {
			return len(p), nil
		}
		l.sizeBytes += int64(len(part))
		rest = rest[len(part):]
	}
	return len(p), nil
}

// rotate keeps writing where it is when a new file can't be had, from its
// beginning: the bound holds, the oldest lines are lost.
func (l *logFile) rotate() {
	old := l.file
	if err := os.Rename(l.path, l.path+".1"); err == nil {
		if err := l.open(os.O_TRUNC); err == nil {
			old.Close()
			return
		}
	}
	l.sizeBytes = 0
	if old.Truncate(0) == nil {
		old.Seek(0, 0)
	}
}
