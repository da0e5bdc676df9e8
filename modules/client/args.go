package client

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/urfave/cli/v2"
)

// resolved is a command line that was understood: the verb, its flags in the
// order given, and its arguments.
type resolved struct {
	cmd   *command
	path  []string // the names that lead to cmd, aliases spelled out
	flags []string
	early int // how many of flags stood before the verb was known
	args  []string
	help  bool
	wants string // the flag whose value is still to be typed
}

// resolve walks args down the tree. It takes flags anywhere, also behind
// arguments and before the verb, takes "ws:create" for "ws create", and lists
// when a noun that can list stands without a verb. Everything behind "--" is an
// argument.
func resolve(root *command, args []string) (resolved, error) {
	r := resolved{cmd: root}
	if len(args) > 0 && args[0] == "help" {
		r.help, args = true, args[1:]
	}
	r, err := walk(r, args, false)
	if err != nil || r.help {
		return r, err
	}
	if r.cmd.run == nil {
		list := r.cmd.find("list")
		if list == nil {
			return r, nil
		}
		r.cmd, r.path = list, append(r.path, list.called()[0])
	}
	for _, word := range r.flags[:r.early] {
		if name, ok := flagName(word); ok && findFlag(r.cmd.flags, name) == nil {
			return r, unknownFlag(r, name)
		}
	}
	least, most := r.cmd.argCount()
	switch path := strings.Join(r.path, " "); {
	case len(r.args) < least:
		return r, usagef("type it as: "+synopsis(path, r.cmd), "%s: %s is missing", path, strings.Fields(r.cmd.args)[len(r.args)])
	case len(r.args) > most:
		return r, usagef("type it as: "+synopsis(path, r.cmd), "%s: %q is one argument too many", path, r.args[most])
	}
	return r, nil
}

// walk goes down the tree from r, word by word. In a line that is still being
// typed it leaves out what it does not understand, which else is an error.
func walk(r resolved, words []string, typing bool) (resolved, error) {
	root := r.cmd
	for i := 0; i < len(words); i++ {
		switch word := words[i]; {
		case word == "--":
			r.args = append(r.args, words[i+1:]...)
			return r, nil
		case word == "-h" || word == "--help" || word == "-help":
			r.help = true
		case strings.HasPrefix(word, "-") && word != "-":
			taken, err := takeFlag(root, r, words[i:])
			if err != nil && typing {
				if name, _ := flagName(word); i == len(words)-1 && anyFlag(root, name) != nil {
					r.wants = name
				}
				continue
			}
			if err != nil && !r.help {
				return r, err
			}
			r.flags = append(r.flags, words[i:i+taken]...)
			if r.cmd.run == nil {
				r.early = len(r.flags)
			}
			i += taken - 1
		case r.cmd.run != nil:
			r.args = append(r.args, word)
		default:
			for name := range strings.SplitSeq(word, ":") {
				next := r.cmd.find(name)
				if next != nil {
					r.cmd, r.path = next, append(r.path, next.called()[0])
				} else if !typing {
					return r, unknownCommand(r, name)
				}
			}
		}
	}
	return r, nil
}

// takeFlag says how many words the flag at words[0] takes: two if its value
// stands apart.
func takeFlag(root *command, r resolved, words []string) (int, error) {
	name, _ := flagName(words[0])
	var f cli.Flag
	if r.cmd.run != nil {
		f = findFlag(r.cmd.flags, name)
	} else {
		f = anyFlag(root, name) // the verb is yet to come; flags of one name are alike everywhere
	}
	if f == nil {
		return 1, unknownFlag(r, name)
	}
	if _, isBool := f.(*cli.BoolFlag); isBool || strings.Contains(words[0], "=") {
		return 1, nil
	}
	if len(words) < 2 {
		return 1, usagef("give it as "+dashes(name)+" VALUE", "%s needs a value", dashes(name))
	}
	return 2, nil
}

// flagName is the name in "-o", "--output" or "--output=json".
func flagName(word string) (string, bool) {
	if !strings.HasPrefix(word, "-") {
		return "", false
	}
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	return name, true
}

func dashes(name string) string {
	return strings.Repeat("-", min(len(name), 2)) + name
}

func findFlag(flags []cli.Flag, name string) cli.Flag {
	i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return nil
	}
	return flags[i]
}

func anyFlag(c *command, name string) cli.Flag {
	f := findFlag(c.flags, name)
	for _, s := range c.sub {
		if f == nil {
			f = anyFlag(s, name)
		}
	}
	return f
}

func unknownCommand(r resolved, name string) error {
	var names []string
	for _, s := range r.cmd.sub {
		names = append(names, s.called()[0])
	}
	words := func(last string) string { return strings.Join(append(slices.Clip(r.path), last), " ") }
	remedy := "there are: " + strings.Join(names, ", ")
	if near := nearest(name, names); near != "" {
		remedy = fmt.Sprintf("did you mean %q?", words(near))
	}
	return usagef(remedy, "there is no command %q", words(name))
}

func unknownFlag(r resolved, name string) error {
	var names []string
	for _, f := range r.cmd.flags {
		names = append(names, f.Names()...)
	}
	remedy := "see --help for the flags there are"
	if near := nearest(name, names); near != "" {
		remedy = fmt.Sprintf("did you mean %s?", dashes(near))
	}
	return usagef(remedy, "%s: there is no flag %s", strings.Join(r.path, " "), dashes(name))
}

// nearest is the candidate that is at most two typing errors away from name,
// or one that name begins, or "".
func nearest(name string, candidates []string) string {
	sort.Strings(candidates)
	best, bestDistance := "", 3
	for _, c := range candidates {
		d := distance(name, c)
		if len(name) > 1 && strings.HasPrefix(c, name) {
			d = 1
		}
		if d < bestDistance && d < len(c) {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the number of letters to add, drop or change to get from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
