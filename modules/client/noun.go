package client

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/multipaas/multipaas/modules/resource"
)

// noun is one kind of thing that commands work on: what it is called, where it
// is and how it is shown. The plain verbs follow from it: list, show, use,
// create and delete. What else can be done with a kind is a command of its own.
type noun[V any] struct {
	columns []column[V]
	name    func(*V) string // for -o name and completion; the first column, if it is nil
	empty   string          // said instead of a table of nothing

	one   string          // "app": in sentences; "apps" in the API's paths
	path  string          // in the API's paths, if that is not so
	in    depth           // the place it is in
	place bool            // it is a place to work in, itself
	tasks bool            // the platform works on what is written, and there is a task to wait for
	gone  string          // what one is when it was deleted, if that is not "deleted"
	kept  func(*V) string // what one is instead that was not deleted, but put away; nil: there is no such
	left  func() string   // said of what a deletion leaves; nil: nothing
	holds bool            // much is lost with one: to delete it, its name is typed
	keeps bool            // create is content with one that is there already

	query func(*call, url.Values) error // narrows a list down
	pick  func(*call, []V) []V          // picks from what was listed
	more  func(io.Writer, *V)           // what show adds; conditions, if it is nil
	start func(*call) string            // said of a new one: how to go on
	also  func(*V) string               // said of one that was written and is ready
}

// standard puts what all kinds show around the columns of one: its name, and its
// phase if a controller works for it, then columns, its age, and those of
// columns that are only for -o wide.
func standard[V any, P interface {
	*V
	resource.Object
}](columns []column[V]) []column[V] {
	all := []column[V]{{head: "NAME", cell: func(v *V) string { return P(v).Metadata().Name }}}
	if _, ok := any(P(nil)).(resource.Stateful); ok {
		all = append(all, column[V]{head: "PHASE", cell: func(v *V) string {
			return phaseOf(P(v).Metadata(), any(v).(resource.Stateful).State().Phase)
		}})
	}
	i := 0
	for i < len(columns) && !columns[i].wide {
		i++
	}
	age := column[V]{head: "AGE", cell: func(v *V) string { return since(P(v).Metadata().CreatedAt) }}
	return append(all, slices.Insert(columns, i, age)...)
}

// many is the kind in the API's paths.
func (n noun[V]) many() string { return cmp.Or(n.path, n.one+"s") }

// phaseOf is the phase, or Deleting as soon as that was asked for.
func phaseOf(m *resource.Meta, p resource.Phase) string {
	switch {
	case m.Deleting():
		return string(resource.Deleting)
	case p == "":
		return string(resource.Pending)
	}
	return string(p)
}

// thing is one of a kind, as the user named it.
type thing struct {
	Target        // the place it is in, or is
	name   string // as given
	label  string // "acme/web/shop" for a place, else the name
	path   string // in the API
}

// inFull is the label, and where that is.
func (t thing) inFull() string {
	if place := t.String(); place != "" && place != t.label {
		return t.label + " of " + place
	}
	return t.label
}

// arg is the thing that the first argument names. A place may be left out: the
// chosen one is meant.
func (n noun[V]) arg(c *call) (thing, error) {
	if !n.place {
		return n.named(c, c.arg(0))
	}
	t, err := c.placeArg(n.in + 1)
	return thing{Target: t, name: c.arg(0), label: t.String(), path: t.at(n.in + 1)}, err
}

// on runs fn on what the first argument names.
func (n noun[V]) on(fn func(*call, thing) error) func(*call) error {
	return func(c *call) error {
		it, err := n.arg(c)
		if err != nil {
			return err
		}
		return fn(c, it)
	}
}

// named is the thing with a name, in the place at hand.
func (n noun[V]) named(c *call, name string) (thing, error) {
	if n.in == anywhere {
		return thing{name: name, label: name, path: apiPath(n.many(), name)}, nil
	}
	t, err := c.need(n.in)
	if err != nil {
		return thing{}, err
	}
	if n.in == inOrganization {
		t.Workspace, t.Namespace = "", "" // what it is in is no workspace
	}
	it := thing{Target: t, name: name, label: name, path: t.at(n.in, n.many(), name)}
	if n.in == inNamespace {
		return it, nil // names of Kubernetes' own may be longer: the cluster says what is wrong
	}
	return it, checkName(n.one, name)
}

// maxItems bounds a list; a platform that has more is asked for less at a time.
const maxItems = 100_000

// all lists what is in a place, page by page.
func (n noun[V]) all(c *call, t Target) ([]V, error) {
	query := url.Values{}
	if n.query != nil {
		if err := n.query(c, query); err != nil {
			return nil, err
		}
	}
	all := []V{}
	for {
		target := t.at(n.in, n.many())
		if len(query) > 0 {
			target += "?" + query.Encode()
		}
		var page resource.List[V]
		if err := c.get(target, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Items...)
		if page.Next == "" {
			return all, nil
		}
		if len(all) > maxItems || len(page.Items) == 0 {
			return nil, failf("narrow the list down", "the list does not end after %d items", len(all))
		}
		query.Set("after", page.Next)
	}
}

// names lists the names in the place at hand, for completion.
func (n noun[V]) names(c *call) ([]string, error) {
	t, err := c.need(n.in)
	if err != nil {
		return nil, err
	}
	return n.namesIn(c, t)
}

func (n noun[V]) namesIn(c *call, t Target) ([]string, error) {
	items, err := n.all(c, t)
	names := make([]string, len(items))
	for i := range items {
		names[i] = n.nameOf(&items[i])
	}
	return names, err
}

// list is the verb that lists. The words may say that an argument names the
// place.
func (n noun[V]) list(words command) *command {
	return words.or(command{
		name:  "list, ls",
		flags: flags(placeFlags(n.in), words.flags, outputFlags()),
		run: func(c *call) error {
			t, err := c.placeArg(n.in)
			if err != nil {
				return err
			}
			items, err := n.all(c, t)
			if err != nil {
				return err
			}
			if n.pick != nil {
				items = n.pick(c, items)
			}
			return n.printList(c, items)
		},
	})
}

// show is the verb that shows one, with its conditions.
func (n noun[V]) show(words command) *command {
	return words.or(command{
		name:  "show, get",
		args:  "NAME",
		names: n.names,
		flags: flags(n.placeFlags(words), words.flags, resultFlag()),
		run: n.on(func(c *call, it thing) error {
			var got V
			if err := c.get(it.path, &got); err != nil {
				return err
			}
			return n.printOne(c, &got)
		}),
	})
}

// placeFlags are those of a verb on one.
func (n noun[V]) placeFlags(words command) []cli.Flag {
	if n.place && strings.HasPrefix(words.args, "[") {
		return placeFlags(n.in + 1) // the chosen one may come from a flag
	}
	return placeFlags(n.in)
}

// use is the verb that chooses a place.
func (n noun[V]) use(words command) *command {
	return words.or(command{
		name:  "use",
		args:  "NAME",
		names: n.names,
		flags: flags(placeFlags(n.in), words.flags),
		run: n.on(func(c *call, it thing) error {
			if err := c.get(it.path, new(V)); err != nil {
				return err
			}
			return c.choose(it.Target)
		}),
	})
}

// create is the verb that makes one. spec reads from the flags what is wanted; nil
// if there is nothing to say about one.
func (n noun[V]) create(words command, spec func(*call) (any, error)) *command {
	return words.or(command{
		name:  "create",
		args:  "NAME",
		flags: flags(placeFlags(n.in), words.flags, dryRunFlag(), n.waitFlags(), resultFlag()),
		run: n.on(func(c *call, it thing) error {
			var in any
			if spec != nil {
				wanted, err := spec(c)
				if err != nil {
					return err
				}
				in = map[string]any{"spec": wanted}
			}
			match, there := []string{"If-None-Match", "*"}, " is created"
			if n.keeps {
				match, there = nil, " is there"
			} else if n.tasks {
				there = " is ready"
			}
			accepted, err := n.write(c, http.MethodPut, it.path, in, match...)
			if err != nil {
				return err
			}
			chosen := "."
			if n.place {
				// What is known of one that was called the same is dropped.
				if err := errors.Join(c.dropKubeToken(it.Target), c.use(it.Target)); err != nil {
					return err
				}
				chosen = ", and chosen."
			}
			subject := n.subject(it)
			done := subject + there + chosen
			if n.start != nil {
				done += " " + n.start(c)
			}
			return n.settle(c, it.path, accepted, subject+" is being created"+chosen, done)
		}),
	})
}

// delete is the verb that deletes. ask is the question, with %s for what it is
// about; words with a run of their own ask themselves.
func (n noun[V]) delete(ask string, words command) *command {
	result := n.waitFlags()
	if n.tasks {
		result = append(result, resultFlag())
	}
	return words.or(command{
		name:  "delete, rm",
		args:  "NAME",
		names: n.names,
		flags: flags(placeFlags(n.in), words.flags, yesFlag(), dryRunFlag(), result),
		run:   func(c *call) error { return n.remove(c, ask, "") },
	})
}

// remove asks, deletes what the first argument names, takes it out of the
// context if it is, or is above, what is chosen there, and waits until it is
// gone. query goes behind the path.
func (n noun[V]) remove(c *call, ask, query string) error {
	it, err := n.arg(c)
	if err != nil {
		return err
	}
	typed := ""
	if n.place || n.holds {
		typed = it.name
	}
	if err := c.confirm(fmt.Sprintf(ask, it.inFull()), typed); err != nil {
		return err
	}
	var accepted resource.Accepted[V]
	if err := c.write(http.MethodDelete, it.path+query, nil, &accepted); err != nil {
		return err
	}
	if n.place {
		if err := c.forget(it.Target); err != nil {
			return err
		}
	}
	left, put := "", ""
	if n.left != nil {
		left = " " + n.left()
	}
	if n.kept != nil {
		put = n.kept(&accepted.Resource)
	}
	said := func(word string) func() error {
		return func() error {
			if accepted.Task == "" && put == "" {
				_, err := fmt.Fprintf(c.out, "%s is %s.%s\n", n.subject(it), word, left)
				return err
			}
			return n.printResult(c, &accepted.Resource, "%s is %s.%s", n.subject(it), cmp.Or(put, word), left)
		}
	}
	return c.settle(accepted.Task, said("being deleted"), said(cmp.Or(n.gone, "deleted")))
}

// set is the verb that changes one. spec reads from the flags which fields get
// which values, and what is so then: "is changed".
func (n noun[V]) set(words command, spec func(*call) (map[string]any, string, error)) *command {
	return words.or(command{
		name:  "set",
		args:  "NAME",
		names: n.names,
		flags: flags(n.placeFlags(words), words.flags, dryRunFlag(), n.waitFlags(), resultFlag()),
		run: n.on(func(c *call, it thing) error {
			fields, done, err := spec(c)
			if err != nil {
				return err
			}
			return n.patch(c, it, fields, done)
		}),
	})
}

// patch changes fields of the spec, waits until that is so and says done.
func (n noun[V]) patch(c *call, it thing, spec map[string]any, done string) error {
	if len(spec) == 0 {
		return usagef("see '"+c.path+" --help'", "%s: there is nothing to set", c.path)
	}
	accepted, err := n.write(c, http.MethodPatch, it.path, map[string]any{"spec": spec})
	if err != nil {
		return err
	}
	return n.settle(c, it.path, accepted, n.subject(it)+" is being changed.", n.subject(it)+" "+done+".")
}

// write sends a change. What comes back is the resource, with a task if there
// are any.
func (n noun[V]) write(c *call, method, path string, in any, header ...string) (*resource.Accepted[V], error) {
	var accepted resource.Accepted[V]
	var out any = &accepted
	if !n.tasks {
		out = &accepted.Resource
	}
	return &accepted, c.write(method, path, in, out, header...)
}

// settle waits, if the user wants that, until the platform is done with a
// change, and says done; or else now.
func (n noun[V]) settle(c *call, path string, accepted *resource.Accepted[V], now, done string) error {
	if !n.tasks {
		return n.printResult(c, &accepted.Resource, "%s", done)
	}
	return c.settle(accepted.Task,
		func() error { return n.printResult(c, &accepted.Resource, "%s", now) },
		func() error {
			var got V
			if err := c.get(path, &got); err != nil {
				return err
			}
			if n.also != nil {
				done += n.also(&got)
			}
			return n.printResult(c, &got, "%s", done)
		})
}

// subject is "App hello" or "Workspace acme/web/shop", to begin a sentence with.
func (n noun[V]) subject(it thing) string {
	return capital(n.one) + " " + printable(it.label)
}

func (n noun[V]) waitFlags() []cli.Flag {
	if n.tasks {
		return waitFlags()
	}
	return nil
}

// or is c with what it leaves out taken from a plain verb, and that verb's
// flags, which hold c's own.
func (c command) or(plain command) *command {
	c.name = cmp.Or(c.name, plain.name)
	c.args = cmp.Or(c.args, plain.args)
	if c.names == nil {
		c.names = plain.names
	}
	if c.run == nil {
		c.run = plain.run
	}
	c.flags = plain.flags
	return &c
}
