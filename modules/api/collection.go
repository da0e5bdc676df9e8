package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/multipaas/multipaas/modules/internal/access"
	"github.com/multipaas/multipaas/modules/internal/quota"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// collection is the plain operations of one kind: each that the API has is one
// call of list, get, put, patch or remove, and what is special about the kind
// is in the fields. All kinds fail alike where there is no place to put
// something into, or where it is being deleted, and what a kind Asks is granted
// in the commit that stores it. A write of a kind that a controller works for is
// answered with the task to follow; of another kind it is done by then.
type collection[V any, P pointer[V]] struct {
	api  *API
	noun string // what people call one; tasks too
	path string // of the list

	operations string // what their ids begin with; empty: the kind's name
	param      string // a name in paths; empty: the noun
	maxName    int    // 0: resource.MaxName
	example    string // of a name

	// fresh makes one in the place with this key.
	fresh func(place, name string) P
	// adopt takes over what the body of a PUT asks for; nil: nothing can be set.
	adopt func(now, body P)
	// complete fills in what is left out of what is asked for. was is what is
	// stored; nil: it is made.
	complete func(now, was P)
	// check says everything that is wrong with what is asked for.
	check func(ctx context.Context, now, was P) error
	// within calls commit, which stores what is new or changed together with the writes it is given; nil:
	// nothing is to be known about that. was is nil for what is new.
	within func(ctx context.Context, now, was P, commit func(...store.Op) error) error
	// verb is what a task calls a change; nil: "update".
	verb func(now, was P) string
	// show fills in what is computed for those who ask, and not stored, and takes out
	// what the one who asks must not see.
	show func(ctx context.Context, objs ...P) error
	// drop takes one away that no controller works for; nil: it is only stored.
	drop func(ctx context.Context, obj P) error

	// made, changed and marked are called once that is stored.
	made, changed func()
	marked        func(ctx context.Context, obj P) error
}

type pointer[V any] interface {
	*V
	resource.Object
}

func (c *collection[V, P]) kind() store.Kind[P]   { return store.Of[V, P](c.api.store) }
func (c *collection[V, P]) scope() resource.Scope { return P(new(V)).Scope() }

// stateful says that a controller works for the kind.
func (c *collection[V, P]) stateful() bool {
	_, ok := any(P(new(V))).(resource.Stateful)
	return ok
}

var pathName = regexp.MustCompile(`\{(\w+)\}`)

// operation describes the one with this verb.
func (c *collection[V, P]) operation(verb, method, summary string) operation {
	op := operation{
		id:      access.Operation(cmp.Or(c.operations, c.kind().Name()) + "." + verb),
		method:  method,
		path:    c.path,
		summary: summary,
	}
	param := cmp.Or(c.param, c.noun)
	if verb != "list" {
		op.path += "/{" + param + "}"
	}
	if method != http.MethodGet && c.stateful() {
		op.status = http.StatusAccepted
	}
	for _, match := range pathName.FindAllStringSubmatch(op.path, -1) {
		name, length := match[1], resource.MaxName
		example := map[string]string{"account": "acme", "organization": "web", "workspace": "shop"}[name]
		if name == param {
			example, length = c.example, cmp.Or(c.maxName, length)
		}
		schema := &huma.Schema{Type: huma.TypeString, MaxLength: &length}
		if example != "" {
			schema.Examples = []any{example}
		}
		schema.PrecomputeMessages()
		op.names = append(op.names, &huma.Param{Name: name, In: "path", Required: true, Schema: schema})
	}
	return op
}

// Place is the names in the path of a request to a collection, from the top. What
// they may be is said in the operation.
type Place struct{ names []string }

// Resolve is for huma.
func (p *Place) Resolve(ctx huma.Context) []error {
	var wrong huma.ValidateResult
	for _, param := range ctx.Operation().Parameters {
		if param.In != "path" {
			continue
		}
		name := ctx.Param(param.Name)
		at := huma.NewPathBuffer(nil, 0)
		at.Push(param.In)
		at.Push(param.Name)
		huma.Validate(nil, param.Schema, at, huma.ModeWriteToServer, name, &wrong)
		p.names = append(p.names, name)
	}
	return wrong.Errors
}

// key is of the resource; in a list, of the place that it is of.
func (p Place) key() string { return strings.Join(p.names, "/") }

// place is the key without the last name.
func (p Place) place() string { return strings.Join(p.names[:len(p.names)-1], "/") }

// name is the last one.
func (p Place) name() string { return p.names[len(p.names)-1] }

// isThere returns an error if there is no place with this key, in which resources
// of a scope stand.
func (a *API) isThere(ctx context.Context, scope resource.Scope, key string) error {
	kind, ok := scope.Place()
	if !ok {
		return nil
	}
	_, err := find(ctx, store.Any(a.store, kind), key)
	return err
}

func lastName(key string) string { return key[strings.LastIndex(key, "/")+1:] }

// list adds the GET of the collection.
func (c *collection[V, P]) list(summary string) {
	add(c.api, c.operation("list", http.MethodGet, summary), func(ctx context.Context, in *struct {
		Place
		Page
	}) (*Output[resource.List[P]], error) {
		if err := c.api.isThere(ctx, c.scope(), in.key()); err != nil {
			return nil, err
		}
		out, err := page(ctx, c.kind(), in.key(), in.Page)
		if err != nil {
			return nil, err
		}
		return out, c.shown(ctx, out.Body.Items...)
	})
}

// get adds the GET of one.
func (c *collection[V, P]) get(summary string) {
	add(c.api, c.operation("get", http.MethodGet, summary), func(ctx context.Context, in *struct{ Place }) (*Output[P], error) {
		obj, err := c.find(ctx, in.Place)
		if err != nil {
			return nil, err
		}
		return object(http.StatusOK, obj), c.shown(ctx, obj)
	})
}

// put adds the PUT of the collection. If there is nothing to adopt, the body may
// be left out: what was got may be sent back.
func (c *collection[V, P]) put(summary string) {
	op := c.operation("put", http.MethodPut, summary)
	if c.adopt == nil {
		addWrite(c, op, func(ctx context.Context, in *struct {
			Place
			MatchNew
			Body P
		}) (*written[P], error) {
			return c.write(ctx, in.Place, in.MatchNew, func(P) {})
		})
		return
	}
	addWrite(c, op, func(ctx context.Context, in *struct {
		Place
		MatchNew
		Body V
	}) (*written[P], error) {
		body := P(&in.Body)
		if name := body.Metadata().Name; name != "" && name != in.name() {
			return nil, invalid("body.name", "is not the name in the path",
				"Leave the name out of the body, or make them the same: a resource can't be renamed.")
		}
		return c.write(ctx, in.Place, in.MatchNew, func(now P) { c.adopt(now, body) })
	})
}

// patch adds the PATCH of a collection: apply changes what a body of type B has
// a value for.
func patch[B, V any, P pointer[V]](c *collection[V, P], summary string, apply func(now P, body B)) {
	type input struct {
		Place
		Match
		Body B
	}
	addWrite(c, c.operation("patch", http.MethodPatch, summary), func(ctx context.Context, in *input) (out *written[P], err error) {
		err = c.retry(ctx, in.Place, in.Match, func(was P) error {
			out, err = c.update(ctx, was, func(now P) { apply(now, in.Body) })
			return err
		})
		return out, err
	})
}

// remove adds the DELETE of the collection.
func (c *collection[V, P]) remove(summary string) {
	type input struct {
		Place
		Match
	}
	op := c.operation("delete", http.MethodDelete, summary)
	if !c.stateful() {
		drop := c.drop
		if drop == nil {
			drop = c.kind().Delete
		}
		add(c.api, op, func(ctx context.Context, in *input) (*Empty, error) {
			return &Empty{}, c.retry(ctx, in.Place, in.Match, func(was P) error { return drop(ctx, was) })
		})
		return
	}
	add(c.api, op, func(ctx context.Context, in *input) (*Output[resource.Accepted[P]], error) {
		var obj P
		var task string
		err := c.retry(ctx, in.Place, in.Match, func(was P) (err error) {
			obj = was
			task, err = markDeleted(ctx, c.api, c.kind(), c.noun+".delete", was)
			return err
		})
		if err == nil && c.marked != nil {
			err = c.marked(ctx, obj)
		}
		if err != nil {
			return nil, err
		}
		return accepted(obj, task), c.shown(ctx, obj)
	})
}

// written is what became of a write.
type written[P resource.Object] struct {
	obj  P
	made bool
	task string // that works on it; empty: none is left to do
}

// addWrite adds a PUT or PATCH with the answer that the kind's writes have.
func addWrite[I, V any, P pointer[V]](c *collection[V, P], op operation, write func(context.Context, *I) (*written[P], error)) {
	if c.stateful() {
		add(c.api, op, func(ctx context.Context, in *I) (*Output[resource.Accepted[P]], error) {
			out, err := write(ctx, in)
			if err != nil {
				return nil, err
			}
			return accepted(out.obj, out.task), c.shown(ctx, out.obj)
		})
		return
	}
	add(c.api, op, func(ctx context.Context, in *I) (*Output[P], error) {
		out, err := write(ctx, in)
		if err != nil {
			return nil, err
		}
		status := http.StatusOK
		if out.made {
			status = http.StatusCreated
		}
		return object(status, out.obj), c.shown(ctx, out.obj)
	})
}

// write makes what is not there and changes what is. ask puts what is asked for
// into it.
func (c *collection[V, P]) write(ctx context.Context, in Place, match MatchNew, ask func(now P)) (out *written[P], err error) {
	if err := resource.CheckName(c.noun, in.name()); err != nil {
		return nil, invalid("path."+c.noun, err.Error(), "")
	}
	err = retry(ctx, func() error {
		was, err := c.kind().Get(ctx, in.key())
		switch {
		case errors.Is(err, store.ErrNotFound):
			if err := match.check(nil); err != nil {
				return err
			}
			out, err = c.create(ctx, in, ask)
			return err
		case err != nil:
			return err
		}
		if err := match.check(was.Metadata()); err != nil {
			return err
		}
		out, err = c.update(ctx, was, ask)
		return err
	})
	return out, err
}

func (c *collection[V, P]) create(ctx context.Context, in Place, ask func(now P)) (*written[P], error) {
	now := c.fresh(in.place(), in.name())
	ask(now)
	if c.complete != nil {
		c.complete(now, nil)
	}
	if c.check != nil {
		if err := c.check(ctx, now, nil); err != nil {
			return nil, err
		}
	}
	ops, err := c.room(ctx, now, in.place())
	if err != nil {
		return nil, err
	}
	task, begin := "", store.Op{}
	commit := func(more ...store.Op) error {
		task, begin = c.begin(ctx, "create", now)
		return c.api.store.Commit(ctx, slices.Concat(ops, more, []store.Op{c.kind().CreateOp(now), begin})...)
	}
	if c.within != nil {
		err = c.within(ctx, now, nil, commit)
	} else {
		err = commit()
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil, missing(string(c.scope()), lastName(in.place()))
	}
	if err != nil {
		return nil, err
	}
	if c.made != nil {
		c.made()
	}
	return &written[P]{now, true, task}, nil
}

func (c *collection[V, P]) update(ctx context.Context, was P, ask func(now P)) (*written[P], error) {
	if was.Metadata().Deleting() {
		return nil, deleting(c.noun, was.Metadata().Name)
	}
	changed := *was
	now := P(&changed)
	ask(now)
	if c.complete != nil {
		c.complete(now, was)
	}
	if same(now, was) {
		if !c.stateful() {
			return &written[P]{obj: was}, nil
		}
		task, err := c.api.running(ctx, c.kind().Name(), was)
		return &written[P]{obj: was, task: task}, err
	}
	if c.check != nil {
		if err := c.check(ctx, now, was); err != nil {
			return nil, err
		}
	}
	granted, err := c.api.grantMore(ctx, now, was)
	if err != nil {
		return nil, err
	}
	verb := "update"
	if c.verb != nil {
		verb = c.verb(now, was)
	}
	task, begin := c.begin(ctx, verb, now)
	// What is there can be changed also when little room is left: the task of it is one of
	// few that its target has.
	commit := func(more ...store.Op) error {
		return c.api.store.Commit(store.WithReserve(ctx), append(more, granted, c.kind().UpdateOp(now), begin)...)
	}
	if c.within != nil {
		err = c.within(ctx, now, was, commit)
	} else {
		err = commit()
	}
	if err != nil {
		return nil, err
	}
	if c.changed != nil {
		c.changed()
	}
	return &written[P]{now, false, task}, nil
}

// find reads one. If it is not there, the place may not be either.
func (c *collection[V, P]) find(ctx context.Context, in Place) (P, error) {
	obj, err := c.kind().Get(ctx, in.key())
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrInvalidKey) {
		if err := c.api.isThere(ctx, c.scope(), in.place()); err != nil {
			return nil, err
		}
		return nil, missing(c.noun, in.name())
	}
	return obj, err
}

// retry reads one and lets do write it, again while somebody else is faster.
func (c *collection[V, P]) retry(ctx context.Context, in Place, match Match, do func(was P) error) error {
	return retry(ctx, func() error {
		was, err := c.find(ctx, in)
		if err != nil {
			return err
		}
		if err := match.check(was.Metadata()); err != nil {
			return err
		}
		return do(was)
	})
}

// room returns the writes that fail if the place is not open for now, or its
// account has no room for it, when the commit happens.
func (c *collection[V, P]) room(ctx context.Context, now P, place string) (ops []store.Op, err error) {
	if asker, counts := any(now).(resource.Asker); counts {
		_, granted, err := c.api.grant(ctx, quota.AccountOf(now), asker.Asks())
		if err != nil {
			return nil, err
		}
		ops = append(ops, granted) // it fails too if the account is not open
	}
	if kind, ok := c.scope().Place(); ok && (ops == nil || c.scope() != resource.OfAccount) {
		ops = append(ops, open(store.Any(c.api.store, kind), place))
	}
	return ops, nil
}

// begin returns the task for a write, if the kind has tasks.
func (c *collection[V, P]) begin(ctx context.Context, verb string, now P) (id string, op store.Op) {
	if !c.stateful() {
		return "", store.Op{}
	}
	task, op := c.api.cfg.Tasks.Begin(c.noun+"."+verb, who(ctx).Name(), now)
	return task.Name, op
}

func (c *collection[V, P]) shown(ctx context.Context, objs ...P) error {
	if c.show == nil {
		return nil
	}
	return c.show(ctx, objs...)
}

// same compares as the store would: an empty list is no list.
func same(x, y resource.Object) bool {
	a, err := json.Marshal(x)
	b, err2 := json.Marshal(y)
	return err == nil && err2 == nil && bytes.Equal(a, b)
}
