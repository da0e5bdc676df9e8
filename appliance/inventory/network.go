package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/multipaas/multipaas/appliance/netns"
)

// namespacesAndLinks looks at the network: the host's own namespace, those of
// workspaces and those of machines.
func (s *scan) namespacesAndLinks() error {
	names := s.traces.Network
	if names.Workspace == "" {
		return nil // nobody makes networks
	}
	if err := s.network("", "host", Appliance); err != nil {
		return err
	}
	for _, kind := range []struct {
		prefix string
		owner  func(string) Owner
	}{{names.Workspace, Workspace}, {names.Machine, Machine}} {
		there, err := netns.List(kind.prefix)
		if err != nil {
			return err
		}
		for _, name := range there {
			owner := kind.owner(strings.TrimPrefix(name, kind.prefix))
			item := Item{Kind: Netns, Name: name, Owner: owner}
			if info, err := os.Stat(netns.Root + "/" + name); err == nil {
				item.Identity = FileIdentity(info)
				s.namespaces[item.Identity] = owner
			}
			s.add(item)
			// Gone meanwhile, or half made: then it holds nothing.
			err := Inside(name, func() error { return s.network(name, name, owner) })
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.inv.Items[len(s.inv.Items)-1].Detail = err.Error()
			}
		}
	}
	return nil
}

// Inside runs fn on a thread in a network namespace; "" is the host's.
func Inside(namespace string, fn func() error) error {
	if namespace == "" {
		return fn()
	}
	ns, err := netns.Open(namespace)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(fn)
}

// network looks at what is in the namespace that the thread is in. The name of the
// host's is "": there only what bears our names is ours.
func (s *scan) network(name, where string, owner Owner) error {
	names := s.traces.Network
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	ours := map[int]netlink.Link{}
	for _, l := range links {
		a := l.Attrs()
		if a.Name == "lo" || name == "" && !strings.HasPrefix(a.Name, names.Uplink) {
			continue
		}
		ours[a.Index] = l
		item := Item{
			Kind:      Link,
			Name:      a.Name,
			Namespace: name,
			Owner:     owner,
			Like:      where + " " + a.Name,
			Detail:    l.Type(),
			Identity:  strconv.Itoa(a.Index),
		}
		switch {
		case name == "":
			item.Owner = Workspace(strings.TrimPrefix(a.Name, names.Uplink))
		case strings.HasPrefix(name, names.Workspace) && strings.HasPrefix(a.Name, names.Port):
			// The alias says whose port it is.
			if uid, _, _ := strings.Cut(a.Alias, " "); uid != "" {
				item.Owner = Machine(uid)
			}
		case strings.HasPrefix(name, names.Workspace) && !slices.Contains(names.Links, a.Name):
			item.Owner = Nobody
		case strings.HasPrefix(name, names.Machine) && a.Name != names.MachineLink:
			item.Like = where + " " + l.Type() // pods' ends have names by chance
		}
		s.add(item)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		l, mine := ours[r.LinkIndex]
		if !mine || strings.HasPrefix(name, names.Machine) && int(r.Protocol) != names.RouteProtocol {
			continue
		}
		to := "default"
		if r.Dst != nil {
			to = r.Dst.String()
		}
		if r.Gw != nil {
			to += " via " + r.Gw.String()
		}
		text := to + " dev " + l.Attrs().Name
		o := owner
		if name == "" {
			o = Workspace(strings.TrimPrefix(l.Attrs().Name, names.Uplink))
		}
		s.add(Item{Kind: Route, Name: text, Namespace: name, Owner: o, Like: where + " " + text})
	}
	return s.tables(name, where, owner)
}

// tables looks at the firewall of the namespace that the thread is in.
func (s *scan) tables(name, where string, owner Owner) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTables()
	if err != nil {
		return fmt.Errorf("list firewall tables: %w", err)
	}
	for _, t := range tables {
		if name == "" && !slices.Contains(s.traces.Network.Tables, t.Name) {
			continue
		}
		text := cmp.Or(families[t.Family], fmt.Sprint("family ", t.Family)) + " " + t.Name
		s.add(Item{Kind: Rules, Name: text, Namespace: name, Owner: owner, Like: where + " " + text})
		if strings.HasPrefix(name, s.traces.Network.Machine) {
			continue // kube-proxy's, as many as there are Services
		}
		chains, err := c.ListChainsOfTableFamily(t.Family)
		if err != nil {
			return fmt.Errorf("list firewall chains: %w", err)
		}
		for _, ch := range chains {
			if ch.Table.Name != t.Name {
				continue
			}
			rules, err := c.GetRules(t, ch)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("list firewall rules: %w", err)
			}
			s.inv.Number["nft rules of "+where] += int64(len(rules))
		}
	}
	return nil
}

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4:   "ip",
	nftables.TableFamilyIPv6:   "ip6",
	nftables.TableFamilyINet:   "inet",
	nftables.TableFamilyBridge: "bridge",
	nftables.TableFamilyNetdev: "netdev",
}
