package resource

import (
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
