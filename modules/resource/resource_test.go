package resource

import (
	"maps"
	"strings"
	"testing"
)

func TestConditionsKeepWhenTheyChanged(t *testing.T) {
	var cs Conditions
	if !cs.Set(Condition{Type: "Ready", Status: False, Message: "a"}) {
		t.Error("a new condition is no change")
	}
	since := cs.Get("Ready").Since
	if !cs.Set(Condition{Type: "Ready", Status: False, Message: "b"}) || !cs.Get("Ready").Since.Equal(since) {
		t.Error("a new message must be a change, and must keep Since")
	}
	if cs.Set(Condition{Type: "Ready", Status: False, Message: "b"}) {
		t.Error("the same again is a change")
	}
	if !cs.Set(Condition{Type: "Ready", Status: True}) || !cs.Is("Ready") {
		t.Error("True did not arrive")
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "shop", "a-1", "0a", strings.Repeat("a", MaxName)} {
		if err := CheckName("workspace", good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "A", "a.b", "a_b", "ä", "a/b", "a b", strings.Repeat("a", MaxName+1)} {
		if CheckName("workspace", bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestSizeText(t *testing.T) {
	for want, got := range map[string]string{
		"2":                             Size{MilliCPU: 2000}.CPU(),
		"1500m":                         Size{MilliCPU: 1500}.CPU(),
		"2Gi":                           Size{MemoryBytes: 2 << 30}.Memory(),
		"512Mi":                         Size{MemoryBytes: 512 << 20}.Memory(),
		"5":                             Size{MemoryBytes: 5}.Memory(),
		"1.5Ti":                         Size{DiskBytes: 3 << 39}.Disk(),
		"1 CPU, 1Gi memory, 10Gi disk":  Size{1000, 1 << 30, 10 << 30}.String(),
		"0 CPU, -1Gi memory, -1Ki disk": Size{0, -1 << 30, -1 << 10}.String(),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// removers are the functions that remove what stands in a place and doesn't count.
var removers = map[string]string{
	"volumekeys":    "modules/storage, with the volume, which keeps its organization from being deleted",
	"machines":      "modules/workspace: removeMachines",
	"workspacekeys": "modules/workspace: remove",
	"memberships":   "modules/api: dropMemberships",
	"invitations":   "modules/api: dropMemberships",
}

func TestNoKindIsLeftBehind(t *testing.T) {
	counted := map[string]bool{}
	for _, k := range Counted() {
		counted[k.Name] = true
	}
	left := maps.Clone(removers)
	for _, k := range Kinds() {
		remover, named := left[k.Name]
		delete(left, k.Name)
		switch {
		case named && (counted[k.Name] || k.Scope == Platform):
			t.Errorf("%s: %s need not remove it, take it off the list", k.Name, remover)
		case !named && !counted[k.Name] && k.Scope != Platform:
			t.Errorf("%s stands in one %s and would be left behind when that goes: give it Asks,\n"+
				"or remove it in the function that removes the %s and name that among removers", k.Name, k.Scope, k.Scope)
		}
	}
	if len(left) > 0 {
		t.Errorf("no such kind: %v", left)
	}
}
