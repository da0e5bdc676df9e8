package volume

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/diskimage"
)

// Errors of this package's calls, and messages of its reports, are read by the tenants whose
// volumes they are about: no path of the host is in them, nor what a program of the host said.

// operators is where the rest is.
const operators = "its host's operator finds more in the log there"

const missing = "it was there before, and is missing: it is not made anew. Its host's operator may have it; " +
	"if not, it can be deleted"

const poolTrouble = "the disk with volumes of its host is not there, or does not answer: " +
	"the host's operator finds more in its status"

const poolFull = "the disk with volumes of its host is full"

// maxTold bounds what is remembered of what was logged. After that all of it is told anew.
const maxTold = 1000

// said is an error that tells tenants so much; the rest, with the host's paths, is the log's, once.
func (h *Host) said(text string, err error) error {
	h.mu.Lock()
	told := h.told[err.Error()]
	if len(h.told) >= maxTold {
		clear(h.told)
	}
	h.told[err.Error()] = true
	h.mu.Unlock()
	if !told {
		h.cfg.Log.Warn(text, "err", err)
	}
	return saidError{text, err}
}

// saidf is an error with nothing more to it.
func saidf(format string, args ...any) error { return saidError{text: fmt.Sprintf(format, args...)} }

// lasting is an error, made by saidf, that comes again however often the same is tried.
type lasting struct{ error }

func (lasting) Lasting() bool   { return true }
func (e lasting) Unwrap() error { return e.error }

// outward is an error as tenants may read it, with what was to be done.
func (h *Host) outward(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, h.words("its host can't do it", err))
}

// words is an error as tenants may read it: if nobody here has put it in words for them, text.
func (h *Host) words(text string, err error) error {
	var said saidError
	var last lasting
	switch {
	case errors.As(err, &last):
		return last
	case errors.As(err, &said):
		return said
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return saidError{"it takes too long; it is tried again", err}
	case errors.Is(err, diskimage.ErrNoEncryption):
		text = "it is encrypted, and the kernel of its host can't encrypt disks"
	case errors.Is(err, diskimage.ErrNoLoop): // often ENOSPC, which is not of the disk then
		text = "its host has as many disks mounted as it can, and it is tried again"
	case errors.Is(err, unix.ENOSPC):
		text = poolFull
	}
	return h.said(text+": "+operators, err)
}

type saidError struct {
	text string
	err  error
}

func (e saidError) Error() string { return e.text }
func (e saidError) Unwrap() error { return e.err }
