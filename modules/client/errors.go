package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
)

// The exit codes, the same for every command. ExitUsage also covers values
// that the server refuses as invalid; ExitInterrupted is a shell's code for
// Ctrl-C.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitConflict    = 4
	ExitTimeout     = 5
	ExitDenied      = 6
	ExitInterrupted = 130
)

// Problem is an error of the API, as RFC 9457 writes it.
type Problem struct {
	Type   string `json:"type,omitempty"`
	Title  string `json:"title,omitempty"`
	Status int    `json:"status,omitempty"`
	Detail string `json:"detail,omitempty"`
	Code   string `json:"code,omitempty"`
	Remedy string `json:"remedy,omitempty"`
	// RequestID finds the request in the server's log.
	RequestID string `json:"requestId,omitempty"`
	Errors    []struct {
		Message  string `json:"message,omitempty"`
		Location string `json:"location,omitempty"`
	} `json:"errors,omitempty"`
}

// Error is the sentence for the user.
func (p *Problem) Error() string {
	text := cmp.Or(p.Detail, p.Title, fmt.Sprintf("the server answered %d %s", p.Status, http.StatusText(p.Status)))
	for _, e := range p.Errors {
		// A location is "body.spec.machines"; the user did not write the body.
		where := strings.TrimPrefix(e.Location, "body.")
		if where != "" {
			where += ": "
		}
		text += "\n    " + where + e.Message
	}
	if p.Status >= http.StatusInternalServerError && p.RequestID != "" {
		text += " (request " + p.RequestID + ")"
	}
	return text
}

// exitCode maps the status of an answer to an exit code.
func (p *Problem) exitCode() int {
	switch p.Status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return ExitUsage
	case http.StatusNotFound, http.StatusGone:
		return ExitNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return ExitConflict
	case http.StatusUnauthorized, http.StatusForbidden:
		return ExitDenied
	}
	return ExitFailed
}

// failure is an error that knows what to do about it and its exit code.
type failure struct {
	text   string
	remedy string
	code   int
	cause  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.cause }

func usagef(remedy, format string, args ...any) error {
	return &failure{text: fmt.Sprintf(format, args...), remedy: remedy, code: ExitUsage}
}

func failf(remedy, format string, args ...any) error {
	return &failure{text: fmt.Sprintf(format, args...), remedy: remedy, code: ExitFailed}
}

// errDryRun ends a command whose request was shown instead of sent.
var errDryRun = errors.New("dry run")

// report writes err for the user and returns its exit code.
func (p *program) report(err error) int {
	if err == nil || errors.Is(err, errDryRun) || errors.Is(err, syscall.EPIPE) {
		return ExitOK // EPIPE: whoever read our output has seen enough
	}
	text, remedy, code := p.explain(err)
	fmt.Fprintf(p.err, "mp: %s\n", printableLines(text))
	if remedy != "" {
		fmt.Fprintf(p.err, "  %s\n", printableLines(remedy))
	}
	return code
}

// explain finds the sentence, the remedy and the exit code of err.
func (p *program) explain(err error) (text, remedy string, code int) {
	if fail, ok := errors.AsType[*failure](err); ok {
		return fail.text, fail.remedy, fail.code
	}
	if prob, ok := errors.AsType[*Problem](err); ok {
		remedy = prob.Remedy
		if remedy == "" && prob.Status == http.StatusUnauthorized {
			remedy = "log in with 'mp login'"
		}
		return prob.Error(), remedy, prob.exitCode()
	}
	code = ExitFailed
	netError, _ := errors.AsType[net.Error](err)
	switch {
	case is[x509.UnknownAuthorityError](err):
		remedy = "the certificate is not from the authority that 'mp init' pinned: if the platform was set up anew, run 'mp init' again with its CA file"
	case is[x509.HostnameError](err):
		remedy = "use a name or address that the server's certificate holds, or add this one to the server's configuration"
	case is[x509.CertificateInvalidError](err):
		remedy = "check the clocks of this machine and of the server"
	case is[tls.RecordHeaderError](err):
		remedy = "what answers there does not speak TLS: is the port right? The API's is 7443"
	case is[*net.DNSError](err):
		remedy = "check the server's name with 'mp session', or set another with 'mp init'"
	case errors.Is(err, syscall.ECONNREFUSED):
		remedy = "nothing listens there: check that the server runs ('multipaas status' on it) and that 'mp session' shows its address"
	case errors.Is(err, context.DeadlineExceeded), netError != nil && netError.Timeout():
		remedy, code = "the server did not answer in time: try again, or look at 'multipaas status' on it", ExitTimeout
	}
	return err.Error(), remedy, code
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
