package inventory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
)

// namespacesAndLinks looks at the network: the host's own namespace, those of
// workspaces and those of machines.
func (s *scan) namespacesAndLinks() error {
	names := s.traces.Network
	if names.Workspace == "" {
		return nil // nobody makes networks
	}
	if err := s.network("", Appliance); err != nil {
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
			var st unix.Stat_t
			if err := unix.Stat(netns.Root+"/"+name, &st); err == nil {
				item.Identity = strconv.FormatUint(st.Ino, 10)
				s.namespaces[st.Ino] = owner
			}
			s.add(item)
			// Gone meanwhile, or half made: then it holds nothing.
			if err := s.network(name, owner); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.inv.Items[len(s.inv.Items)-1].Detail = err.Error()
			}
		}
	}
	return nil
}

// network looks at what is in one namespace; "" is the host's, where only what
// bears our names is ours.
func (s *scan) network(name string, owner Owner) error {
	names := s.traces.Network
	do := func(fn func() error) error { return fn() }
	handle := func() (*netlink.Handle, error) { return netlink.NewHandle() }
	if name != "" {
		ns, err := netns.Open(name)
		if err != nil {
			return err
		}
		defer ns.Close()
		do, handle = ns.Do, ns.Netlink
	}
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list interfaces: %w", err)
	}
	ours := map[int]netlink.Link{}
	where := name
	if where == "" {
		where = "host"
	}
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
	routes, err := h.RouteList(nil, netlink.FAMILY_V4)
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
		text := to + " dev " + l.Attrs().Name
		if r.Gw != nil {
			text = to + " via " + r.Gw.String() + " dev " + l.Attrs().Name
		}
		o := owner
		if name == "" {
			o = Workspace(strings.TrimPrefix(l.Attrs().Name, names.Uplink))
		}
		s.add(Item{Kind: Route, Name: text, Namespace: name, Owner: o, Like: where + " " + text})
	}
	return do(func() error { return s.tables(name, where, owner) })
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
		text := familyName(t.Family) + " " + t.Name
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

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return "family " + strconv.Itoa(int(f))
}
