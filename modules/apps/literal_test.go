package apps

import (
	"slices"
	"strings"
	"testing"
)

// expand is what kubelet makes of a value or an argument, by the documentation of
// pods: $(NAME) is the variable's value, or itself if there is none; $$ is $; any
// other $ is itself.
func expand(s string, env map[string]string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(s, "$")
		out.WriteString(before)
		name, after, closed := strings.Cut(strings.TrimPrefix(rest, "("), ")")
		switch {
		case !found:
			return out.String()
		case strings.HasPrefix(rest, "$"):
			out.WriteString("$")
			s = rest[1:]
		case strings.HasPrefix(rest, "(") && closed:
			value, ok := env[name]
			if !ok {
				value = "$(" + name + ")"
			}
			out.WriteString(value)
			s = after
		default:
			out.WriteString("$")
			s = rest
		}
	}
}

func TestExpandModel(t *testing.T) {
	t.Parallel()
	env := map[string]string{"A": "x", "": "empty"}
	for in, want := range map[string]string{
		"pa$$word": "pa$word", "$(A)/x": "x/x", "$$(A)": "$(A)", "$$$(A)": "$x", "$(B)": "$(B)", "$(A": "$(A", "$A": "$A", "$": "$",
		"$$$": "$$", "$()": "empty", "a$": "a$", "$((A)": "$((A)",
	} {
		if got := expand(in, env); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzLiteral: whatever a user types reaches the app byte for byte.
func FuzzLiteral(f *testing.F) {
	for _, s := range []string{"", "$", "$$", "pa$$word", "$(PORT)", "$$(PORT)", "$(", "$$$(PORT)$", "ü$é", "a\nb", "$(PORT", "((($)))"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		app := newApp("hello", "hello:1")
		app.Spec.Env = map[string]string{"A": s, "B": "$(A)"}
		app.Spec.Command, app.Spec.Args = []string{s}, []string{s, "$(A)"}
		c := render(app, "image").deployment.Spec.Template.Spec.Containers[0]
		env := map[string]string{}
		for _, e := range c.Env { // in their order, as kubelet does
			env[*e.Name] = expand(*e.Value, env)
		}
		if env["A"] != s || env["B"] != "$(A)" {
			t.Errorf("variables %q, want %q and $(A)", env, s)
		}
		got := []string{expand(c.Command[0], env), expand(c.Args[0], env), expand(c.Args[1], env)}
		if want := []string{s, s, "$(A)"}; !slices.Equal(got, want) {
			t.Errorf("arguments %q, want %q", got, want)
		}
	})
}
