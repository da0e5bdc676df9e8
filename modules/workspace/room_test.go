package workspace

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/multipaas/multipaas/modules/resource"
)

const mib = 1 << 20

func TestShares(t *testing.T) {
	const most = 2 << 30
	one := func(used int64) holder {
		return holder{workspace: "acme/web/one", account: "acme", pool: resource.Kine, used: used, max: most, ours: true}
	}
	other := func(name string, used int64, ours bool) holder {
		account, _, _ := strings.Cut(name, "/")
		return holder{workspace: name, account: account, pool: resource.Kine, used: used, max: most, ours: ours}
	}
	for _, row := range []struct {
		what  string
		all   []holder
		bound int64
		free  int64
		want  int64
		why   string
	}{
		{"alone, with room", []holder{one(100 * mib)}, 10 << 30, 100 << 30, most, ""},
		{"no bound", []holder{one(100 * mib)}, 0, 100 << 30, most, ""},
		{"what is left of the account", []holder{one(100 * mib)}, 500 * mib, 100 << 30, 500 * mib, "the account acme may take 500Mi together and take 100Mi"},
		{"in halves", []holder{one(100 * mib), other("acme/web/two", 200*mib, true)}, 500 * mib, 100 << 30, 200 * mib, "may take 500Mi together"},
		{"with one of another server", []holder{one(100 * mib), other("acme/web/two", 200*mib, false)}, 500 * mib, 100 << 30, 200 * mib, "may take 500Mi together"},
		{"another's are another's", []holder{one(100 * mib), other("beta/web/two", 400*mib, true)}, 500 * mib, 100 << 30, 500 * mib, "may take 500Mi together"},
		{"over the bound", []holder{one(600 * mib)}, 500 * mib, 100 << 30, 600 * mib, "may take 500Mi together"},
		{"new, over the bound", []holder{one(1 * mib), other("acme/web/two", 600*mib, true)}, 500 * mib, 100 << 30, minShare, "may take 500Mi together"},
		{"hardly any disk", []holder{one(100 * mib), other("beta/web/two", 0, true)}, 10 << 30, 40 * mib, 120 * mib, "short of room"},
		{"no disk", []holder{one(100 * mib)}, 10 << 30, -5 << 30, 100 * mib, "short of room"},
		{"no disk, another server's", []holder{one(100 * mib), other("beta/web/two", 0, false)}, 10 << 30, 40 * mib, 140 * mib, "short of room"},
	} {
		got := shares(row.all, func(string) int64 { return row.bound }, map[resource.Datastore]int64{resource.Kine: row.free})["acme/web/one"]
		if got.limit != row.want || !strings.Contains(got.why, row.why) || row.why == "" && got.why != "" {
			t.Errorf("%s: got %+v, want %d MiB, %q", row.what, got, row.want/mib, row.why)
		}
	}
	// What is free of one pool says nothing of another.
	in := one(100 * mib)
	in.pool = resource.Etcd
	if got := shares([]holder{in}, func(string) int64 { return 0 }, map[resource.Datastore]int64{resource.Kine: 0}); got[in.workspace].limit != most {
		t.Errorf("etcd, when the disk of others is full: %+v", got)
	}
}

// TestRoomCondition: a datastore is full when it takes nothing new, and not before.
func TestRoomCondition(t *testing.T) {
	for _, row := range []struct {
		used   int64
		reason string
		says   []string
	}{
		{0, "Enough", nil},
		{90 * mib, "Enough", nil},
		{91 * mib, "NearlyFull", []string{"take 91 % of what they may (100Mi), as others need it: new ones are refused when it is full", "Delete"}},
		{98 * mib, "NearlyFull", []string{"98 %"}},
		{99 * mib, "Full", []string{"take 99 % of", "new ones are refused, others go on", "Delete"}},
		{300 * mib, "Full", []string{"take 100 % of"}},
	} {
		got := roomCondition(row.used, share{100 * mib, "others need it"})
		if got.Reason != row.reason || (got.Status == resource.False) != (row.reason == "Full") || (got.Message == "") != (row.says == nil) {
			t.Errorf("%d MiB: %+v", row.used/mib, got)
		}
		for _, want := range row.says {
			if !strings.Contains(got.Message, want) {
				t.Errorf("%d MiB: %q, want %q", row.used/mib, got.Message, want)
			}
		}
	}
}

// TestSharesAddUp: whatever is written between two looks, an account stays within
// its bound and nobody takes what is to be left, but for what each may always take.
func TestSharesAddUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		bounds := map[string]int64{"a": r.Int64N(4 << 30), "b": r.Int64N(4 << 30), "c": 0}
		free := map[resource.Datastore]int64{resource.Kine: r.Int64N(8<<30) - (1 << 30), resource.Etcd: r.Int64N(1 << 30)}
		var all []holder
		for i := range 1 + r.IntN(30) {
			h := holder{workspace: fmt.Sprint(i), account: []string{"a", "b", "c"}[r.IntN(3)], pool: resource.Kine, used: r.Int64N(1 << 29), max: 1 << 30, ours: r.IntN(4) > 0}
			if r.IntN(2) == 0 {
				h.pool, h.max = resource.Etcd, 256<<20
			}
			all = append(all, h)
		}
		grown, account, used := map[resource.Datastore]int64{}, map[string]int64{}, map[string]int64{}
		always := map[string]int64{}
		got := shares(all, func(a string) int64 { return bounds[a] }, free)
		for _, h := range all {
			used[h.account] += h.used
			s, ok := got[h.workspace]
			if ok != h.ours {
				t.Fatalf("%+v: share %v, %v", h, s, ok)
			}
			if !ok {
				account[h.account] += h.used
				continue
			}
			if s.limit > h.max || s.limit < min(minShare, h.max) {
				t.Fatalf("%+v has %+v", h, s)
			}
			grow := max(0, s.limit-h.used)
			account[h.account] += h.used + grow
			if s.limit > minShare {
				grown[h.pool] += grow
			} else {
				always[h.account] += minShare
			}
		}
		for name, bound := range bounds {
			if bound > 0 && account[name] > max(bound, used[name])+always[name] {
				t.Fatalf("account %s may come to take %d MiB of %d", name, account[name]/mib, bound/mib)
			}
		}
		for pool, left := range free {
			if grown[pool] > max(0, left) {
				t.Fatalf("%s may take %d MiB more, and %d are left", pool, grown[pool]/mib, left/mib)
			}
		}
	}
}
