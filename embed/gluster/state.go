package gluster

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
)

// BrickState is how a brick is.
type BrickState struct {
	Brick
	Online      bool // its process runs, as its node's glusterd says
	PID         int  // 0 if it doesn't
	Total, Free int64
}

// Bricks says how the bricks of a started volume are. Those of nodes that don't answer are
// left out.
func (c Client) Bricks(ctx context.Context, name string) ([]BrickState, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	all, err := c.bricks(ctx, name)
	return all[name], err
}

// AllBricks is Bricks for all started volumes, of which there has to be one, by their names.
func (c Client) AllBricks(ctx context.Context) (map[string][]BrickState, error) {
	return c.bricks(ctx, "all")
}

func (c Client) bricks(ctx context.Context, of string) (map[string][]BrickState, error) {
	var a struct {
		Volumes []struct {
			Name  string `xml:"volName"`
			Nodes []struct {
				Host   string `xml:"hostname"`
				Path   string `xml:"path"`
				Status int    `xml:"status"`
				PID    string `xml:"pid"`
				Total  int64  `xml:"sizeTotal"`
				Free   int64  `xml:"sizeFree"`
			} `xml:"node"`
		} `xml:"volStatus>volumes>volume"`
	}
	if err := c.ask(ctx, &a, "volume", "status", of, "detail"); err != nil {
		return nil, err
	}
	all := map[string][]BrickState{}
	for _, v := range a.Volumes {
		for _, n := range v.Nodes {
			b, err := parseBrick(n.Host + ":" + n.Path)
			if err != nil {
				continue // a daemon that heals, say
			}
			pid, _ := strconv.Atoi(n.PID) // "N/A"
			all[v.Name] = append(all[v.Name], BrickState{Brick: b, Online: n.Status == 1, PID: max(0, pid), Total: n.Total, Free: n.Free})
		}
	}
	return all, nil
}

// Healing is what a brick has that others lack.
type Healing struct {
	Brick
	Connected  bool  // it could be asked; if not, the counts are unknown
	Pending    int64 // files and folders that others have to be given
	SplitBrain int64 // those of which nobody can say who is right
}

// Healing says what has to be healed in a started volume of several replicas, by brick.
func (c Client) Healing(ctx context.Context, name string) ([]Healing, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	var a struct {
		Bricks []struct {
			Name       string `xml:"name"`
			Status     string `xml:"status"`
			Pending    string `xml:"totalNumberOfEntries"`
			SplitBrain string `xml:"numberOfEntriesInSplitBrain"`
		} `xml:"healInfo>bricks>brick"`
	}
	if err := c.ask(ctx, &a, "volume", "heal", name, "info", "summary"); err != nil {
		return nil, err
	}
	var all []Healing
	for _, n := range a.Bricks {
		b, err := parseBrick(n.Name)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", name, err)
		}
		one := Healing{Brick: b, Connected: n.Status == "Connected"}
		if one.Connected {
			one.Pending, err = strconv.ParseInt(n.Pending, 10, 64)
			if err == nil {
				one.SplitBrain, err = strconv.ParseInt(n.SplitBrain, 10, 64)
			}
			if err != nil {
				return nil, fmt.Errorf("volume %s: brick %v: %w", name, b, err)
			}
		}
		all = append(all, one)
	}
	return all, nil
}

// HealAll has every file of a volume looked at, not only those that are known to differ.
func (c Client) HealAll(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	// It prints no XML even with --xml; its exit status can be trusted.
	if _, err := c.Run(ctx, "--mode=script", "volume", "heal", name, "full"); err != nil {
		return fmt.Errorf("gluster volume heal %s full: %w", name, err)
	}
	return nil
}

// Peer is another node of the cluster.
type Peer struct {
	ID string // a UUID
	// Host is zero where glusterd knows a name only, as it does of who asked it in, if the
	// host's resolver has one for his address.
	Host      netip.Addr
	Connected bool
	Member    bool // it has taken up all there is to know
}

// Peers lists the other nodes.
func (c Client) Peers(ctx context.Context) ([]Peer, error) {
	var a struct {
		Peers []struct {
			ID        string   `xml:"uuid"`
			Host      string   `xml:"hostname"`
			Hosts     []string `xml:"hostnames>hostname"`
			Connected int      `xml:"connected"`
			State     int      `xml:"state"`
		} `xml:"peerStatus>peer"`
	}
	if err := c.ask(ctx, &a, "peer", "status"); err != nil {
		return nil, err
	}
	var all []Peer
	for _, p := range a.Peers {
		var host netip.Addr
		for _, name := range append(p.Hosts, p.Host) {
			if a, err := netip.ParseAddr(name); err == nil {
				host = a
			}
		}
		const befriended = 3 // GD_FRIEND_STATE_BEFRIENDED of glusterd-sm.h
		all = append(all, Peer{ID: p.ID, Host: host, Connected: p.Connected == 1, Member: p.State == befriended})
	}
	return all, nil
}

// Join asks another node, whose glusterd is in no cluster, into this one, of which it is a
// member a moment later: see Peers. One that is a member is no error; one that was asked and
// isn't yet, is.
func (c Client) Join(ctx context.Context, host netip.Addr) error {
	peers, err := c.Peers(ctx)
	if err != nil {
		return err
	}
	for _, p := range peers {
		if p.Host == host && !p.Member {
			return fmt.Errorf("node %v was asked in, and is no member yet", host)
		}
		if p.Host == host {
			return nil
		}
	}
	return c.ask(ctx, nil, "peer", "probe", host.String())
}

// Leave has the cluster forget a node, which may be gone. glusterd refuses it as long as
// the node has a brick. One that isn't in it is no error.
func (c Client) Leave(ctx context.Context, host netip.Addr) error {
	peers, err := c.Peers(ctx)
	if err != nil {
		return err
	}
	for _, p := range peers {
		if p.Host == host {
			return c.ask(ctx, nil, "peer", "detach", host.String(), "force")
		}
	}
	return nil
}
