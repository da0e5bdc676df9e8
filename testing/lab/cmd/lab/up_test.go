package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// What is there to type works on the lab that the text is about.
func TestHintsNameTheLab(t *testing.T) {
	usual, err := filepath.Abs(usualDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ dir, command string }{
		{usual, "dist/lab "},
		{"/srv/mine", "dist/lab -C /srv/mine "},
		{"/srv/.lab/up", "dist/lab -C /srv/.lab/up "}, // in another repository
	} {
		for _, text := range []string{whatNext(c.dir), lookAround(c.dir)} {
			if all, ours := strings.Count(text, "lab "), strings.Count(text, c.command); all == 0 || all != ours {
				t.Errorf("%s: %d commands, %d of them of this lab:\n%s", c.dir, all, ours, text)
			}
		}
	}
}
