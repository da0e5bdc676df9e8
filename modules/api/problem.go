package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// Problem is an error as RFC 9457 writes it, with a stable code for programs and
// what to do about it for people.
type Problem struct {
	Type      string         `json:"type" doc:"urn:multipaas:problem:CODE"`
	Title     string         `json:"title"`
	Status    int            `json:"status"`
	Detail    string         `json:"detail" doc:"What is wrong, a sentence"`
	Code      string         `json:"code" doc:"Stable; for programs" enum:"bad-request,unauthenticated,denied,not-found,method-not-allowed,timeout,conflict,in-use,limit,deleting,not-ready,precondition-failed,too-large,unsupported-media-type,invalid,throttled,internal,unavailable"`
	Remedy    string         `json:"remedy,omitempty" doc:"What to do about it"`
	RequestID string         `json:"requestId,omitempty" doc:"Finds the request in the server's log"`
	Errors    []ProblemField `json:"errors,omitempty" doc:"Each thing that is wrong in the request"`

	retryAfter time.Duration
	challenge  bool
}

// ProblemField is one thing that is wrong in a request.
type ProblemField struct {
	Location string `json:"location" example:"body.spec.machines"`
	Message  string `json:"message"`
}

// Error returns the sentence.
func (p *Problem) Error() string { return p.Detail }

// GetStatus is for huma.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is for huma.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders is for huma.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(max(p.retryAfter, time.Second).Seconds())))
	}
	if p.challenge {
		h.Set("WWW-Authenticate", `Bearer realm="multipaas"`)
	}
	return h
}

func newProblem(status int, code, detail, remedy string) *Problem {
	return &Problem{
		Type:   "urn:multipaas:problem:" + code,
		Title:  http.StatusText(status),
		Status: status,
		Detail: detail,
		Code:   code,
		Remedy: remedy,
	}
}

func invalid(location, message, remedy string) *Problem {
	return invalidFields(remedy, []ProblemField{{Location: location, Message: message}})
}

func invalidFields(remedy string, fields []ProblemField) *Problem {
	p := newProblem(http.StatusUnprocessableEntity, "invalid", "The request is not valid.", remedy)
	p.Errors = fields
	return p
}

func conflict(code, detail, remedy string) *Problem {
	return newProblem(http.StatusConflict, code, detail, remedy)
}

func missing(what, name string) *Problem {
	return newProblem(http.StatusNotFound, "not-found", fmt.Sprintf("There is no %s %q.", what, name), "Check the name.")
}

func deleting(what, name string) *Problem {
	return conflict("deleting", fmt.Sprintf("The %s %q is being deleted.", what, name), "Wait until it is gone, then try again.")
}

// problem makes of any error what the one who asked may read. What he may not
// goes to the log, under the id of the request.
func (a *API) problem(ctx context.Context, err error) *Problem {
	p := a.classify(ctx, err)
	p.RequestID = requestOf(ctx).id
	return p
}

func (a *API) classify(ctx context.Context, err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var no *access.Refusal
	if errors.As(err, &no) {
		return refused(no)
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return newProblem(http.StatusNotFound, "not-found", "There is no such thing.", "Check the name.")
	case errors.Is(err, store.ErrExists):
		return conflict("conflict", "There is one with this name already.", "Choose another name.")
	case errors.Is(err, store.ErrConflict):
		return conflict("conflict", "It was changed by somebody else at the same moment.",
			"Look at it again, then repeat what you did.")
	case errors.Is(err, store.ErrInvalidPage):
		return invalid("query.after", "not the beginning of a page", "Pass what the page before said in next, or leave it out.")
	case errors.Is(err, store.ErrInvalidKey):
		return newProblem(http.StatusNotFound, "not-found", "There is nothing with such a name.", "Check the name.")
	case errors.Is(err, store.ErrTooLarge):
		return newProblem(http.StatusRequestEntityTooLarge, "too-large", "This is too large to be stored.", "Make it smaller.")
	case errors.Is(err, store.ErrFull):
		return newProblem(http.StatusInsufficientStorage, "full", "The platform's datastore is full: nothing can be changed now.",
			"Ask the operator to make room on the server's disk; `multipaas status` says which.")
	case errors.Is(err, resource.ErrNotReady):
		p := conflict("not-ready", "The workspace does not answer yet.", "Wait until it is Ready; `mp ws list` shows it.")
		p.retryAfter = 2 * time.Second
		return p
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return newProblem(499, "timeout", "The request was given up.", "") // nobody reads this
	case errors.Is(err, context.DeadlineExceeded):
		p := newProblem(http.StatusServiceUnavailable, "unavailable", "The platform did not manage this in time.",
			"Try again; if it stays so, ask the operator to look at `multipaas status`.")
		p.retryAfter = 5 * time.Second
		a.log.Warn("request ran out of time", "request", requestOf(ctx).id, "err", err)
		return p
	}
	a.log.Error("request", "request", requestOf(ctx).id, "err", err)
	return newProblem(http.StatusInternalServerError, "internal", "Something went wrong inside the platform.",
		"Try again; if it stays so, give the operator the request id.")
}

func refused(no *access.Refusal) *Problem {
	status, code := http.StatusInternalServerError, "internal"
	switch {
	case errors.Is(no, access.ErrUnauthenticated):
		status, code = http.StatusUnauthorized, "unauthenticated"
	case errors.Is(no, access.ErrDenied):
		status, code = http.StatusForbidden, "denied"
	case errors.Is(no, access.ErrNotFound):
		status, code = http.StatusNotFound, "not-found"
	case errors.Is(no, access.ErrExists), errors.Is(no, access.ErrUsed), errors.Is(no, access.ErrExpired):
		status, code = http.StatusConflict, "conflict"
	case errors.Is(no, access.ErrInvalid):
		status, code = http.StatusUnprocessableEntity, "invalid"
	case errors.Is(no, access.ErrThrottled):
		status, code = http.StatusTooManyRequests, "throttled"
	}
	p := newProblem(status, code, no.Text, no.Remedy)
	p.retryAfter, p.challenge = no.RetryAfter, status == http.StatusUnauthorized
	return p
}

// transform replaces the errors that huma makes, for requests that are not as
// the OpenAPI document says.
func (a *API) transform(ctx huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	req := requestOf(ctx.Context())
	p := a.described(e, req)
	p.RequestID = req.id
	return p, nil
}

// described is e as we say it. Values from the request are not repeated: one of
// them may be a password.
func (a *API) described(e *huma.ErrorModel, req *request) *Problem {
	if e.Status == http.StatusInternalServerError && req.broken {
		return newProblem(http.StatusBadRequest, "bad-request", "The body of the request could not be read.",
			"Send all of it, in proper chunks or with its length.")
	}
	code, ok := map[int]string{
		http.StatusBadRequest:            "bad-request",
		http.StatusNotAcceptable:         "bad-request",
		http.StatusRequestTimeout:        "timeout",
		http.StatusRequestEntityTooLarge: "too-large",
		http.StatusUnsupportedMediaType:  "unsupported-media-type",
		http.StatusUnprocessableEntity:   "invalid",
	}[e.Status]
	if !ok {
		a.log.Error("request", "request", req.id, "err", e.Detail)
		return newProblem(e.Status, "internal", "Something went wrong inside the platform.", "Try again.")
	}
	detail := e.Detail
	if e.Status == http.StatusUnprocessableEntity || detail == "" || detail == "validation failed" {
		detail = "The request is not valid."
	}
	p := newProblem(e.Status, code, capital(detail), "Correct what is listed; /v1/openapi.json describes every request.")
	for _, d := range e.Errors[:min(len(e.Errors), 20)] { // a body can be wrong in thousands of places
		if d != nil {
			p.Errors = append(p.Errors, ProblemField{Location: short(d.Location), Message: short(d.Message)})
		}
	}
	return p
}

func capital(s string) string {
	s = strings.ToUpper(s[:1]) + s[1:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

func short(s string) string {
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// refuse answers where huma does not.
func (a *API) refuse(ctx context.Context, w http.ResponseWriter, err error) {
	p := a.problem(ctx, err)
	h := w.Header()
	maps.Copy(h, p.GetHeaders())
	h.Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // whoever asked has gone, else
}
