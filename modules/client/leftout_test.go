package client

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/multipaas/multipaas/modules/internal/archive"
)

func TestLeftOut(t *testing.T) {
	long := strings.Repeat("\x01", 900) // six bytes each in JSON
	examples := []string{"data/a\npath=summary.json\n{", long}
	for len(examples) < 20 {
		examples = append(examples, long)
	}
	for want, sum := range map[string]archive.Summary{
		"": {Members: 3},
		`attributes: 8, devices: 1; the first is of ` + printable(examples[0]): {
			LeftOut: map[string]int64{"devices": 1, "attributes": 8}, Examples: examples},
	} {
		member, err := archive.JSON(archive.SummaryName, time.Now(), sum)
		if err != nil {
			t.Fatal(err)
		}
		end, err := archive.Trailer(make([]byte, 32), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "v.tar")
		theirs := []byte("18 path=summary.json\n{\"leftOut\":{\"pipes\":9}}")
		if err := os.WriteFile(file, slices.Concat(theirs, make([]byte, 512), member, end), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := leftOut(file); err != nil || got != want {
			t.Errorf("left out: %q, %v, want %q", got, err, want)
		}
	}
}
