package custom

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// server is a DNS server's disk, with a reader that takes no file which says broken.
type server struct {
	t      *testing.T
	cfg    Config
	checks int
	told   []string
	mute   bool
}

func newServer(t *testing.T) *server {
	dir := t.TempDir()
	s := &server{t: t}
	s.cfg = Config{Corefile: filepath.Join(dir, "Corefile"), From: filepath.Join(dir, "from"), Dir: filepath.Join(dir, "run"), Check: s.check, Tell: s.tell}
	for _, d := range []string{s.cfg.From, s.cfg.Dir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.base("base")
	return s
}

func (s *server) base(content string) {
	if err := os.WriteFile(s.cfg.Corefile, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// set makes the tenant's files these: name, content...
func (s *server) set(files ...string) {
	old, _ := filepath.Glob(filepath.Join(s.cfg.From, "*"))
	for _, f := range old {
		os.Remove(f)
	}
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(s.cfg.From, files[i]), []byte(files[i+1]), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *server) check(dir string, corefile []byte) error {
	s.checks++
	if strings.Contains(string(corefile), "unready") {
		return errors.New("the API doesn't answer")
	}
	found, _ := filepath.Glob(filepath.Join(dir, "custom", "*"))
	clash := 0
	for _, f := range found {
		content, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if strings.Contains(string(content), "broken") {
			return fmt.Errorf("%s is broken", filepath.Base(f))
		}
		clash += strings.Count(string(content), "port 54")
	}
	if clash > 1 {
		return errors.New("port 54 is taken")
	}
	return nil
}

func (s *server) tell(message string) error {
	if s.mute {
		return errors.New("no API")
	}
	s.told = append(s.told, message)
	return nil
}

// want loads and compares what is in force: "name=content" in order.
func (s *server) want(c *Custom, want ...string) {
	s.t.Helper()
	base, err := c.Load()
	if err != nil {
		s.t.Fatal(err)
	}
	if on, _ := os.ReadFile(s.cfg.Corefile); string(base) != string(on) {
		s.t.Errorf("the Corefile is %q", base)
	}
	var got []string
	found, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "custom", "1*"))
	for _, f := range found {
		content, _ := os.ReadFile(f)
		got = append(got, strings.TrimPrefix(filepath.Base(f), "1")+"="+strings.TrimSpace(string(content)))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Errorf("in force is %v, want %v; told %q", got, want, s.told)
	}
	if none, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "custom", "0.*")); len(none) != 2 {
		s.t.Errorf("%v, want a file for each of the two imports", none)
	}
	if left, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "try-*")); len(left) > 0 {
		s.t.Errorf("left behind: %v", left)
	}
}

func (s *server) wantTold(words ...string) {
	s.t.Helper()
	if len(s.told) != len(words) {
		s.t.Errorf("told %q, want %q", s.told, words)
		return
	}
	for i, w := range words {
		if !strings.Contains(s.told[i], w) {
			s.t.Errorf("told %q, want %q", s.told[i], w)
		}
	}
	s.told = nil
}

func TestNothing(t *testing.T) {
	s := newServer(t)
	os.Remove(s.cfg.From)
	c := New(s.cfg)
	for range 3 {
		s.want(c)
	}
	s.wantTold()
	if s.checks > 0 {
		t.Errorf("%d checks of nothing", s.checks)
	}
}

func TestChanges(t *testing.T) {
	s := newServer(t)
	c := New(s.cfg)
	s.set("a.server", "A", "b.override", "B")
	s.want(c, "a.server=A", "b.override=B")
	s.want(c, "a.server=A", "b.override=B")
	if s.checks != 1 {
		t.Errorf("%d checks, want one for each change", s.checks)
	}
	s.set("a.server", "A2")
	s.want(c, "a.server=A2")
	s.wantTold()
	// What can't be read stays as it was, and the others change.
	s.set("a.server", "broken", "c.server", "C", "d.server", "broken")
	s.want(c, "a.server=A2", "c.server=C")
	s.wantTold("a.server stays as it was before, CoreDNS can't read it: 1a.server is broken", "d.server is left out")
	s.want(c, "a.server=A2", "c.server=C")
	s.wantTold()
	s.set("a.server", "A3", "c.server", "C")
	s.want(c, "a.server=A3", "c.server=C")
	s.set()
	s.want(c)
	s.wantTold()
}

func TestBrokenAtTheStart(t *testing.T) {
	s := newServer(t)
	s.set("a.server", "broken", "b.server", "B")
	s.want(New(s.cfg), "b.server=B")
	s.wantTold("a.server is left out")
}

func TestFilesThatClash(t *testing.T) {
	s := newServer(t)
	s.set("a.server", "port 54", "b.server", "port 54", "c.server", "C")
	s.want(New(s.cfg), "a.server=port 54", "c.server=C")
	s.wantTold("b.server is left out, CoreDNS can't read it: port 54 is taken")
}

func TestThePlatformsOwnCantBeRead(t *testing.T) {
	s := newServer(t)
	c := New(s.cfg)
	s.set("a.server", "A")
	s.want(c, "a.server=A")
	s.base("unready")
	s.set("a.server", "A2")
	s.want(c, "a.server=A") // nothing can be said of it
	s.wantTold()
	s.base("base")
	s.want(c, "a.server=A2")
	s.wantTold()
}

func TestWhatIsLeftOut(t *testing.T) {
	s := newServer(t)
	s.set("readme.txt", "x", "big.server", strings.Repeat("x", maxBytes+1), "ok.server", "OK", ".hidden", "x")
	if err := os.Mkdir(filepath.Join(s.cfg.From, "folder.server"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.want(New(s.cfg), "ok.server=OK")
	s.wantTold("big.server is left out: more than", "folder.server is left out", "readme.txt is left out: keys end in")
	var many []string
	for i := range maxFiles + 1 {
		many = append(many, fmt.Sprintf("%02d.server", i), "x")
	}
	s = newServer(t)
	s.set(many...)
	if _, err := New(s.cfg).Load(); err != nil {
		t.Fatal(err)
	}
	s.wantTold(fmt.Sprintf("%02d.server is left out", maxFiles))
}

// TestDeath: what CoreDNS died with isn't taken again, until it changes.
func TestDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.set("a.server", "loop")
		s.want(New(s.cfg), "a.server=loop")
		time.Sleep(trial - time.Second)
		for range 2 { // processes of the same pod
			c := New(s.cfg)
			s.want(c)
			s.wantTold("ended soon after it took this")
			s.want(c)
		}
		c := New(s.cfg)
		s.want(c)
		s.set("a.server", "A")
		s.want(c, "a.server=A")
		time.Sleep(trial + time.Second)
		// One that dies later of something else takes it again.
		s.want(New(s.cfg), "a.server=A")
		// In another pod it is tried anew.
		time.Sleep(trial + time.Second)
	})
}

func TestTellingIsTriedAgain(t *testing.T) {
	s := newServer(t)
	s.mute = true
	s.set("a.server", "broken")
	c := New(s.cfg)
	s.want(c)
	s.mute = false
	s.want(c)
	s.wantTold("a.server is left out")
}

// TestDeathWhileLooking: a process that is ended because its checks take too long leaves
// word, so that the next one in the pod serves the cluster's own names.
func TestDeathWhileLooking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.set("a.server", "A")
		c := New(s.cfg)
		s.want(c, "a.server=A")
		trialOf := func() string {
			data, _ := os.ReadFile(c.trialFile())
			return string(data)
		}
		// A change that is looked at and not taken leaves the trial of what was before.
		before := trialOf()
		s.set("a.server", "broken")
		s.want(c, "a.server=A")
		s.wantTold("a.server stays as it was before")
		if got := trialOf(); got != before || got == "" {
			t.Errorf("on trial is %q, want %q", got, before)
		}
		time.Sleep(trial + time.Second)
		s.set("a.server", "broken again")
		s.want(c, "a.server=A")
		s.wantTold("a.server stays as it was before")
		if got := trialOf(); got != "" {
			t.Errorf("on trial is %q after its time", got)
		}

		s.set("a.server", "slow", "b.server", "B")
		// What is on the disk while it is looked at is there for the next process.
		killed, left := New(s.cfg), ""
		killed.cfg.Check = func(string, []byte) error { left = trialOf(); return nil }
		s.want(killed, "a.server=slow", "b.server=B")
		if err := os.WriteFile(c.trialFile(), []byte(left), 0o600); err != nil || left == "" {
			t.Fatalf("left is %q, %v", left, err)
		}
		for range 2 {
			s.want(New(s.cfg))
			s.wantTold("was ended while it looked at this")
		}
		s.set("b.server", "B")
		c = New(s.cfg)
		s.want(c, "b.server=B")
		time.Sleep(trial + time.Second)
	})
}
