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

// Nobody counts the conditions: with a sixth one a workspace is as ready as with
// five, if all are true and nothing kept the pass from looking at more.
func TestReadyIsEveryConditionOfThePass(t *testing.T) {
	six := []string{resource.WorkspaceNetworkReady, resource.WorkspacePlaneReady, resource.WorkspaceScheduled,
		resource.WorkspaceMachinesReady, resource.WorkspaceAddonsReady, "VolumesReady"}
	look := func(untrue string) *pass {
		p := &pass{Workspace: &resource.Workspace{}, ready: 2}
		p.Generation = 3
		for _, t := range six {
			message := ""
			if t == untrue {
				message = "one is being made"
			}
			p.set(t, "Yes", "No", message)
		}
		return p
	}
	for name, c := range map[string]struct {
		untrue   string
		cut      bool // the pass ended early
		was      resource.Phase
		observed int64
		want     resource.Phase
	}{
		"all are true":                  {was: resource.Creating, want: resource.Ready},
		"the sixth is not":              {untrue: "VolumesReady", was: resource.Creating, want: resource.Creating},
		"the sixth is not any more":     {untrue: "VolumesReady", was: resource.Ready, observed: 3, want: resource.Degraded},
		"the first pass after a change": {untrue: "VolumesReady", was: resource.Ready, observed: 2, want: resource.Updating},
		"the next pass after a change":  {untrue: "VolumesReady", was: resource.Updating, observed: 3, want: resource.Updating},
		"true as far as it got":         {cut: true, was: resource.Ready, observed: 3, want: resource.Degraded},
		"the very first pass":           {untrue: "PlaneReady", want: resource.Creating},
	} {
		t.Run(name, func(t *testing.T) {
			s := resource.WorkspaceStatus{State: resource.State{Phase: c.was, ObservedGeneration: c.observed}}
			s.Conditions.Set(resource.Condition{Type: "SaidBySomebodyElse", Status: resource.False})
			look(c.untrue).writeTo(&s, !c.cut)
			if s.Phase != c.want || s.MachinesReady != 2 || s.ObservedGeneration != 3 || len(s.Conditions) != 7 {
				t.Errorf("got %s (want %s): %+v", s.Phase, c.want, s)
			}
		})
	}
}
