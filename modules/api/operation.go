package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

const (
	// maxBody bounds a request's body: an app with 32 KiB of environment is the
	// largest there is.
	maxBody = 128 << 10
	// bodyTimeout is how long a client may take to send it.
	bodyTimeout = 10 * time.Second
)

// operation is one row of the API.
type operation struct {
	id      access.Operation
	method  string
	path    string
	summary string
	status  int           // of success; 0 is 200, or 204 without a body
	names   []*huma.Param // those in the path, where the request's type does not say so
}

// op is an operation at a route, which is METHOD PATH.
func op(id access.Operation, route, summary string) operation {
	method, path, _ := strings.Cut(route, " ")
	return operation{id: id, method: method, path: path, summary: summary}
}

// answers is o with the status that success has.
func (o operation) answers(status int) operation {
	o.status = status
	return o
}

// AccountPath names an account.
type AccountPath struct {
	Account string `path:"account" maxLength:"57" example:"acme"`
}

// OrganizationPath names an organization.
type OrganizationPath struct {
	AccountPath
	Organization string `path:"organization" maxLength:"57" example:"web"`
}

// WorkspacePath names a workspace.
type WorkspacePath struct {
	OrganizationPath
	Workspace string `path:"workspace" maxLength:"57" example:"shop"`
}

func (p OrganizationPath) key() string { return p.Account + "/" + p.Organization }
func (p WorkspacePath) key() string    { return p.OrganizationPath.key() + "/" + p.Workspace }

// Page asks for one page of a list.
type Page struct {
	Limit int    `query:"limit" minimum:"1" maximum:"500" default:"100" doc:"Items per page"`
	After string `query:"after" maxLength:"400" doc:"What the page before said in next"`
}

// Match carries the conditions of a write.
type Match struct {
	IfMatch string `header:"If-Match" maxLength:"64" doc:"ETag; the write is refused if the resource has changed since"`
}

// MatchNew is Match for a PUT.
type MatchNew struct {
	Match
	IfNoneMatch string `header:"If-None-Match" maxLength:"8" doc:"*: the write is refused if there is one already"`
}

// check compares with the resource as it is; nil is none.
func (m Match) check(meta *resource.Meta) error {
	if m.IfMatch == "" || m.IfMatch == "*" && meta != nil {
		return nil
	}
	if meta == nil || m.IfMatch != etag(meta) {
		return newProblem(http.StatusPreconditionFailed, "precondition-failed", "It is not what it was when you looked at it.",
			"Look at it again, then repeat what you did.")
	}
	return nil
}

func (m MatchNew) check(meta *resource.Meta) error {
	if m.IfNoneMatch != "" && meta != nil {
		return newProblem(http.StatusPreconditionFailed, "precondition-failed", "There is one with this name already.",
			"Choose another name.")
	}
	return m.Match.check(meta)
}

func etag(meta *resource.Meta) string { return `"` + strconv.FormatInt(meta.Revision, 10) + `"` }

// Output is an answer with a body.
type Output[T any] struct {
	Status int
	ETag   string `header:"ETag"`
	Body   T
}

// Empty is an answer without one.
type Empty struct{}

func ok[T any](body T) *Output[T] { return &Output[T]{Status: http.StatusOK, Body: body} }

func object[T resource.Object](status int, obj T) *Output[T] {
	return &Output[T]{Status: status, ETag: etag(obj.Metadata()), Body: obj}
}

// accepted is the answer to a write that the platform works on; without a task
// there is nothing left to do.
func accepted[T resource.Object](obj T, task string) *Output[resource.Accepted[T]] {
	out := &Output[resource.Accepted[T]]{
		Status: http.StatusAccepted,
		ETag:   etag(obj.Metadata()),
		Body:   resource.Accepted[T]{Resource: obj, Task: task},
	}
	if task == "" {
		out.Status = http.StatusOK
	}
	return out
}

// add puts an operation into the API: whoever calls it has been admitted by the
// authorization table when handle runs.
func add[I, O any](a *API, op operation, handle func(context.Context, *I) (*O, error)) {
	rule, found := access.Lookup(op.id)
	if !found || rule.Form != access.HTTP {
		panic("operation " + string(op.id) + " is not in the authorization table")
	}
	kind, _, _ := strings.Cut(string(op.id), ".")
	problem := huma.SchemaFromType(a.huma.OpenAPI().Components.Schemas, reflect.TypeFor[Problem]())
	described := huma.Operation{
		OperationID:     string(op.id),
		Method:          op.method,
		Path:            op.path,
		Summary:         op.summary,
		Tags:            []string{kind},
		Parameters:      op.names,
		DefaultStatus:   op.status,
		MaxBodyBytes:    maxBody,
		BodyReadTimeout: bodyTimeout,
		Responses: map[string]*huma.Response{"default": {
			Description: "What is wrong and what to do about it",
			Content:     map[string]*huma.MediaType{"application/problem+json": {Schema: problem}},
		}},
		Extensions:  map[string]any{"x-multipaas-roles": rule.Allow.Names()},
		Middlewares: huma.Middlewares{a.admit(op.id)},
	}
	if rule.Allow&access.Anonymous == 0 {
		described.Security = []map[string][]string{{"bearer": {}}}
	}
	huma.Register(a.huma, described, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, a.problem(ctx, err)
		}
		return out, nil
	})
}

// admit authenticates and authorizes before anything else of the request is
// looked at.
func (a *API) admit(op access.Operation) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		req := requestOf(r.Context())
		req.operation = op
		inner := r.Context()
		if !streaming(op) {
			var cancel context.CancelFunc
			inner, cancel = context.WithTimeout(inner, operationTimeout)
			defer cancel()
		}
		leave, err := a.enter(inner, req, r, op)
		if err != nil {
			a.refuse(inner, w, err)
			return
		}
		defer leave()
		if req.principal != nil && req.principal.Sysadmin {
			inner = store.WithReserve(inner)
		}
		next(huma.WithContext(ctx, inner))
	}
}

// enter finds out who is asking, whether he may and whether he has room. Unless it
// is refused, leave is to be called when the request is over.
func (a *API) enter(ctx context.Context, req *request, r *http.Request, op access.Operation) (leave func(), err error) {
	principal, err := a.principal(r.WithContext(ctx))
	// A token that has ended must not keep anybody from logging in.
	if rule, _ := access.Lookup(op); rule.Allow&access.Anonymous != 0 && errors.Is(err, access.ErrUnauthenticated) {
		err = nil
	}
	req.principal = principal
	return a.admitted(r, principal, func() error {
		if err != nil {
			return err
		}
		return a.id.Admit(ctx, principal, op, r.PathValue("account"), r.PathValue("organization"))
	})
}

// principal returns who is asking; nil if nobody says so.
func (a *API) principal(r *http.Request) (*access.Principal, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return nil, nil
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return nil, &access.Refusal{
			Reason: access.ErrUnauthenticated,
			Text:   "The API takes bearer tokens only.",
			Remedy: "Log in with `mp login`.",
		}
	}
	token = strings.TrimSpace(token)
	if err := a.shares.due(token); err != nil {
		return nil, err
	}
	p, err := a.id.Authenticate(r.Context(), token, r.RemoteAddr)
	if err == nil {
		a.shares.met(token, p)
	}
	return p, err
}

// who is the principal of the request that ctx is of.
func who(ctx context.Context) *access.Principal { return requestOf(ctx).principal }

// page reads one page of what is below prefix. In after and next the prefix is
// left out, so that a page can't begin anywhere else.
func page[T resource.Object](ctx context.Context, kind store.Kind[T], prefix string, p Page) (*Output[resource.List[T]], error) {
	after := p.After
	if after != "" && prefix != "" {
		after = prefix + "/" + after
	}
	items, next, err := kind.List(ctx, prefix, after, p.Limit)
	if err != nil {
		return nil, err
	}
	return ok(listOf(items, strings.TrimPrefix(next, prefix+"/"))), nil
}

func listOf[T any](items []T, next string) resource.List[T] {
	if items == nil {
		items = []T{}
	}
	return resource.List[T]{Items: items, Next: next}
}

// all reads everything below prefix.
func all[T resource.Object](ctx context.Context, kind store.Kind[T], prefix string) ([]T, error) {
	items, _, err := kind.List(ctx, prefix, "", 0)
	return items, err
}

// find reads one resource.
func find[T resource.Object](ctx context.Context, kind store.Kind[T], key string) (T, error) {
	obj, err := kind.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
		return obj, missing(strings.TrimSuffix(kind.Name(), "s"), lastName(key))
	}
	return obj, err
}

// open is a write that changes nothing and fails if the resource with key is
// gone or being deleted when the commit happens: it keeps things from being
// created below what goes.
func open[T resource.Object](kind store.Kind[T], key string) store.Op {
	return kind.ModifyOp(key, func(obj T) error {
		if obj.Metadata().Deleting() {
			return deleting(strings.TrimSuffix(kind.Name(), "s"), obj.Metadata().Name)
		}
		return store.ErrSkip
	})
}

// maxTries is how often a write is decided anew because somebody else was
// faster; controllers write a status a few times per second at most.
const maxTries = 20

// retry calls try again while it loses against other writers, who changed what it
// read or made what it makes.
func retry(ctx context.Context, try func() error) error {
	for n := 0; ; n++ {
		err := try()
		lost := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists)
		if !lost || n == maxTries || ctx.Err() != nil {
			return err
		}
	}
}
