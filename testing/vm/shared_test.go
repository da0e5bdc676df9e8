package vm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/multipaas/multipaas/appliance/pki"
	"github.com/multipaas/multipaas/testing/vm"
)

// storing is a host with a copy of a shared volume: a virtual machine, or a network of its own on one, for there are two machines
// and three copies.
type storing struct {
	*vm.VM
	dir, network string
	address      netip.Addr
	identity     map[string][]byte
}

// TestSharedVolume has one volume over two virtual machines, by the real daemons and within the bounds of the node's unit: what one writes
// the other reads, also what was written while it had no power, which is in all three copies then.
func TestSharedVolume(t *testing.T) {
	if os.Getenv("MULTIPAAS_LONG") == "" {
		t.Skip("it takes some minutes")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, node := bare(ctx, t, "embed/gluster")
	wake := func(v *vm.VM) error { return v.Wake(ctx) }
	both(t, wake, server, node)

	cert, key, err := pki.NewCA("storage")
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.ParseCA(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &storing{VM: server, dir: data + "/a", address: server.Address()}
	b := &storing{VM: node, dir: data + "/b", address: node.Address()}
	c := &storing{VM: server, dir: data + "/c", address: a.address.Next().Next(), network: "/run/netns/c"}
	hosts := []*storing{a, b, c}
	type brick struct{ Host, Path string }
	var bricks []brick
	for i, h := range hosts {
		cert, key, err := ca.Issue(pki.Request{CommonName: fmt.Sprintf("host%d", i), Client: true, Server: true})
		if err != nil {
			t.Fatal(err)
		}
		h.identity = map[string][]byte{"Cert": cert, "Key": key, "CA": ca.CertPEM()}
		bricks = append(bricks, brick{h.address.String(), "/bricks/v1/volume/brick"})
	}
	step := func(h *storing, do string) error {
		config := map[string]any{"ID": "vm-" + h.dir[len(h.dir)-1:], "Dir": h.dir, "Images": data + "/images", "Runc": "/run/multipaas/runc" + h.dir[len(h.dir)-1:],
			"Payload": "/opt/multipaas", "Network": h.network, "Address": h.address}
		text, err := json.Marshal(map[string]any{"Do": do, "Config": config, "Identity": h.identity, "Volume": "v1", "At": h.dir + ".at", "Bricks": bricks})
		if err == nil {
			_, err = confined(ctx, h.VM, "/opt/multipaas/gluster.test", "MULTIPAAS_TEST_STEP="+string(text))
		}
		if err != nil {
			err = fmt.Errorf("%s of %s: %w", do, h.dir, err)
		}
		return err
	}
	steps := func(do string, hosts ...*storing) {
		t.Helper()
		began, byMachine := time.Now(), map[*vm.VM][]*storing{}
		for _, h := range hosts {
			byMachine[h.VM] = append(byMachine[h.VM], h)
		}
		var wg sync.WaitGroup
		for _, of := range byMachine {
			wg.Go(func() {
				for _, h := range of {
					if err := step(h, do); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		t.Logf("%s took %.0f s", do, time.Since(began).Seconds())
	}
	// The third host has a network of its own behind the server's, which answers for it.
	must(ctx, t, server, "sh", "-euc", `ip netns add c
ip link add c0 type veth peer name eth0 netns c
ip -n c addr add $2/24 dev eth0; ip -n c link set lo up; ip -n c link set eth0 up; ip link set c0 up
ip route add $2/32 dev c0 src $1
for f in ip_forward conf/eth0/proxy_arp conf/c0/proxy_arp; do echo 1 >/proc/sys/net/ipv4/$f; done`, "sh", a.address.String(), c.address.String())
	steps("serve", hosts...)
	steps("make", a)
	steps("mount", a, b)

	write := func(v *storing, name string) (sum string) {
		t.Helper()
		return must(ctx, t, v.VM, "sh", "-euc", "dd if=/dev/urandom of=$0 bs=64k count=128 conv=fsync status=none; sha256sum <$0", v.dir+".at/"+name)
	}
	reads := func(v *storing, file, want string) {
		t.Helper()
		if got := must(ctx, t, v.VM, "sh", "-euc", "sha256sum <$0", file); got != want {
			t.Errorf("%s of %s is %s, want %s", file, v.Name(), got, want)
		}
	}
	first := write(a, "first")
	reads(b, b.dir+".at/first", first)
	second := write(b, "second")
	reads(a, a.dir+".at/second", second)

	node.Cut()
	third := write(a, "third") // two of three copies are enough
	if err := node.Power(); err != nil {
		t.Fatal(err)
	}
	steps("serve", b)
	steps("healed", a)
	steps("mount", b)
	reads(b, b.dir+".at/third", third)
	for _, h := range hosts {
		for name, want := range map[string]string{"first": first, "second": second, "third": third} {
			reads(h, h.dir+"/bricks/v1/volume/brick/"+name, want)
		}
	}

	steps("remove", a)
	steps("clear", hosts...)
	for _, v := range []*vm.VM{server, node} {
		left := must(ctx, t, v, "sh", "-c", "losetup -a; grep -e "+data+"/ /proc/mounts; pgrep gluster; ls -d "+data+"/?; true")
		if strings.TrimSpace(left) != "" {
			t.Errorf("once it is removed %s has %s", v.Name(), left)
		}
	}
}
