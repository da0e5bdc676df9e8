package workspace

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/multipaas/multipaas/appliance/config"
	"github.com/multipaas/multipaas/modules/resource"
	"github.com/multipaas/multipaas/modules/wire"
)

// Settings are what an operator writes about all workspaces.
type Settings struct {
	Nodes          string `yaml:"nodes" doc:"address range of the machines of every workspace"`
	Pods           string `yaml:"pods" doc:"address range of its pods"`
	Services       string `yaml:"services" doc:"address range of its services"`
	Datastore      string `yaml:"datastore" doc:"where a new workspace's plane keeps its objects: kine or etcd"`
	DatastoreLimit int64  `yaml:"datastore_limit" doc:"how many MiB that may take; 0: 2048 for kine, 256 for etcd"`
}

// DefaultSettings are the settings of an operator who says nothing.
func DefaultSettings() Settings {
	return Settings{
		Nodes:     "172.30.0.0/20",
		Pods:      "10.42.0.0/16",
		Services:  "10.43.0.0/16",
		Datastore: string(resource.Kine),
	}
}

// Plan is the address plan; only if Check finds nothing wrong with s can it be
// used.
func (s Settings) Plan() wire.Plan {
	nodes, wrong1, _ := config.ParseNetwork(s.Nodes)
	pods, wrong2, _ := config.ParseNetwork(s.Pods)
	services, wrong3, _ := config.ParseNetwork(s.Services)
	if wrong1+wrong2+wrong3 != "" {
		return wire.Plan{}
	}
	return wire.NewPlan(nodes, pods, services)
}

// Check says what is wrong with s.
func (s Settings) Check(fail func(field, value, wrong, remedy string)) {
	if !slices.Contains([]resource.Datastore{resource.Kine, resource.Etcd}, resource.Datastore(s.Datastore)) {
		fail("datastore", s.Datastore, "unknown", "use kine or etcd")
	}
	// A cluster with its addons takes 4 MiB; etcd and SQLite are not made for
	// more than 8 GiB.
	if l := s.DatastoreLimit; l != 0 && (l < 16 || l > 8<<10) {
		fail("datastore_limit", strconv.FormatInt(l, 10), "not a size that works", "use 16 to 8192 (MiB), or 0 for the default")
	}
	readable := true
	// Machines take .10 and up, hosts' gateways the upper half from 2048 on.
	ranges := []struct {
		field, text string
		bits        int
		why         string
	}{
		{"nodes", s.Nodes, 20, "machines and hosts would not fit"},
		{"pods", s.Pods, 16, "254 machines with 254 pods each would not fit"},
		{"services", s.Services, 24, "services would not fit"},
	}
	for _, r := range ranges {
		p, wrong, remedy := config.ParseNetwork(r.text)
		switch {
		case wrong != "":
			fail(r.field, r.text, wrong, remedy)
			readable = false
		case p.Bits() > r.bits:
			fail(r.field, r.text, "too small: "+r.why, fmt.Sprintf("use a /%d or larger", r.bits))
		}
	}
	if !readable {
		return
	}
	for i, r := range ranges {
		a, _, _ := config.ParseNetwork(r.text)
		for _, other := range ranges[i+1:] {
			if b, _, _ := config.ParseNetwork(other.text); a.Overlaps(b) {
				fail(r.field, r.text, fmt.Sprintf("overlaps %s %s", other.field, b), "use networks apart from each other")
			}
		}
	}
}
