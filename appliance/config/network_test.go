package config

import "testing"

func TestParseNetwork(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.0.0/16":  "",
		"10.1.2.3/32":  "",
		"10.1.2.3":     "write 10.1.2.3/32 for this one address",
		"10.1.2.3/16":  "write 10.1.0.0/16",
		"fd00::1":      "write it as 10.0.0.0/16",
		"fd00::/64":    "write it as 10.0.0.0/16",
		"example.com":  "write it as 10.0.0.0/16",
		"10.1.2.3/33":  "write it as 10.0.0.0/16",
		"010.1.2.3/32": "write it as 10.0.0.0/16",
		"":             "write it as 10.0.0.0/16",
	} {
		if _, wrong, remedy := ParseNetwork(text); remedy != want || (wrong == "") != (want == "") {
			t.Errorf("%q: %q, %q, want %q", text, wrong, remedy, want)
		}
	}
}
