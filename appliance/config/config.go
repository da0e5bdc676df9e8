// Package config reads, checks and shows a configuration. It knows none of its
// sections: a configuration is a struct of settings and of sections, and each
// section is a struct that the package it is for declares, with its defaults,
// its check and a line about every field:
//
//	type Settings struct {
//		Level string `yaml:"level" doc:"the least that is logged: debug, info, warn or error"`
//	}
//
// A section whose settings are in a table elsewhere is a struct with a List of
// them instead.
//
// What can be set in the file can be set by an environment variable too, for
// every type of field.
//
// Parties: the composition root puts the sections together and calls Load; the
// packages that own sections need not import this one. Any package may.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
)

// maxSize: a configuration is a page of text.
const maxSize = 1 << 20

// envPrefix stands before the name of a setting, upper case and its dots as
// underscores: MULTIPAAS_LOG_LEVEL.
const envPrefix = "MULTIPAAS_"

// Sources are where settings come from, weakest first.
type Sources struct {
	File     string
	Optional bool              // the file need not be there
	Env      []string          // "MULTIPAAS_DATA_DIR=/x"
	Flags    map[string]string // "log.level": "debug"
}

// Load reads the sources over what into, a pointer to a struct, holds: the
// defaults. All mistakes are reported at once.
func Load(into any, from Sources) error {
	var errs []error
	if from.File != "" {
		data, err := readBounded(from.File)
		switch {
		case from.Optional && errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("read configuration: %w", err)
		default:
			errs = append(errs, Parse(data, into, from.File))
		}
	}
	vars := map[string]string{}
	for _, kv := range from.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			vars[k] = v
		}
	}
	all := settings(into)
	for _, s := range all {
		name := s.variable()
		if v, ok := vars[name]; ok && name != "" {
			errs = append(errs, s.set(name, v))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(from.Flags)) {
		i := slices.IndexFunc(all, func(s setting) bool { return s.name == name })
		if i < 0 {
			errs = append(errs, fmt.Errorf("flag %s: unknown setting; have %s", name, strings.Join(names(all), ", ")))
			continue
		}
		errs = append(errs, all[i].set("flag "+name, from.Flags[name]))
	}
	return errors.Join(errs...)
}

func readBounded(file string) ([]byte, error) {
	fd, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	data, err := io.ReadAll(io.LimitReader(fd, maxSize+1))
	if err == nil && len(data) > maxSize {
		err = fmt.Errorf("%s: more than %d bytes", file, maxSize)
	}
	return data, err
}

// Mistake says what is wrong with a setting: its name, its value, what is wrong
// and what to do.
func Mistake(field, value, wrong, remedy string) error {
	return fmt.Errorf("%s: %q: %s: %s", field, value, wrong, remedy)
}

// Checker is a section that has more to say about its values than their types.
// Check calls fail for every mistake, with the field's own name, and changes
// nothing.
type Checker interface {
	Check(fail func(field, value, wrong, remedy string))
}

// Check returns what the sections of c, a struct, and c itself say is wrong.
func Check(c any) error { return errors.Join(check("", reflect.ValueOf(c))...) }

func check(prefix string, v reflect.Value) (errs []error) {
	if c, ok := v.Interface().(Checker); ok {
		c.Check(func(field, value, wrong, remedy string) {
			errs = append(errs, Mistake(prefix+field, value, wrong, remedy))
		})
	}
	for _, f := range fieldsOf(v) {
		switch {
		case f.value.Kind() == reflect.Struct:
			errs = append(errs, check(prefix+f.name+".", f.value)...)
		case f.value.Kind() == reflect.Slice && f.value.Type().Elem().Kind() == reflect.Struct:
			for j := range f.value.Len() {
				errs = append(errs, check(fmt.Sprintf("%s%s[%d].", prefix, f.name, j), f.value.Index(j))...)
			}
		}
	}
	return errs
}
