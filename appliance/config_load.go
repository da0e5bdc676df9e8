package appliance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxConfig: a configuration is a page of text.
const maxConfig = 1 << 20

// envPrefix stands before the name of a setting, upper case and its dots as
// underscores: MULTIPAAS_LOG_LEVEL.
const envPrefix = "MULTIPAAS_"

// Load reads a configuration: the defaults, over them the file, over it the
// environment ("MULTIPAAS_DATA_DIR=/x"), over it flags ("log.level": "debug").
// An optional file need not be there. All mistakes are reported at once.
func Load(file string, optional bool, env []string, flags map[string]string) (File, error) {
	f := Defaults()
	var errs []error
	if file != "" {
		data, err := readBounded(file)
		switch {
		case optional && errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return f, fmt.Errorf("read configuration: %w", err)
		default:
			errs = append(errs, Parse(data, &f, file))
		}
	}
	vars := map[string]string{}
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			vars[k] = v
		}
	}
	for _, s := range settings(&f) {
		name := envPrefix + strings.ToUpper(strings.ReplaceAll(s.name, ".", "_"))
		if v, ok := vars[name]; ok {
			s.set(v)
		}
	}
	for name, v := range flags {
		i := slices.IndexFunc(settings(&f), func(s setting) bool { return s.name == name })
		if i < 0 {
			errs = append(errs, fmt.Errorf("flag %s: unknown setting; have %s", name, strings.Join(Settings(), ", ")))
			continue
		}
		settings(&f)[i].set(v)
	}
	return f, errors.Join(errs...)
}

func readBounded(file string) ([]byte, error) {
	fd, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	data, err := io.ReadAll(io.LimitReader(fd, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = fmt.Errorf("%s: more than %d bytes", file, maxConfig)
	}
	return data, err
}

// Parse reads the YAML text of the named file over f. It is strict: an unknown
// or doubled field is an error, with the line it stands in.
func Parse(data []byte, f *File, file string) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(f)
	if errors.Is(err, io.EOF) {
		return nil // an empty file
	}
	if err == nil {
		var more any
		if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: more than one YAML document; write one", file)
		}
		return nil
	}
	var typed *yaml.TypeError
	if !errors.As(err, &typed) {
		return fmt.Errorf("%s: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var errs []error
	for _, e := range typed.Errors {
		errs = append(errs, fmt.Errorf("%s: %s", file, explain(e)))
	}
	return errors.Join(errs...)
}

var (
	unknownField = regexp.MustCompile(`^(line \d+: )field (.*) not found in type appliance\.(\w+)$`)
	wrongType    = regexp.MustCompile("^(line \\d+: )cannot unmarshal !!(\\w+) (`.*` )?into (.*)$")
)

// explain turns what the YAML library says into what an operator understands:
// it names Go types, who doesn't know them.
func explain(msg string) string {
	if m := unknownField.FindStringSubmatch(msg); m != nil {
		return fmt.Sprintf("%s%q: unknown field; have %s", m[1], m[2], strings.Join(fieldsOf(m[3]), ", "))
	}
	if m := wrongType.FindStringSubmatch(msg); m != nil {
		want := "a text"
		switch {
		case strings.HasPrefix(m[4], "[]"):
			want = "a list (lines that begin with `- `)"
		case strings.HasPrefix(m[4], "appliance."):
			want = "fields (" + strings.Join(fieldsOf(strings.TrimPrefix(m[4], "appliance.")), ", ") + ")"
		}
		kind := map[string]string{"map": "fields", "seq": "a list", "str": "a text", "int": "a number", "bool": "true or false"}[m[2]]
		if kind == "" {
			kind = m[2]
		}
		return fmt.Sprintf("%s%sis %s; write %s", m[1], m[3], kind, want)
	}
	return msg
}

// fieldsOf names the YAML fields of one of the File types.
func fieldsOf(typ string) []string {
	for _, t := range []reflect.Type{
		reflect.TypeFor[File](), reflect.TypeFor[ListenFile](), reflect.TypeFor[WorkspacesFile](),
		reflect.TypeFor[UpstreamFile](), reflect.TypeFor[LogFile](),
	} {
		if t.Name() != typ {
			continue
		}
		var names []string
		for i := range t.NumField() {
			names = append(names, t.Field(i).Tag.Get("yaml"))
		}
		return names
	}
	return nil
}

// setting is one value of a File that can be written on one line.
type setting struct {
	name  string // "log.level"
	value reflect.Value
}

func (s setting) set(v string) {
	if s.value.Kind() == reflect.String {
		s.value.SetString(v)
		return
	}
	list := []string{}
	for _, e := range strings.Split(v, ",") {
		if e = strings.TrimSpace(e); e != "" {
			list = append(list, e)
		}
	}
	s.value.Set(reflect.ValueOf(list))
}

// settings are the texts and lists of texts of f; not registry_upstreams, which
// only a file can say.
func settings(f *File) []setting { return settingsOf("", reflect.ValueOf(f).Elem()) }

func settingsOf(prefix string, v reflect.Value) (all []setting) {
	for i := range v.NumField() {
		name, field := prefix+v.Type().Field(i).Tag.Get("yaml"), v.Field(i)
		switch {
		case field.Kind() == reflect.Struct:
			all = append(all, settingsOf(name+".", field)...)
		case field.Kind() == reflect.String, field.Type() == reflect.TypeFor[[]string]():
			all = append(all, setting{name, field})
		}
	}
	return all
}

// Settings names what can be set by environment and flags.
func Settings() []string {
	var f File
	var names []string
	for _, s := range settings(&f) {
		names = append(names, s.name)
	}
	return names
}

// Diff is what of f is not default, as YAML that can be used as a
// configuration: what `multipaas config --diff` prints.
func (f File) Diff() (string, error) {
	changed := diff(reflect.ValueOf(f), reflect.ValueOf(Defaults()))
	if changed == nil {
		return "# all default\n", nil
	}
	data, err := yaml.Marshal(changed)
	return string(data), err
}

// Print is all of f as YAML.
func (f File) Print() (string, error) {
	data, err := yaml.Marshal(f)
	return string(data), err
}

// diff returns a YAML mapping, in the order of the fields, of what differs; nil
// if nothing does.
func diff(v, def reflect.Value) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode}
	for i := range v.NumField() {
		a, b := v.Field(i), def.Field(i)
		if a.Kind() == reflect.Slice && a.Len() == 0 && b.Len() == 0 || reflect.DeepEqual(a.Interface(), b.Interface()) {
			continue
		}
		var value *yaml.Node
		if a.Kind() == reflect.Struct {
			value = diff(a, b)
		} else {
			value = &yaml.Node{}
			if err := value.Encode(a.Interface()); err != nil {
				continue // texts and lists of texts encode
			}
		}
		out.Content = append(out.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: v.Type().Field(i).Tag.Get("yaml")}, value)
	}
	if len(out.Content) == 0 {
		return nil
	}
	return out
}
