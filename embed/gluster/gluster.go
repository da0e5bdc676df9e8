// Package gluster runs GlusterFS on a host, and speaks to glusterd, its management daemon, in
// its own types. DESIGN.md has how it runs.
//
// It promises that a call has had its effect when it returns no error, and that asking
// for what is so already is none: every change looks first. glusterd's own command is the
// only way to it that its authors support: the REST server glusterd2 was given up, and its
// protocol is no interface. What the command prints with --xml is read, for its exit status
// is 0 when it failed (gluster 10.3).
//
// Parties: glusterd, from the payload's image storage; package appliance, which gives what it
// makes to the module that keeps volumes. A Client keeps nothing and may be used by several
// goroutines; glusterd itself makes one change of a cluster at a time, and refuses others.
package gluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Client asks one node's glusterd.
type Client struct {
	// Run runs the command gluster where glusterd runs, and returns what it printed on
	// standard output, of which it reads some MiB at most. It ends the command when ctx is done.
	Run func(ctx context.Context, args ...string) ([]byte, error)
}

// ErrNotFound is returned for a volume, brick or peer that there isn't.
var ErrNotFound = errors.New("there is none")

// ErrSplitBrain is returned for a volume of two replicas: when they lose each other, each
// would take writes that the other doesn't have, and nobody could say later which are right.
var ErrSplitBrain = errors.New("two replicas can't tell who is right when they lose each other: " +
	"take three, or two and an arbiter, or one")

// ErrBusy is returned while another change of the cluster is being made: try again later.
var ErrBusy = errors.New("glusterd makes another change")

// Error is what glusterd refused, in its words.
type Error struct {
	Op    string // "volume create v1"
	Errno int    // of errno(3), often 0 or -1
	Text  string
	Err   error // how the command ended, if not well
}

func (e *Error) Error() string { return fmt.Sprintf("gluster %s: %s", e.Op, e.Text) }

// Unwrap implements errors.Unwrap.
func (e *Error) Unwrap() error { return e.Err }

// Is implements errors.Is.
func (e *Error) Is(target error) bool {
	return target == ErrBusy && strings.Contains(e.Text, "Another transaction is in progress")
}

// Brick is a folder of a node that holds one replica of a volume.
type Brick struct {
	Host netip.Addr
	// Path is absolute. glusterd makes its last folder and no other: the one above must be a
	// folder that was made in the file system which bounds the brick, so that none is made
	// beside a file system that isn't mounted.
	Path string
}

// String is what gluster calls it.
func (b Brick) String() string { return b.Host.String() + ":" + b.Path }

func (b Brick) check() error {
	if !b.Host.Is4() || b.Host.IsLoopback() || b.Host.IsUnspecified() {
		return fmt.Errorf("brick %v: want an IPv4 address that other nodes reach", b)
	}
	odd := strings.ContainsFunc(b.Path, func(r rune) bool { return r <= ' ' || r == ':' || r == ',' })
	if !path.IsAbs(b.Path) || path.Clean(b.Path) != b.Path || b.Path == "/" || odd {
		return fmt.Errorf("brick %v: want an absolute path without blanks, colons and commas", b)
	}
	return nil
}

// parseBrick reads what gluster calls one.
func parseBrick(text string) (Brick, error) {
	host, folder, ok := strings.Cut(text, ":")
	a, err := netip.ParseAddr(host)
	if !ok || err != nil {
		return Brick{}, fmt.Errorf("brick %q is not one of ours: want ADDRESS:PATH", text)
	}
	return Brick{Host: a, Path: folder}, nil
}

// Volume is a volume as glusterd has it.
type Volume struct {
	Name    string
	ID      string // a UUID that no other volume ever has
	Started bool
	Bricks  []Brick // in glusterd's order; an arbiter is the last
	Arbiter bool    // the last brick has names and no data
	Options map[string]string
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func checkName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("volume %q: want up to 63 of a-z, 0-9 and -, and no - first", name)
	}
	return nil
}

// reply is what every answer begins with.
type reply struct {
	XMLName xml.Name `xml:"cliOutput"`
	Ret     int      `xml:"opRet"`
	Errno   int      `xml:"opErrno"`
	Text    string   `xml:"opErrstr"`
}

// ask runs a command and decodes its answer into into, which may be nil.
func (c Client) ask(ctx context.Context, into any, args ...string) error {
	op := strings.Join(args, " ")
	out, err := c.Run(ctx, append([]string{"--mode=script", "--xml"}, args...)...)
	var r reply
	if errXML := xml.Unmarshal(out, &r); errXML != nil {
		return fmt.Errorf("gluster %s: it said %.300q: %w", op, bytes.TrimSpace(out), cmp.Or(err, errXML))
	}
	if r.Ret != 0 || err != nil {
		text := strings.TrimSpace(r.Text)
		if text == "" {
			text = fmt.Sprintf("it failed without a word (%d, %v)", r.Errno, err)
		}
		return &Error{Op: op, Errno: r.Errno, Text: text, Err: err}
	}
	if into == nil {
		return nil
	}
	if err := xml.Unmarshal(out, into); err != nil {
		return fmt.Errorf("gluster %s: its answer: %w", op, err)
	}
	return nil
}

// Volumes lists all volumes.
func (c Client) Volumes(ctx context.Context) ([]Volume, error) {
	var a struct {
		Volumes []struct {
			Name   string `xml:"name"`
			ID     string `xml:"id"`
			Status int    `xml:"status"`
			Bricks []struct {
				Name    string `xml:"name"`
				Arbiter int    `xml:"isArbiter"`
			} `xml:"bricks>brick"`
			Options []struct {
				Name  string `xml:"name"`
				Value string `xml:"value"`
			} `xml:"options>option"`
		} `xml:"volInfo>volumes>volume"`
	}
	if err := c.ask(ctx, &a, "volume", "info", "all"); err != nil {
		return nil, err
	}
	var all []Volume
	for _, v := range a.Volumes {
		one := Volume{Name: v.Name, ID: v.ID, Started: v.Status == 1, Options: map[string]string{}}
		for _, b := range v.Bricks {
			brick, err := parseBrick(b.Name)
			if err != nil {
				return nil, fmt.Errorf("volume %s: %w", v.Name, err)
			}
			one.Bricks, one.Arbiter = append(one.Bricks, brick), b.Arbiter == 1
		}
		for _, o := range v.Options {
			one.Options[o.Name] = o.Value
		}
		all = append(all, one)
	}
	return all, nil
}

// Volume returns one volume, or ErrNotFound.
func (c Client) Volume(ctx context.Context, name string) (Volume, error) {
	if err := checkName(name); err != nil {
		return Volume{}, err
	}
	all, err := c.Volumes(ctx)
	if err != nil {
		return Volume{}, err
	}
	i := slices.IndexFunc(all, func(v Volume) bool { return v.Name == name })
	if i < 0 {
		return Volume{}, fmt.Errorf("volume %s: %w", name, ErrNotFound)
	}
	return all[i], nil
}

// Create makes a volume whose bricks are its replicas, with its options, and starts it. With
// arbiter the last of three bricks has the files' names and no data. One that is there with
// these bricks is brought up to date; one with others is an error. After an error it may be tried
// again. Bricks of a volume that was removed are taken with all that is in them; those of one
// that there is are refused.
func (c Client) Create(ctx context.Context, name string, bricks []Brick, arbiter bool, options map[string]string) error {
	err := checkName(name)
	for _, b := range bricks {
		err = errors.Join(err, b.check())
	}
	if err != nil {
		return err
	}
	if len(bricks) == 2 {
		return fmt.Errorf("volume %s: %w", name, ErrSplitBrain)
	}
	if len(bricks) != 1 && len(bricks) != 3 || arbiter && len(bricks) != 3 {
		return fmt.Errorf("volume %s: %d bricks, arbiter %v: want one or three, of which the last may be an arbiter",
			name, len(bricks), arbiter)
	}
	args := []string{"volume", "create", name}
	if len(bricks) > 1 {
		args = append(args, "replica", strconv.Itoa(len(bricks)))
	}
	if arbiter {
		args = append(args, "arbiter", "1")
	}
	args = append(args, "transport", "tcp")
	for _, b := range bricks {
		args = append(args, b.String())
	}
	// By force, or bricks are refused that glusterd has marked for a volume which then failed at
	// another host. What it would refuse else, a brick on the host's own disk, Brick.Path rules out.
	var now Volume
	if refused := c.ask(ctx, nil, append(args, "force")...); refused != nil {
		if now, err = c.Volume(ctx, name); err != nil {
			return refused
		}
		if !slices.Equal(now.Bricks, bricks) || now.Arbiter != arbiter {
			return fmt.Errorf("volume %s is there, with bricks %v, arbiter %v: want %v, %v",
				name, now.Bricks, now.Arbiter, bricks, arbiter)
		}
	}
	if err := c.set(ctx, name, now.Options, options); err != nil {
		return err
	}
	if now.Started {
		return nil
	}
	return c.ask(ctx, nil, "volume", "start", name)
}

// set brings options up to date, in one change.
func (c Client) set(ctx context.Context, name string, now, want map[string]string) error {
	var change []string
	for key, value := range want {
		if now[key] != value {
			change = append(change, key)
		}
	}
	if len(change) == 0 {
		return nil
	}
	slices.Sort(change)
	args := []string{"volume", "set", name}
	for _, key := range change {
		if strings.HasPrefix(key, "-") || strings.HasPrefix(want[key], "-") { // the command would take it for one of its own
			return fmt.Errorf("option %q of volume %s: want no value %q", key, name, want[key])
		}
		args = append(args, key, want[key])
	}
	return c.ask(ctx, nil, args...)
}

// SetAll sets options of the whole cluster, of which there are few, all of them known.
func (c Client) SetAll(ctx context.Context, options map[string]string) error {
	var a struct {
		Options []struct {
			Name  string `xml:"Option"`
			Value string `xml:"Value"`
		} `xml:"volGetopts>Opt"`
	}
	if err := c.ask(ctx, &a, "volume", "get", "all", "all"); err != nil {
		return err
	}
	now := map[string]string{}
	for _, o := range a.Options {
		now[o.Name], _, _ = strings.Cut(o.Value, " ") // "off (DEFAULT)"
	}
	return c.set(ctx, "all", now, options)
}

// StartBricks starts the bricks of a volume that don't run, on all nodes.
func (c Client) StartBricks(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return c.ask(ctx, nil, "volume", "start", name, "force")
}

// ErrAway is returned where all nodes of the cluster have to be there, and one isn't.
var ErrAway = errors.New("a node of the cluster is away")

// Remove stops a volume and makes glusterd forget it. What is in its bricks stays. None
// there is no error. While a node of the cluster is away, be it none of the volume's, it
// changes nothing and returns ErrAway: glusterd would stop the volume, refuse to forget it, and
// the one who comes back would not hear that it is stopped (10.3).
func (c Client) Remove(ctx context.Context, name string) error {
	now, err := c.Volume(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	peers, err := c.Peers(ctx)
	if err != nil {
		return err
	}
	for _, p := range peers {
		if !p.Connected {
			return fmt.Errorf("volume %s: %w: %v", name, ErrAway, p.Host)
		}
	}
	if !now.Started { // perhaps not for all: who was away when it was stopped has it started
		if err := c.StartBricks(ctx, name); err != nil {
			return err
		}
	}
	if err := c.ask(ctx, nil, "volume", "stop", name, "force"); err != nil {
		return err
	}
	return c.ask(ctx, nil, "volume", "delete", name)
}

// Replace has a volume use another brick, which is empty, in the place of one that is lost
// or shall go; the others fill it. See Healing for when they have.
func (c Client) Replace(ctx context.Context, name string, old, with Brick) error {
	if err := errors.Join(old.check(), with.check()); err != nil {
		return err
	}
	now, err := c.Volume(ctx, name)
	switch {
	case err != nil:
		return err
	case slices.Contains(now.Bricks, with):
		return nil
	case !slices.Contains(now.Bricks, old):
		return fmt.Errorf("volume %s: brick %v: %w", name, old, ErrNotFound)
	case len(now.Bricks) < 2:
		return fmt.Errorf("volume %s has one replica: nobody could fill another brick", name)
	}
	return c.ask(ctx, nil, "volume", "replace-brick", name, old.String(), with.String(), "commit", "force")
}

// Add gives a volume of one or two replicas another, an empty brick, which the others fill; see Healing for when they
// have. Two are for the time that the first takes to fill the second: quorum is the first's then. All nodes with bricks
// have to be there, and nothing to be healed: the caller has looked.
func (c Client) Add(ctx context.Context, name string, brick Brick, arbiter bool) error {
	if err := brick.check(); err != nil {
		return err
	}
	now, err := c.Volume(ctx, name)
	switch {
	case err != nil:
		return err
	case slices.Contains(now.Bricks, brick):
		return nil
	case len(now.Bricks) != 1 && len(now.Bricks) != 2 || arbiter && len(now.Bricks) != 2:
		return fmt.Errorf("volume %s has %d bricks, arbiter %v: want one or two, and an arbiter as the third",
			name, len(now.Bricks), arbiter)
	case now.Options[quorumOption] != "auto":
		return fmt.Errorf("volume %s: its second brick would be read while it is empty, and the first away: want %s auto",
			name, quorumOption)
	}
	args := []string{"volume", "add-brick", name, "replica", strconv.Itoa(len(now.Bricks) + 1)}
	if arbiter {
		args = append(args, "arbiter", "1")
	}
	return c.ask(ctx, nil, append(args, brick.String(), "force")...)
}
