package gluster

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// volfile is as glusterd writes it, with what nobody reads left out.
func volfile(bricks, arbiters int) string {
	text, names := "", ""
	for i := range bricks {
		text += fmt.Sprintf("volume v-client-%d\n    type protocol/client\n    option remote-subvolume /bricks/b%d/volume/brick\n"+
			"    option remote-host 10.0.0.%d\nend-volume\n\n", i, i, i+1)
		names += fmt.Sprintf(" v-client-%d", i)
	}
	if bricks > 1 {
		text += "volume v-replicate-0\n    type cluster/replicate\n    option afr-pending-xattr v-client-0,v-client-7,v-client-2\n"
		if arbiters > 0 {
			text += fmt.Sprintf("    option arbiter-count %d\n", arbiters)
		}
		text += "    subvolumes" + names + "\nend-volume\n\n"
	}
	return text + "volume v\n    type debug/io-stats\n    subvolumes v-replicate-0\nend-volume\n\n"
}

func TestLayout(t *testing.T) {
	for _, arbiters := range []int{0, 1} {
		l, err := parseLayout(volfile(3, arbiters))
		if err != nil {
			t.Fatal(err)
		}
		want := Brick{Host: netip.AddrFrom4([4]byte{10, 0, 0, 2}), Path: "/bricks/b1/volume/brick"}
		if c := l.copies[1]; len(l.copies) != 3-arbiters || c.Brick != want || c.pending != "trusted.afr.v-client-7" ||
			!strings.HasPrefix(c.client, "volume v-client-1\n") || strings.Count(c.client, "volume v") != 1 {
			t.Errorf("with %d arbiters it is %+v", arbiters, l.copies)
		}
		heals := l.healing()
		if strings.Count(heals, "end-volume\n") != 4 || !strings.Contains(heals, "    option data-self-heal on\n") ||
			!strings.HasSuffix(heals, "    subvolumes v-client-0 v-client-1 v-client-2\nend-volume\n") {
			t.Errorf("it is healed by\n%s", heals)
		}
	}
	for _, text := range []string{"", volfile(1, 0), volfile(2, 0), volfile(3, 2), volfile(3, 0) + volfile(3, 0),
		strings.Replace(volfile(3, 0), "10.0.0.2", "here", 1)} {
		if l, err := parseLayout(text); err == nil {
			t.Errorf("of %q it is %+v", text, l)
		}
	}
}

func TestWrong(t *testing.T) {
	sum := func(text string) [sha256.Size]byte {
		if text == "-" {
			return broken
		}
		return sha256.Sum256([]byte(text))
	}
	for _, row := range []struct {
		pages string // what each copy has, "-" for what can't be read
		bad   []int
		ok    bool
	}{
		{"aab", []int{2}, true}, {"baa aab", nil, false}, {"aba cac", []int{1}, true}, {"baa aba aab", nil, false}, {"abc", nil, false},
		{"a-b", nil, false}, {"a--", nil, false}, {"aa-", []int{2}, true}, {"---", nil, false}, {"ab", nil, false},
		{"a-", nil, false}, {"a- -a", nil, false}, {"--a", nil, false}, {"", nil, false},
	} {
		var sums [][][sha256.Size]byte
		for page := range strings.FieldsSeq(row.pages) {
			var one [][sha256.Size]byte
			for _, r := range page {
				one = append(one, sum(string(r)))
			}
			sums = append(sums, one)
		}
		if bad, ok := wrong(sums); ok != row.ok || ok && !slices.Equal(bad, row.bad) {
			t.Errorf("%s: %v, %v", row.pages, bad, ok)
		}
	}
}
