package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
)

// Partition cuts the network between each host of a and each of b, in both
// directions, at once. We still reach all of them.
func (l *Lab) Partition(ctx context.Context, a, b []string) error {
	err := l.change(func(s *state) error {
		for _, x := range a {
			for _, y := range b {
				for _, name := range []string{x, y} {
					if _, ok := s.host(name); !ok {
						return fmt.Errorf("%s: no such host", name)
					}
				}
				if x == y {
					return fmt.Errorf("%s: can't be cut from itself", x)
				}
				if !slices.Contains(s.Cuts, [2]string{x, y}) && !slices.Contains(s.Cuts, [2]string{y, x}) {
					s.Cuts = append(s.Cuts, [2]string{x, y})
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.applyFaults(ctx)
}

// Isolate cuts a host from all others.
func (l *Lab) Isolate(ctx context.Context, name string) error {
	var others []string
	for _, h := range l.Hosts() {
		if h.name != name {
			others = append(others, h.name)
		}
	}
	return l.Partition(ctx, []string{name}, others)
}

// Loss makes a host lose per cent of the packets it sends, and of those it is
// sent, by chance. 0 ends it.
func (l *Lab) Loss(ctx context.Context, name string, percent int) error {
	if percent < 0 || percent > 100 {
		return fmt.Errorf("loss of %d per cent: give 0 to 100", percent)
	}
	err := l.change(func(s *state) error {
		if _, ok := s.host(name); !ok {
			return fmt.Errorf("%s: no such host", name)
		}
		if s.Loss == nil {
			s.Loss = map[string]int{}
		}
		s.Loss[name] = percent
		if percent == 0 {
			delete(s.Loss, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.applyFaults(ctx)
}

// Narrow makes the network drop packets to and from a host that are larger than
// so many bytes, without a word, as a switch with a smaller MTU does. 0 ends it.
func (l *Lab) Narrow(ctx context.Context, name string, bytes int) error {
	err := l.change(func(s *state) error {
		if _, ok := s.host(name); !ok {
			return fmt.Errorf("%s: no such host", name)
		}
		if s.Narrow == nil {
			s.Narrow = map[string]int{}
		}
		s.Narrow[name] = bytes
		if bytes == 0 {
			delete(s.Narrow, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return errors.Join(l.segment(ctx, bytes != 0), l.applyFaults(ctx))
}

// segment makes the hosts cut what TCP sends into packets themselves. Otherwise
// 64 KB pass between namespaces in one piece, which no wire would carry.
func (l *Lab) segment(ctx context.Context, cut bool) error {
	segments := "65535" // the kernel's default
	if cut {
		segments = "1"
	}
	var errs []error
	for _, h := range l.Hosts() {
		if h.Running() {
			_, err := h.Run(ctx, "ip", "link", "set", "eth0", "gso_max_segs", segments)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Heal ends all partitions, losses and narrow ways.
func (l *Lab) Heal(ctx context.Context) error {
	narrow := false
	err := l.change(func(s *state) error {
		narrow = len(s.Narrow) > 0
		s.Cuts, s.Loss, s.Narrow = nil, nil, nil
		return nil
	})
	if err != nil {
		return err
	}
	if narrow {
		if err := l.segment(ctx, false); err != nil {
			return err
		}
	}
	return l.applyFaults(ctx)
}

// applyFaults makes the kernel drop what the state says, in one step. The rules
// stand at the bridge, out of reach of the hosts, which flush their own tables.
func (l *Lab) applyFaults(ctx context.Context) error {
	l.mu.Lock()
	text := l.faultRules()
	l.mu.Unlock()
	return nft(ctx, text)
}

func (l *Lab) faultRules() string {
	link := func(name string) string {
		h, ok := l.state.host(name)
		if !ok {
			return "none"
		}
		return l.slot.link(h.Index)
	}
	var b strings.Builder
	// To delete a table that is not there is an error, so it is made first.
	fmt.Fprintf(&b, "table bridge %[1]s\ndelete table bridge %[1]s\n", l.slot.prefix())
	if len(l.state.Cuts) == 0 && len(l.state.Loss) == 0 && len(l.state.Narrow) == 0 {
		return b.String()
	}
	var forward, input, output []string
	for _, c := range l.state.Cuts {
		forward = append(forward,
			fmt.Sprintf("iifname %q oifname %q drop", link(c[0]), link(c[1])),
			fmt.Sprintf("iifname %q oifname %q drop", link(c[1]), link(c[0])))
	}
	var lossy []string
	for name := range l.state.Loss {
		lossy = append(lossy, name)
	}
	slices.Sort(lossy)
	for _, name := range lossy {
		dice := fmt.Sprintf("numgen random mod 100 < %d drop", l.state.Loss[name])
		if l.state.Loss[name] == 100 {
			dice = "drop"
		}
		in, out := fmt.Sprintf("iifname %q ", link(name))+dice, fmt.Sprintf("oifname %q ", link(name))+dice
		forward = append(forward, in, out)
		input, output = append(input, in), append(output, out)
	}
	for _, name := range slices.Sorted(maps.Keys(l.state.Narrow)) {
		// Behind Ethernet's header, so this is the size of the IP packet.
		large := fmt.Sprintf("meta length > %d drop", l.state.Narrow[name])
		in, out := fmt.Sprintf("iifname %q ", link(name))+large, fmt.Sprintf("oifname %q ", link(name))+large
		forward = append(forward, in, out)
		input, output = append(input, in), append(output, out)
	}
	fmt.Fprintf(&b, "table bridge %s {\n", l.slot.prefix())
	for _, chain := range []struct {
		hook  string
		rules []string
	}{{"forward", forward}, {"input", input}, {"output", output}} {
		fmt.Fprintf(&b, "\tchain %[1]s {\n\t\ttype filter hook %[1]s priority 0;\n", chain.hook)
		for _, r := range chain.rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// removeTable removes the slot's rules, if there are any.
func (s slot) removeTable(ctx context.Context) error {
	return nft(ctx, fmt.Sprintf("table bridge %[1]s\ndelete table bridge %[1]s\n", s.prefix()))
}

func nft(ctx context.Context, text string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("nft: %w: %s", err, strings.TrimSpace(string(out))))
	}
	return nil
}
