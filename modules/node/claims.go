package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
	"github.com/multipaas/multipaas/modules/wire"
)

// release takes a node out of the claims of workspaces that are gone and of which it
// says that it holds nothing. It is asked at each report, of which most find none.
func (h *Hub) release(ctx context.Context, uid string, holds []string) error {
	if holds == nil || slices.Contains(holds, wire.HoldsUnknown) {
		return nil
	}
	for _, claim := range h.cfg.Claims.List("") {
		if !claim.Retired || claim.Nodes[uid] == "" || slices.Contains(holds, claim.Network) {
			continue
		}
		if err := dropFrom(ctx, h.cfg.Store, claim, func(v *resource.VNI) { delete(v.Nodes, uid) }); err != nil {
			return err
		}
	}
	return nil
}

// wiped takes a node that was given up out of all claims: it came back, was told that
// it is none any more, and says that everything is gone from its disks. It may lie, and
// gains nothing: it is told nothing of what will have the number next.
func (h *Hub) wiped(r *http.Request) error {
	cert, err := nodeCertificate(r)
	if err != nil {
		return err
	}
	for _, o := range cert.Subject.Organization {
		uid, ok := strings.CutPrefix(o, wire.NodeUIDPrefix)
		if !ok {
			continue
		}
		node, err := store.Of[resource.Node](h.cfg.Store).Get(r.Context(), cert.Subject.CommonName)
		if err == nil && node.UID == uid && !node.Gone() {
			return refuse(http.StatusConflict, "node %s has not been removed", node.Name)
		} else if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		for _, claim := range h.cfg.Claims.List("") {
			if claim.Lost[uid] == "" {
				continue
			}
			h.cfg.Log.Info("a host that was given up is back and was wiped", "node", claim.Lost[uid], "claim", claim.Name)
			err := dropFrom(r.Context(), h.cfg.Store, claim, func(v *resource.VNI) { delete(v.Lost, uid) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// dropFrom takes somebody out of a claim. One that is gone meanwhile is no error.
func dropFrom(ctx context.Context, db *store.Store, claim *resource.VNI, out func(*resource.VNI)) error {
	_, err := store.Of[resource.VNI](db).Modify(ctx, claim.Key(), func(v *resource.VNI) error {
		if v.Metadata().UID != claim.Metadata().UID {
			return store.ErrSkip
		}
		out(v)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// free deletes claims of workspaces that are gone once nobody may hold anything of
// them. Nodes that were removed with their machines' ends confirmed have no disk of
// theirs; a network without machines on a host that is none of ours reaches nobody.
func (m *Monitor) free(ctx context.Context) error {
	var nodes map[string]bool // that are there, by UID
	for _, claim := range m.Claims.List("") {
		if !claim.Retired {
			continue
		}
		if claim.Free() {
			err := store.Of[resource.VNI](m.Store).Delete(ctx, claim)
			if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) {
				return err
			}
			continue
		}
		if len(claim.Nodes) == 0 {
			continue
		}
		if nodes == nil {
			// Not the cache: it may be behind the claims'.
			all, _, err := store.Of[resource.Node](m.Store).List(ctx, "", "", 0)
			if err != nil {
				return fmt.Errorf("list nodes: %w", err)
			}
			nodes = map[string]bool{}
			for _, n := range all {
				nodes[n.UID] = true
			}
		}
		for uid := range claim.Nodes {
			if !nodes[uid] {
				if err := dropFrom(ctx, m.Store, claim, func(v *resource.VNI) { delete(v.Nodes, uid) }); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// giveUp are the writes that go with giving up a machine on a node: its disk may come
// back, so nobody gets what it was made with.
func (m *Monitor) giveUp(ctx context.Context, n *resource.Node, workspace string) ([]store.Op, error) {
	w, err := store.Of[resource.Workspace](m.Store).Get(ctx, workspace)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	claims := store.Of[resource.VNI](m.Store)
	var ops []store.Op
	for _, name := range w.Status.Claims() {
		if _, err := claims.Get(ctx, name); errors.Is(err, store.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		ops = append(ops, claims.ModifyOp(name, func(v *resource.VNI) error {
			if v.UID != w.UID || v.Lost[n.UID] != "" {
				return store.ErrSkip
			}
			if v.Lost == nil {
				v.Lost = map[string]string{}
			}
			v.Lost[n.UID] = n.Name
			return nil
		}))
	}
	return ops, nil
}
