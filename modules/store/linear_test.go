package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/testing/storetest"
)

// register models one resource: absent, or there with a number and a revision.
type register struct {
	there    bool
	n        int
	revision int64
}

type call struct {
	verb     string
	n        int
	revision int64 // the one that Update and Delete are based on
}

type answer struct {
	state register // Get: what was read; Create, Update: what was written
	err   error
}

// TestLinearizable has several clients create, update, delete and get one
// resource, and checks that some order of these calls explains every answer.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	ctx := deadline(t)
	apps := store.Of[resource.App](storetest.New(t))
	var mu sync.Mutex
	var history []porcupine.Operation
	start := time.Now()
	var wg sync.WaitGroup
	for client := range 5 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(client), 7))
			last := app("acme/web/shop/x", 0)
			for i := range 40 {
				c := call{verb: []string{"create", "update", "update", "delete", "get", "get"}[rnd.IntN(6)], n: client*1000 + i}
				a := app("acme/web/shop/x", c.n)
				a.Revision = last.Revision
				if c.verb == "create" {
					a.Revision = 0
				}
				c.revision = a.Revision
				if c.revision == 0 && c.verb != "create" {
					c.verb = "get"
				}
				var out answer
				began := time.Since(start)
				switch c.verb {
				case "create":
					out.err = apps.Create(ctx, a)
				case "update":
					out.err = apps.Update(ctx, a)
				case "delete":
					out.err = apps.Delete(ctx, a)
				case "get":
					a, out.err = apps.Get(ctx, "acme/web/shop/x")
				}
				ended := time.Since(start)
				if out.err == nil && c.verb != "delete" {
					out.state = register{true, a.Spec.Instances, a.Revision}
					last = a
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: client, Input: c, Output: out, Call: int64(began), Return: int64(ended)})
				mu.Unlock()
			}
		})
	}
	wg.Wait()

	model := porcupine.Model{
		Init: func() any { return register{} },
		Step: func(state, input, output any) (bool, any) {
			s, in, out := state.(register), input.(call), output.(answer)
			is := func(target error) bool { return errors.Is(out.err, target) }
			switch {
			case in.verb == "get":
				return !s.there && is(store.ErrNotFound) || s.there && out.err == nil && out.state == s, s
			case in.verb == "create" && s.there:
				return is(store.ErrExists), s
			case in.verb == "create":
				return out.err == nil, out.state
			case !s.there:
				return is(store.ErrNotFound), s
			case s.revision != in.revision:
				return is(store.ErrConflict), s
			case in.verb == "delete":
				return out.err == nil, register{}
			default:
				return out.err == nil, out.state
			}
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprint(input, output) },
	}
	if !porcupine.CheckOperations(model, history) {
		for _, op := range history {
			t.Log(op.ClientId, op.Call, op.Return, op.Input, op.Output)
		}
		t.Error("no order of the calls explains their answers")
	}
}
