package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

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
		if err := change(ctx, h.cfg.Store, claim, func(v *resource.VNI) { delete(v.Nodes, uid) }); err != nil {
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
			err := change(r.Context(), h.cfg.Store, claim, func(v *resource.VNI) { delete(v.Lost, uid) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// change changes a claim. One that is gone meanwhile is no error.
func change(ctx context.Context, db *store.Store, claim *resource.VNI, how func(*resource.VNI)) error {
	_, err := store.Of[resource.VNI](db).Modify(ctx, claim.Key(), func(v *resource.VNI) error {
		if v.Metadata().UID != claim.Metadata().UID {
			return store.ErrSkip
		}
		how(v)
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
	trash := networksOf(m.Trash.List(""))
	for _, claim := range m.Claims.List("") {
		if !claim.Retired || trash[claim.Network] {
			continue
		}
		if claim.Free() {
			err := store.Of[resource.VNI](m.Store).Delete(ctx, claim)
			if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) {
				return err
			}
			continue
		}
		if claim.RetiredAt.IsZero() { // an older version wrote it
			if err := change(ctx, m.Store, claim, func(v *resource.VNI) { v.RetiredAt = m.now() }); err != nil {
				return err
			}
		}
		for uid, name := range claim.Nodes {
			there, err := m.there(ctx, name, uid)
			if err != nil {
				return err
			}
			if there {
				continue
			}
			if err := change(ctx, m.Store, claim, func(v *resource.VNI) { delete(v.Nodes, uid) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// there says whether a node is. A cache that has it is believed; one that has not may be
// behind the claims'.
func (m *Monitor) there(ctx context.Context, name, uid string) (bool, error) {
	if n, ok := m.Nodes.Get(name); ok && n.UID == uid {
		return true, nil
	}
	n, err := store.Of[resource.Node](m.Store).Get(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("node %s: %w", name, err)
	}
	return n.UID == uid, nil
}

// networksOf are the networks' IDs of workspaces of which volumes are in the trash: what is in them
// belongs to users of those numbers, which nobody else gets.
func networksOf(trash []*resource.Trash) map[string]bool {
	all := map[string]bool{}
	for _, t := range trash {
		all[t.Spec.NetworkID] = true
	}
	return all
}

// keptFor is how long a node may hold something of a workspace that is gone before it is
// a problem.
const keptFor = 24 * time.Hour

// Overdue says of nodes, by UID, which claims of workspaces long gone wait for their word. Those
// of which volumes are in the trash wait for nobody.
func Overdue(claims []*resource.VNI, trash []*resource.Trash, now time.Time) map[string]error {
	kept := networksOf(trash)
	claims = slices.DeleteFunc(slices.Clone(claims), func(v *resource.VNI) bool {
		return kept[v.Network] || !v.Retired || v.RetiredAt.IsZero() || now.Sub(v.RetiredAt) < keptFor
	})
	slices.SortFunc(claims, func(a, b *resource.VNI) int { return a.RetiredAt.Compare(b.RetiredAt) })
	held := map[string][]*resource.VNI{}
	for _, v := range claims {
		for uid := range v.Nodes {
			held[uid] = append(held[uid], v)
		}
	}
	all := map[string]error{}
	for uid, of := range held {
		all[uid] = fmt.Errorf("numbers kept for it: %d, the first is %s of workspace %s, gone since %s",
			len(of), of[0].Name, of[0].Workspace, of[0].RetiredAt.UTC().Format(time.RFC3339))
	}
	return all
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
