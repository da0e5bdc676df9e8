package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Parse reads the YAML text of the named file over what into points to. It is
// strict: an unknown or doubled field is an error, with the line it stands in.
func Parse(data []byte, into any, file string) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(into)
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
	types := map[string]reflect.Value{}
	typesIn(reflect.ValueOf(into).Elem(), types)
	var errs []error
	for _, e := range typed.Errors {
		errs = append(errs, fmt.Errorf("%s: %s", file, explain(e, types)))
	}
	return errors.Join(errs...)
}

// typesIn notes v and what is in it, or would be, by the names that the YAML
// library has for their types.
func typesIn(v reflect.Value, types map[string]reflect.Value) {
	types[v.Type().String()] = v
	switch v.Kind() {
	case reflect.Slice:
		typesIn(reflect.Zero(v.Type().Elem()), types)
	case reflect.Struct:
		for _, f := range fieldsOf(v) {
			typesIn(f.value, types)
		}
	}
}

// renamed has what fields of earlier versions are called now.
var renamed = map[string]string{"blocked_networks": "egress.deny"}

var (
	unknownField = regexp.MustCompile(`^(line \d+: )field (.*) not found in type (\S+)$`)
	wrongType    = regexp.MustCompile("^(line \\d+: )cannot unmarshal !!(\\w+) (`.*` )?into (\\S+)$")
)

// explain turns what the YAML library says into what an operator understands:
// it names Go types, which operators don't know.
func explain(msg string, types map[string]reflect.Value) string {
	if m := unknownField.FindStringSubmatch(msg); m != nil && types[m[3]].IsValid() {
		if now := renamed[m[2]]; now != "" {
			return fmt.Sprintf("%s%q is called %s now: move what it has there", m[1], m[2], now)
		}
		return fmt.Sprintf("%s%q: unknown field; have %s", m[1], m[2], strings.Join(names(fieldsOf(types[m[3]])), ", "))
	}
	if m := wrongType.FindStringSubmatch(msg); m != nil && types[m[4]].IsValid() {
		want := describe(types[m[4]])
		if want == "a list" {
			want = "a list (lines that begin with `- `)"
		}
		kind := map[string]string{"map": "fields", "seq": "a list", "str": "a text", "int": "a number", "bool": "true or false"}[m[2]]
		if kind == "" {
			kind = m[2]
		}
		return fmt.Sprintf("%s%sis %s; write %s", m[1], m[3], kind, want)
	}
	return msg
}
