package wire

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

func TestPlanGivesEveryoneAnAddressOfHisOwn(t *testing.T) {
	p := DefaultPlan()
	seen := map[netip.Addr]string{p.Plane: "plane"}
	pods := map[netip.Prefix]int{}
	for i := 1; i <= resource.MaxMachines; i++ {
		address, cidr := p.Machine(i)
		if was, taken := seen[address]; taken || !p.Nodes.Contains(address) {
			t.Fatalf("machine %d: address %v: taken by %q, or outside %v", i, address, was, p.Nodes)
		}
		seen[address] = "machine"
		if was, taken := pods[cidr]; taken || !p.Pods.Contains(cidr.Addr()) || cidr.Masked() != cidr {
			t.Fatalf("machine %d: pods %v: taken by %d, or outside %v", i, cidr, was, p.Pods)
		}
		pods[cidr] = i
	}
	for slot := 1; slot <= resource.MaxMachines; slot++ {
		address := p.Gateway(slot)
		if was, taken := seen[address]; taken || !p.Nodes.Contains(address) {
			t.Fatalf("gateway %d: address %v: taken by %q, or outside %v", slot, address, was, p.Nodes)
		}
		seen[address] = "gateway"
	}
}

func TestNetworkForEachHost(t *testing.T) {
	plan := DefaultPlan()
	w := &resource.Workspace{InOrganization: resource.InOrganization{Account: "acme", Organization: "web"}}
	w.Name = "shop"
	w.Status.ID, w.Status.VNI, w.Status.NodeSlots = "00002a", 42, map[string]int{"n1": 1, "n2": 2}
	machine := func(name, node string, index int) *resource.Machine {
		m := &resource.Machine{InWorkspace: resource.InWorkspace{Account: "acme", Organization: "web", Workspace: "shop"}}
		m.Name, m.Spec.Node, m.Spec.Index = name, node, index
		return m
	}
	machines := []*resource.Machine{machine("shop-1", "n1", 1), machine("shop-2", "n2", 2), machine("shop-3", "away", 3)}
	hosts := map[string]netip.Addr{"s1": netip.MustParseAddr("192.0.2.1"), "n1": netip.MustParseAddr("192.0.2.11"), "n2": netip.MustParseAddr("192.0.2.12")}

	names := func(n Network) string {
		var out []string
		for _, m := range n.Members {
			out = append(out, m.Name+"@"+m.Host.String())
		}
		return strings.Join(out, " ")
	}
	door := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")}
	moved := netip.MustParseAddr("198.51.100.9") // n1 has it still, by what it said, and n2 already
	closed := Closed([]*resource.Node{
		{Status: resource.NodeStatus{Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.1"), moved}}},
		{Status: resource.NodeStatus{Addresses: []netip.Addr{moved}}}, {},
	}, hosts, door, nil, []netip.Addr{netip.MustParseAddr("192.0.2.200"), door[0]})
	onServer := NetworkFor(w, plan, machines, "s1", "s1", hosts, door, closed)
	if onServer.Gateway.Addr() != plan.Plane {
		t.Errorf("the server's own address is %v, want the plane's", onServer.Gateway)
	}
	if got, want := names(onServer), "shop-1@192.0.2.11 host-n1@192.0.2.11 shop-2@192.0.2.12 host-n2@192.0.2.12"; got != want {
		t.Errorf("on the server: members %s, want %s", got, want)
	}
	onNode := NetworkFor(w, plan, machines, "n1", "s1", hosts, door, closed)
	if onNode.Gateway.Addr() != plan.Gateway(1) {
		t.Errorf("on n1: own address %v, want %v", onNode.Gateway, plan.Gateway(1))
	}
	if got, want := names(onNode), "plane@192.0.2.1 shop-1@192.0.2.11 shop-2@192.0.2.12 host-n2@192.0.2.12"; got != want {
		t.Errorf("on n1: members %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(onNode.Hosts), "[192.0.2.1 192.0.2.11 192.0.2.12 192.0.2.200 198.51.100.1 198.51.100.9 203.0.113.1]"; got != want {
		t.Errorf("on n1: hosts %s, want %s", got, want)
	}
	for _, m := range onNode.Members {
		if leads := len(m.Door) > 0; leads != (m.Name == PlaneMember) {
			t.Errorf("on n1: member %s leads to the front door at %v", m.Name, m.Door)
		}
	}
	if fmt.Sprint(door) != "[192.0.2.1 198.51.100.1]" {
		t.Errorf("the addresses of the door are %v now", door)
	}
}

func TestNamesOfTheDoor(t *testing.T) {
	d := Door{Names: []string{"*.*.*.*.paas.example", "*.k8s.paas.example", "api.paas.example", "cloud.example", "*.old.example"}}
	for name, want := range map[string]bool{
		"hello.shop.web.acme.paas.example.": true, "API.Paas.Example": true, "cloud.example.": true,
		"more.hello.shop.web.acme.paas.example": true, "0000ff.k8s.paas.example": true, "a.old.example": true, "b.a.old.example": true,
		"pacs.paas.example": false, "_tcp.web.acme.paas.example": false, "k8s.paas.example": false, "old.example": false, ".web.acme.paas.example": false,
		"xapi.paas.example": false, "hello.shop.web.acme.xpaas.example": false, "hello.shop.web.acme.paas.example.evil": false,
		"paas.example.": false, ".paas.example": false, "xpaas.example.": false, "paas.example.evil.": false, "a.cloud.example": false, "": false, ".": false,
	} {
		if got := d.Has(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

// TestNamesOfTheDoorWhileHostsAreUpgraded: hosts and servers don't change at the same time.
func TestNamesOfTheDoorWhileHostsAreUpgraded(t *testing.T) {
	const app, site = "hello.shop.web.acme.paas.example", "pacs.paas.example"
	// old is what an agent from before makes of a message.
	old := func(message []byte, name string) bool {
		var d struct{ Names []string }
		if err := json.Unmarshal(message, &d); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(d.Names, func(n string) bool {
			above, below := strings.CutPrefix(n, "*")
			return n == name || below && strings.HasSuffix(name, above) && len(name) > len(above)
		})
	}
	message, err := json.Marshal(Door{Names: []string{"*.*.*.*.paas.example"}, Loose: []string{"*.paas.example"}})
	if err != nil {
		t.Fatal(err)
	}
	if !old(message, app) {
		t.Errorf("an agent from before finds no app by %s", message)
	}
	for from, c := range map[string]struct {
		message string
		site    bool
	}{"this one": {string(message), false}, "before": {`{"names":["*.paas.example"]}`, true}} {
		var d Door
		if err := json.Unmarshal([]byte(c.message), &d); err != nil {
			t.Fatal(err)
		}
		if !d.Has(app) || d.Has(site) != c.site {
			t.Errorf("by a server from %s: the app is the door's: %v, a name of the site's: %v", from, d.Has(app), d.Has(site))
		}
	}
}
