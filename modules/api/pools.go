package api

import (
	"context"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/store"
)

// maxPools is how many pools a node can have besides its own folder.
const maxPools = 15

// NodePath names a node.
type NodePath struct {
	Node string `path:"node" maxLength:"57" example:"host1"`
}

// PoolBody is the body of nodes.addpool.
type PoolBody struct {
	Name   string `json:"name" maxLength:"57" example:"fast"`
	Device string `json:"device,omitempty" maxLength:"255" doc:"A disk or partition of the host" example:"/dev/sdb"`
	Path   string `json:"path,omitempty" maxLength:"255" doc:"An empty folder of the host" example:"/srv/volumes"`
	Erase  string `json:"erase,omitempty" maxLength:"128" doc:"Serial number of the device, to destroy what it holds"`
}

func (a *API) poolOperations() {
	nodes := store.Of[resource.Node](a.store)
	change := func(ctx context.Context, name string, do func(*resource.Node) error) (*Output[*resource.Node], error) {
		var node *resource.Node
		err := retry(ctx, func() (err error) {
			if node, err = find(ctx, nodes, name); err != nil {
				return err
			}
			if node.Deleting() {
				return deleting("node", name)
			}
			if err := do(node); err != nil {
				return err
			}
			return nodes.Update(ctx, node)
		})
		if err != nil {
			return nil, err
		}
		return object(http.StatusOK, node), a.allocated(ctx, node)
	}
	add(a, op("nodes.addpool", "POST /v1/nodes/{node}/pools", "Give a host a disk or a folder for volumes").answers(http.StatusOK),
		func(ctx context.Context, in *struct {
			NodePath
			Body PoolBody
		}) (*Output[*resource.Node], error) {
			if err := checkPool(in.Body); err != nil {
				return nil, err
			}
			return change(ctx, in.Node, func(node *resource.Node) error { return addPool(node, in.Body) })
		})
	drop := op("nodes.removepool", "DELETE /v1/nodes/{node}/pools/{pool}", "Take a disk or a folder for volumes from a host")
	add(a, drop.answers(http.StatusOK),
		func(ctx context.Context, in *struct {
			NodePath
			Pool string `path:"pool" maxLength:"57" example:"fast"`
			Lost bool   `query:"lost" doc:"It will not come back: what is in it is lost"`
		}) (*Output[*resource.Node], error) {
			return change(ctx, in.Node, func(node *resource.Node) error { return a.removePool(ctx, node, in.Pool, in.Lost) })
		})
}

// checkPool says everything that is wrong with what shall be a pool.
func checkPool(b PoolBody) error {
	var fields []ProblemField
	wrong := func(field, why string) { fields = append(fields, ProblemField{"body." + field, why}) }
	if err := resource.CheckName("pool", b.Name); err != nil {
		wrong("name", err.Error())
	}
	clean := func(p string) bool {
		return path.Clean(p) == p && !strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f })
	}
	switch {
	case (b.Device == "") == (b.Path == ""):
		wrong("device", "a pool is either a device or a path")
	case b.Device != "" && (!clean(b.Device) || !strings.HasPrefix(b.Device, "/dev/")):
		wrong("device", "it is no path below /dev")
	case b.Path != "" && (!clean(b.Path) || !strings.HasPrefix(b.Path, "/") || b.Path == "/"):
		wrong("path", "it is no absolute path of a folder")
	case b.Path != "" && b.Erase != "":
		wrong("erase", "a folder is not erased")
	}
	if fields == nil {
		return nil
	}
	return invalidFields("Name a disk or partition, as /dev/sdb, or an empty folder.", fields)
}

func addPool(node *resource.Node, b PoolBody) error {
	const remedy = "Choose another name, or look at what is there: mp nodes storage list %s."
	if b.Name == resource.DefaultPool {
		return conflict("exists", "Each host has a pool of this name by itself.", fmt.Sprintf(remedy, node.Name))
	}
	// One that was refused and never made is asked for anew.
	node.Spec.Pools = slices.DeleteFunc(node.Spec.Pools, func(p resource.NodePool) bool {
		seen := node.Pool(p.UID)
		return p.Name == b.Name && seen != nil && !seen.Made && seen.Message != "" && !p.Removing
	})
	for _, p := range node.Spec.Pools {
		switch {
		case p.Name == b.Name:
			return conflict("exists", fmt.Sprintf("Node %s has a pool %s already.", node.Name, b.Name), fmt.Sprintf(remedy, node.Name))
		case b.Path != "" && p.Path == b.Path:
			return conflict("exists", fmt.Sprintf("%s is the pool %s already.", b.Path, p.Name), fmt.Sprintf(remedy, node.Name))
		}
	}
	if b.Erase != "" && node.Status.Phase == resource.Degraded {
		// Of a disk without a serial number its name is that, and another disk's after a reboot.
		return conflict("not-ready", fmt.Sprintf("Node %s does not report: consent to erase a disk is for one try, now.", node.Name),
			"Add it once the node reports.")
	}
	if len(node.Spec.Pools) >= maxPools {
		return conflict("limit", fmt.Sprintf("A node can have %d pools.", maxPools), "Take one away first: mp nodes storage remove.")
	}
	node.Spec.Pools = append(node.Spec.Pools, resource.NodePool{Name: b.Name, UID: store.NewUID(),
		Device: b.Device, Path: b.Path, Erase: b.Erase})
	return nil
}

// removePool marks a pool as one that is taken away, unless something is in it.
func (a *API) removePool(ctx context.Context, node *resource.Node, name string, lost bool) error {
	i := slices.IndexFunc(node.Spec.Pools, func(p resource.NodePool) bool { return p.Name == name })
	if name == resource.DefaultPool {
		return conflict("in-use", "It is the host's own folder, which each has.", "Cordon the host to keep volumes away from it.")
	}
	if i < 0 {
		return missing("pool", name)
	}
	p := &node.Spec.Pools[i]
	seen := node.Pool(p.UID)
	if lost {
		if node.Status.Phase == resource.Degraded && !p.Lost {
			return conflict("not-ready", fmt.Sprintf("Node %s does not report: whether the pool %s is there or lost nobody can say, "+
				"and giving it up can't be undone.", node.Name, name),
				fmt.Sprintf("Wait until it reports; if the host itself is lost: mp nodes remove %s --lost.", node.Name))
		}
		if seen != nil && seen.Message == "" && !p.Lost {
			return conflict("in-use", fmt.Sprintf("The pool %s is there, and not lost.", name), "Leave --lost out.")
		}
		p.Removing, p.Lost = true, true
		return nil
	}
	in, err := a.inPool(ctx, resource.PoolAt{Node: node.UID, Pool: p.UID})
	if err != nil {
		return err
	}
	if len(in) > 0 && !p.Lost {
		const most = 5
		what := strings.Join(in[:min(len(in), most)], ", ")
		if len(in) > most {
			what = fmt.Sprintf("%d volumes and snapshots, among them %s", len(in), what)
		}
		return conflict("in-use", fmt.Sprintf("In the pool %s there is %s.", name, what),
			"What tenants keep there, in the trash too, has to be deleted first. If its disk will never come back, say so with --lost.")
	}
	p.Removing = true
	return nil
}

// inPool is what is in a pool.
func (a *API) inPool(ctx context.Context, at resource.PoolAt) (in []string, err error) {
	volumes, err := a.store.OnHosts(ctx)
	if err != nil {
		return nil, err
	}
	snapshots, err := all(ctx, store.Of[resource.Snapshot](a.store), "")
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		if v.IsIn(at) {
			in = append(in, v.Key())
		}
	}
	for _, s := range snapshots {
		if at == (resource.PoolAt{Node: s.Status.NodeUID, Pool: s.Status.Pool}) {
			in = append(in, "snapshot "+s.Key())
		}
	}
	return in, nil
}
