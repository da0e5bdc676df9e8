package appliance

import (
	"strings"
	"testing"
)

func TestAddressMayStandAnywhere(t *testing.T) {
	for _, c := range [][2]string{
		{"multipaas node join https://a:7443 --name n1", "multipaas node join --name n1 https://a:7443"},
		{"multipaas node join --name n1 https://a:7443", "multipaas node join --name n1 https://a:7443"},
		{"multipaas node leave", "multipaas node leave"},
		{"multipaas status --config https://a", "multipaas status --config https://a"},
	} {
		if got := strings.Join(AddressLast(strings.Fields(c[0])), " "); got != c[1] {
			t.Errorf("%s: got %s, want %s", c[0], got, c[1])
		}
	}
}
