package client

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// The scripts for the three shells. Each calls the hidden command with the words
// typed so far, the last being the one to complete, and works for `mp` and for
// `multipaas mp`.
const (
	bashCompletion = `# bash completion for mp. Use: source <(mp completion bash)
_mp_complete() {
  local self="${COMP_WORDS[0]}" from=1 sub=()
  COMPREPLY=()
  local line="${COMP_LINE:0:COMP_POINT}" words
  if [ "${self##*/}" = multipaas ]; then
    [ "${COMP_WORDS[1]}" = mp ] || return 0
    sub=(mp); from=2
  fi
  # bash splits at ':' and '='; we want the words as typed.
  read -r -a words <<< "$line"
  case "$line" in *[[:space:]]) words+=("");; esac
  local IFS=$'\n' typed="${words[${#words[@]}-1]}" prefix=""
  COMPREPLY=($("$self" "${sub[@]}" __complete "${words[@]:$from}" 2>/dev/null))
  case "$typed" in *[:=]*) prefix="${typed%"${typed##*[:=]}"}";; esac
  COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
}
complete -F _mp_complete mp
complete -F _mp_complete -o default multipaas
`
	zshCompletion = `#compdef mp
# zsh completion for mp. Use: source <(mp completion zsh)
_mp_complete() {
  local -a sub found
  local from=2
  if [[ ${words[1]:t} == multipaas ]]; then
    [[ ${words[2]} == mp ]] || return 0
    sub=(mp); from=3
  fi
  found=("${(@f)$(${words[1]} $sub __complete "${(@)words[from,CURRENT]}" 2>/dev/null)}")
  compadd -Q -- ${found:#}
}
compdef _mp_complete mp multipaas
`
	fishCompletion = `# fish completion for mp. Use: mp completion fish | source
function __mp_complete
  set -l words (commandline -opc) (commandline -ct)
  set -l self $words[1]
  if string match -q '*multipaas' -- $self
    test "$words[2]" = mp; or return
    $self mp __complete $words[3..] 2>/dev/null
  else
    $self __complete $words[2..] 2>/dev/null
  end
end
complete -c mp -f -a '(__mp_complete)'
complete -c multipaas -n '__fish_seen_subcommand_from mp' -f -a '(__mp_complete)'
`
)

func (p *program) completionCommand() *command {
	return &command{
		name: "completion", usage: "print a completion script for your shell", args: "SHELL",
		about: `For bash, zsh and fish. Names of accounts, workspaces, apps and the like come from the
server, and are kept for a few seconds.`,
		examples: []string{"source <(mp completion bash)", "mp completion fish | source"},
		names:    func(*call) ([]string, error) { return []string{"bash", "zsh", "fish"}, nil },
		run: func(c *call) error {
			script := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.arg(0)]
			if script == "" {
				return usagef("use bash, zsh or fish", "there is no completion for %q", c.arg(0))
			}
			_, err := io.WriteString(c.out, script)
			return err
		},
	}
}

// Limits of one completion: a user waits for it at each press of the key.
const (
	completionTimeout = 800 * time.Millisecond
	completionFresh   = 10 * time.Second // names are asked for again after that
	maxCompletions    = 500
)

// complete writes what may stand in place of the last word, one per line. It
// never says why it has nothing to offer.
func (p *program) complete(ctx context.Context, root *command, words []string) {
	if len(words) == 0 {
		words = []string{""}
	}
	last, before := words[len(words)-1], words[:len(words)-1]
	offers := p.offers(ctx, root, before, last)
	slices.Sort(offers)
	for _, o := range offers[:min(len(offers), maxCompletions)] {
		if o = printable(o); o != "" && strings.HasPrefix(o, last) {
			fmt.Fprintln(p.out, o)
		}
	}
}

func (p *program) offers(ctx context.Context, root *command, before []string, last string) []string {
	r, _ := walk(resolved{cmd: root}, before, true)
	switch {
	case r.wants != "":
		return p.flagValues(ctx, root, r)
	case strings.HasPrefix(last, "-"):
		var found []string
		for _, f := range r.cmd.flags {
			found = append(found, dashes(f.Names()[0]))
		}
		return append(found, "--help")
	case r.cmd.run == nil:
		// "ws:cr" is "ws create", too.
		prefix := last[:strings.LastIndexByte(last, ':')+1]
		noun, err := walk(resolved{cmd: r.cmd}, strings.Fields(strings.TrimSuffix(prefix, ":")), false)
		if err != nil {
			return nil
		}
		var found []string
		for _, s := range noun.cmd.sub {
			found = append(found, prefix+s.called()[0])
		}
		return found
	case r.cmd.names == nil:
		return nil
	}
	if _, most := r.cmd.argCount(); len(r.args) >= most {
		return nil
	}
	return p.namesFor(ctx, r, r.cmd.names)
}

// flagValues offers values of the flag that was typed last.
func (p *program) flagValues(ctx context.Context, root *command, r resolved) []string {
	f := findFlag(r.cmd.flags, r.wants)
	if f == nil {
		f = anyFlag(root, r.wants) // which walk has found
	}
	ask := map[string]func(*call) ([]string, error){
		"account":      p.accounts().names,
		"organization": p.organizations().names,
		"workspace":    p.workspaces().names,
		"namespace":    p.namespaces().names,
		"image":        (*call).imagesWithTags,
	}[f.Names()[0]]
	if ask != nil {
		return p.namesFor(ctx, r, ask)
	}
	return map[string][]string{
		"output":         outputs(),
		"default-output": outputs(),
		"role":           {"admin", "developer"},
		"datastore":      {"kine", "etcd"},
		"pod-security":   {"baseline", "privileged"},
	}[f.Names()[0]]
}

// rememberedNames are offers, kept so that the key answers at once.
type rememberedNames struct {
	At    time.Time `json:"at"`
	Names []string  `json:"names"`
}

// namesFor asks the server, unless it was asked the same a moment ago. If it
// does not answer in time the old names are better than none.
func (p *program) namesFor(ctx context.Context, r resolved, ask func(*call) ([]string, error)) []string {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	if r.cmd.run == nil {
		r.cmd = &command{name: r.cmd.name, flags: flags(placeFlags(inWorkspace), namespaceFlag()), run: func(*call) error { return nil }}
	}
	var offers []string
	// The words may hold flags that are not good yet; without names, then.
	_ = p.parse(ctx, r, func(c *call) error {
		place, err := c.place()
		if err != nil {
			return err
		}
		file := c.cacheFile("names", fmt.Sprintf("%v\x00%q\x00%s\x00%q", place, r.path, r.wants, r.args))
		var old rememberedNames
		if readJSON(file, &old, false) == nil && time.Since(old.At) < completionFresh {
			offers = old.Names
			return nil
		}
		if offers, err = ask(c); err != nil {
			offers = old.Names
			return err
		}
		return writeJSON(file, rememberedNames{At: time.Now(), Names: offers})
	})
	return offers
}
