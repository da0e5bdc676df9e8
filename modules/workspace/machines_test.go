package workspace

import (
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

func size(cpu, gib int64) resource.Size {
	return resource.Size{MilliCPU: cpu * 1000, MemoryBytes: gib << 30, DiskBytes: gib << 30}
}

func on(node string) *resource.Machine {
	m := &resource.Machine{}
	m.Spec.Node = node
	return m
}

func TestChoose(t *testing.T) {
	for name, c := range map[string]struct {
		nodes []*candidate
		own   []*resource.Machine
		want  string
	}{
		"the one with room":              {[]*candidate{{"a", size(1, 1), ""}, {"b", size(4, 4), ""}}, nil, "b"},
		"spread before free memory":      {[]*candidate{{"a", size(8, 8), ""}, {"b", size(2, 2), ""}}, []*resource.Machine{on("a")}, "b"},
		"most memory among equals":       {[]*candidate{{"a", size(4, 4), ""}, {"b", size(4, 8), ""}}, nil, "b"},
		"never one that can't be used":   {[]*candidate{{"a", size(8, 8), "is cordoned"}, {"b", size(2, 2), ""}}, nil, "b"},
		"the same host when none is new": {[]*candidate{{"a", size(8, 8), ""}}, []*resource.Machine{on("a")}, "a"},
		"none has room":                  {[]*candidate{{"a", size(1, 8), ""}, {"b", size(8, 1), ""}}, nil, ""},
		"there is none":                  {nil, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if n := choose(c.nodes, size(2, 2), c.own); n != nil {
				got = n.name
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestShortageSaysWhatToDo(t *testing.T) {
	if got, _ := shortage(nil, 2, size(1, 2)); !strings.Contains(got, "no node has joined") || !strings.Contains(got, "token create") {
		t.Errorf("without nodes: %s", got)
	}
	told, detail := shortage([]*candidate{{"host-a", size(1, 1), ""}, {"host-b", size(8, 8), "does not report"}}, 2, size(2, 2))
	if !strings.Contains(told, "2 machines of 2 CPU") || strings.Contains(told, "host-") {
		t.Errorf("the tenant is told: %s", told)
	}
	for _, want := range []string{"host-a has 1 CPU", "host-b does not report"} {
		if !strings.Contains(detail, want) {
			t.Errorf("the operator reads %q, which has no %q", detail, want)
		}
	}
}
