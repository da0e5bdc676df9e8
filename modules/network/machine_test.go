package network

import (
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/multipaas/multipaas/appliance/netns"
)

// TestNamespaceOfOtherUsers: an agent that knew less of a machine has made its
// namespace.
func TestNamespaceOfOtherUsers(t *testing.T) {
	n := New(Config{Underlay: netip.MustParseAddr("192.0.2.1")})
	m := machinePort{UID: fmt.Sprintf("mptest-users-%d", os.Getpid())}
	t.Cleanup(func() {
		if err := netns.Remove(m.namespace()); err != nil {
			t.Error(err)
		}
	})
	// made says whether it is the host's own, and which one it is.
	made := func() (ours bool, which uint64) {
		ns, err := n.makeNamespace(m)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		users, ours, err := ns.Owner()
		if err != nil {
			t.Fatal(err)
		}
		users.Close()
		var st unix.Stat_t
		if err := unix.Stat(ns.Path(), &st); err != nil {
			t.Fatal(err)
		}
		return ours, st.Ino
	}
	if ours, _ := made(); !ours {
		t.Error("one of no users is not the host's")
	}
	m.FirstUID = 0x0ffd_0000
	ours, first := made()
	if ours {
		t.Error("one of the host's is taken for a machine with users of its own")
	}
	if ours, again := made(); ours || again != first {
		t.Error("one that is right is made anew")
	}
}
