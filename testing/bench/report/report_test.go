package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/multipaas/multipaas/testing/bench/measure"
)

var section = measure.Section{Name: "balancer", About: "beside others"}

func results() []measure.Result {
	return []measure.Result{
		{Name: "balancer/http1 keep-alive 1 KB/requests", Unit: "req/s", Better: measure.Higher, Ours: measure.Summarize(10_000, 12_345, 130_000),
			Peer: "nginx", PeerStat: measure.Summarize(24_000, 24_690, 25_000), Goal: measure.Goal{Ratio: 0.5}, Note: "on one core"},
		{Name: "balancer/http1 keep-alive 1 KB/requests", Unit: "req/s", Better: measure.Higher, Ours: measure.Summarize(10_000, 12_345, 130_000),
			Peer: "haproxy", PeerStat: measure.Summarize(50_000)},
		{Name: "balancer/memory", Unit: "MB", Better: measure.Lower, Ours: measure.Summarize(3), Peer: "nginx <&", PeerStat: measure.Summarize(12)},
		{Name: "balancer/first answer", Unit: "s", Better: measure.Lower, Ours: measure.Summarize(0.00123), Goal: measure.Goal{Value: 0.001}},
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	Table(&b, section, results())
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 100 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	for _, want := range []string{"12,345", "10,000-130k", "nginx    24,690", "0.50x", "≥0.5x met", "≤0.001 s MISSED", "[1] on one core"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "bench.json")
	var f File
	if err := f.Add(results()); err != nil {
		t.Fatal(err)
	}
	if err := f.Add(results()[:1]); err == nil {
		t.Error("the same result twice was taken")
	}
	if err := f.Write(name); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Results map[string]struct {
			Value, Ratio float64
			Unit, Peer   string
			Peer_value   float64
			Goal_met     *bool
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	r := got.Results["balancer/http1 keep-alive 1 KB/requests vs nginx"]
	if r.Value != 12345 || r.Unit != "req/s" || r.Peer != "nginx" || r.Peer_value != 24690 || r.Ratio != 0.5 || r.Goal_met == nil || !*r.Goal_met {
		t.Errorf("got %+v in\n%s", r, data)
	}
	if len(got.Results) != 4 {
		t.Errorf("%d results, want 4", len(got.Results))
	}
}

func TestChart(t *testing.T) {
	data := draw(measure.Machine{CPU: "a CPU", Cores: 2}, []Group{{section, results()}})
	bars := 0
	for d := xml.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, data)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "title" {
			bars++
		}
	}
	if bars != 3 { // the fourth has no peer
		t.Errorf("%d bars, want 3", bars)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.00123: "0.0012", 0.5: "0.500", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234: "1,234", 99_949: "99,949", 123_456: "123k", 12_345_678: "12,346k"} {
		if got := Number(v); got != want {
			t.Errorf("Number(%v) = %q, want %q", v, got, want)
		}
	}
}
