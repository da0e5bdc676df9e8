// Package custom decides which of a tenant's files are in force in a cluster's DNS.
//
// It promises that what CoreDNS can't read is left out, or stays as it was when it
// last could be read, and that what it dies with soon after it took it, or while it
// looks at it, is left out as a whole, until it changes.
//
// Parties: command coredns makes a Custom, and has it load whenever upstream's code
// loads the configuration. Only that command imports it.
package custom

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxFiles and maxBytes are what is read of the ConfigMap: each file may be tried
	// by a process of its own.
	maxFiles = 32
	maxBytes = 256 << 10
	// trial is how long CoreDNS has to live with what is new: health checks end one
	// that doesn't answer after 80 s.
	trial = 2 * time.Minute
)

// Config is what a Custom works with.
type Config struct {
	Corefile string // the file that the platform wrote
	From     string // the folder of the tenant's files, which need not be there
	// Dir is a folder of ours that outlives the process, not the pod: what is in force
	// stands below it in "custom".
	Dir string
	// Check says why a Corefile can't be read whose imports are relative to dir.
	Check func(dir string, corefile []byte) error
	// Tell tells the tenant. If it fails it is called again later.
	Tell func(message string) error
}

// Custom is safe for concurrent use.
type Custom struct {
	cfg     Config
	mu      sync.Mutex
	begun   bool
	seen    string            // the sum of what was decided on
	force   map[string]string // what is in force
	lived   *time.Timer       // until the trial is over
	waiting []string          // what wasn't told yet
}

// New returns a Custom; nothing is done yet.
func New(cfg Config) *Custom { return &Custom{cfg: cfg} }

func (c *Custom) trialFile() string { return filepath.Join(c.cfg.Dir, "trial") }

// Load puts in force what is there now and returns the Corefile to run; its
// imports are relative to Dir. It blocks for as long as the checks take.
func (c *Custom) Load() (corefile []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	base, err := os.ReadFile(c.cfg.Corefile)
	if err != nil {
		return nil, err
	}
	files, wrong := read(c.cfg.From)
	sum := sumOf(base, files, wrong)
	if !c.begun {
		if err := c.begin(sum); err != nil {
			return nil, err
		}
	}
	if sum != c.seen {
		if err := c.decide(base, files, wrong, sum); err != nil {
			// The platform's own can't be read, as when the API doesn't answer: nothing can
			// be said of the rest. It is looked at again the next time.
			log.Printf("[WARNING] coredns-custom: %v", err)
		} else {
			c.seen = sum
		}
	}
	c.tellAll()
	return base, nil
}

// begin looks at what an earlier process in this pod left: if it died soon after it
// took what is there now, that isn't taken again.
func (c *Custom) begin(sum string) error {
	if err := c.put(nil); err != nil {
		return err
	}
	c.begun = true
	last, err := os.ReadFile(c.trialFile())
	if err != nil {
		return nil
	}
	switch string(last) {
	case sum:
		c.seen = sum
		c.say("CoreDNS ended soon after it took this: all of it is left out until it changes. " +
			"The log of CoreDNS before (kubectl logs -p) may say why")
	case checking + sum:
		c.seen = sum
		c.say("CoreDNS was ended while it looked at this, which takes too long: all of it is left out until it changes. " +
			"What asks servers elsewhere to begin with, as route53 and clouddns do, needs a way to them")
	}
	return nil
}

// checking stands before the sum of what is looked at: health checks end a process that
// has not answered for 80 s, and 32 files may take longer than that.
const checking = "checking "

// look notes that files are looked at, and returns what is to be called when they have
// been: it notes again what was there.
func (c *Custom) look(sum string) (done func(), err error) {
	if c.lived != nil && !c.lived.Stop() {
		c.lived = nil // its trial is over
	}
	before, err := os.ReadFile(c.trialFile())
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.WriteFile(c.trialFile(), []byte(checking+sum), 0o600)
	}
	return func() {
		if c.lived != nil {
			_ = os.WriteFile(c.trialFile(), before, 0o600) // else it is taken again, which is no harm
			c.lived.Reset(trial)
		} else {
			os.Remove(c.trialFile())
		}
	}, err
}

// decide puts in force what can be read.
func (c *Custom) decide(base []byte, files map[string]string, wrong []string, sum string) error {
	take, err := c.choose(base, files, sum)
	if err != nil {
		return err
	}
	for _, w := range wrong {
		c.say(w)
	}
	if maps.Equal(take, c.force) {
		return nil
	}
	if c.lived != nil {
		c.lived.Stop()
	}
	if len(take) > 0 {
		if err := os.WriteFile(c.trialFile(), []byte(sum), 0o600); err != nil {
			return err
		}
		c.lived = time.AfterFunc(trial, func() { os.Remove(c.trialFile()) })
	}
	return c.put(take)
}

// choose returns which files can be read: all if they can be together, else file by file,
// the new one or else the one that was in force.
func (c *Custom) choose(base []byte, files map[string]string, sum string) (map[string]string, error) {
	if len(files) == 0 {
		return files, nil
	}
	done, err := c.look(sum)
	if err != nil {
		return nil, err
	}
	defer done()
	if c.try(base, files) == nil {
		return files, nil
	}
	if own := c.try(base, nil); own != nil {
		return nil, fmt.Errorf("can't be looked at: %w", own)
	}
	take := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := c.try(base, with(take, name, files[name]))
		if err == nil {
			take[name] = files[name]
			continue
		}
		did := "is left out"
		if old, ok := c.force[name]; ok && old != files[name] && c.try(base, with(take, name, old)) == nil {
			take[name], did = old, "stays as it was before"
		}
		c.say(fmt.Sprintf("%s %s, CoreDNS can't read it: %v", name, did, err))
	}
	return take, nil
}

// with is files with one more.
func with(files map[string]string, name, content string) map[string]string {
	more := maps.Clone(files)
	more[name] = content
	return more
}

// try says why a set of files can't be read.
func (c *Custom) try(base []byte, files map[string]string) error {
	dir, err := os.MkdirTemp(c.cfg.Dir, "try-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := write(filepath.Join(dir, "custom"), files); err != nil {
		return err
	}
	return c.cfg.Check(dir, base)
}

// put puts files in force.
func (c *Custom) put(files map[string]string) error {
	next, now := filepath.Join(c.cfg.Dir, "next"), filepath.Join(c.cfg.Dir, "custom")
	err := cmp.Or(os.RemoveAll(next), write(next, files), os.RemoveAll(now), os.Rename(next, now))
	if err == nil {
		c.force = files
	}
	return err
}

func write(dir string, files map[string]string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	// Without a file that matches, each look at the Corefile logs a warning.
	for _, name := range []string{"0.server", "0.override"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("# nothing\n"), 0o600); err != nil {
			return err
		}
	}
	for name, content := range files {
		// One file's end is no part of the next one's first line.
		if err := os.WriteFile(filepath.Join(dir, "1"+name), []byte(content+"\n"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// read reads a tenant's files, and says what it leaves out.
func read(dir string) (files map[string]string, wrong []string) {
	files = map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		wrong = append(wrong, err.Error())
	}
	left := maxBytes
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") {
			continue // kubelet's own
		}
		if ext := filepath.Ext(name); ext != ".server" && ext != ".override" {
			wrong = append(wrong, fmt.Sprintf("%s is left out: keys end in .server or .override", name))
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case err != nil:
			wrong = append(wrong, fmt.Sprintf("%s is left out: %v", name, err))
		case len(content) > left || len(files) == maxFiles:
			wrong = append(wrong, fmt.Sprintf("%s is left out: more than %d files or %d bytes", name, maxFiles, maxBytes))
		default:
			files[name] = string(content)
			left -= len(content)
		}
	}
	return files, wrong
}

func sumOf(base []byte, files map[string]string, wrong []string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n%s", len(base), base)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s %d\n%s", name, len(files[name]), files[name])
	}
	fmt.Fprintf(h, "%q", wrong)
	return hex.EncodeToString(h.Sum(nil))
}

// maxMessage is what an event's message may have.
const maxMessage = 1000

func (c *Custom) say(message string) {
	message = message[:min(len(message), maxMessage)]
	log.Printf("[WARNING] coredns-custom: %s", message)
	if len(c.waiting) < maxFiles && !slices.Contains(c.waiting, message) {
		c.waiting = append(c.waiting, message)
	}
}

// tellAll writes the events. What fails is told at the next look.
func (c *Custom) tellAll() {
	for len(c.waiting) > 0 {
		if err := c.cfg.Tell(c.waiting[0]); err != nil {
			log.Printf("[WARNING] coredns-custom: write an event: %v", err)
			return
		}
		c.waiting = c.waiting[1:]
	}
}
