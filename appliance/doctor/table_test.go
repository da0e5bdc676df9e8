package doctor

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/appliance/inventory"
	"github.com/multipaas/multipaas/appliance/netns"
)

// The tables of modules/network.
const (
	tableName    = "multipaas"
	sendersTable = "multipaas-vxlan"
)

// TestRemoveTable removes the host's tables in a namespace of its own, and nothing
// else: a host with a workspace wants its own, so no datacenter has one to remove.
func TestRemoveTable(t *testing.T) {
	var random [4]byte
	_, _ = rand.Read(random[:])
	name := "mpt-doctor-" + hex.EncodeToString(random[:])
	ns, err := netns.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = ns.Close()
		if err := netns.Remove(name); err != nil {
			t.Error(err)
		}
	}()
	const forwards = "/proc/sys/net/ipv4/ip_forward"
	err = ns.Do(func() error {
		run := func(script string) string {
			cmd := exec.Command("nft", "-f", "-")
			if script == "" {
				cmd = exec.Command("nft", "list", "tables")
			}
			cmd.Stdin = strings.NewReader(script)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("nft %s: %v: %s", script, err, out)
			}
			return string(out)
		}
		forwarding := func() string {
			data, err := os.ReadFile(forwards)
			if err != nil {
				t.Error(err)
			}
			return string(bytes.TrimSpace(data))
		}
		if err := os.WriteFile(forwards, []byte("1"), 0); err != nil {
			return err
		}
		run("table ip " + sendersTable + " {}; table ip " + tableName + " { chain closed {}; }; table ip foreign { chain closed {}; }")
		if err := removeTable(Orphan{Item: inventory.Item{Name: "ip " + sendersTable}}); err != nil {
			return err
		}
		if got := run(""); strings.Contains(got, sendersTable) || !strings.Contains(got, tableName) || !strings.Contains(got, "foreign") || forwarding() != "1" {
			t.Errorf("without the table of senders there are\n%sforwarding is %s", got, forwarding())
		}
		if err := removeTable(Orphan{Item: inventory.Item{Name: "ip " + tableName}}); err != nil {
			return err
		}
		if got := run(""); got != "table ip foreign\n" || forwarding() != "0" {
			t.Errorf("without the platform's table there are\n%sforwarding is %s; want the foreign one, and none as before", got, forwarding())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
