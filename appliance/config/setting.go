package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// setting is one value of a configuration, or a section of it.
type setting struct {
	name  string // "log.level"; as a field of its section "level"
	doc   string
	noEnv bool
	value reflect.Value
}

// settings are the values of the struct that c points to, in their order.
func settings(c any) []setting { return settingsOf("", reflect.ValueOf(c).Elem()) }

func settingsOf(prefix string, v reflect.Value) (all []setting) {
	for _, f := range fieldsOf(v) {
		f.name = prefix + f.name
		if f.value.Kind() == reflect.Struct {
			all = append(all, settingsOf(f.name+".", f.value)...)
			continue
		}
		all = append(all, f)
	}
	return all
}

// fieldsOf are the fields of a section, in their order.
func fieldsOf(v reflect.Value) (all []setting) {
	if l, ok := v.Interface().(lister); ok {
		return l.fields()
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		all = append(all, setting{name, f.Tag.Get("doc"), f.Tag.Get("env") == "-", v.Field(i)})
	}
	return all
}

func names(all []setting) []string {
	var out []string
	for _, s := range all {
		out = append(out, s.name)
	}
	return out
}

// variable is the environment variable of a setting; "" if it has none, since
// the variable means something else.
func (s setting) variable() string {
	if s.noEnv {
		return ""
	}
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.name, ".", "_"))
}

// set reads a text, which came from where, into a setting.
func (s setting) set(where, text string) error {
	t := s.value.Type()
	if t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Struct {
		list := reflect.MakeSlice(t, 0, 0)
		for e := range strings.SplitSeq(text, ",") {
			if e = strings.TrimSpace(e); e == "" {
				continue
			}
			v := reflect.New(t.Elem()).Elem()
			if err := setScalar(v, where, e); err != nil {
				return err
			}
			list = reflect.Append(list, v)
		}
		s.value.Set(list)
		return nil
	}
	if t.Kind() == reflect.Slice {
		v := reflect.New(t)
		if err := Parse([]byte(text), v.Interface(), where); err != nil {
			return err
		}
		s.value.Set(v.Elem())
		return nil
	}
	return setScalar(s.value, where, text)
}

func setScalar(v reflect.Value, where, text string) error {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return Mistake(where, text, "is not true or false", "write true or false")
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return Mistake(where, text, "is not a number", "write digits only, 25 for one")
		}
		v.SetInt(n)
	default:
		panic(fmt.Sprintf("config: no setting can be a %s", v.Type())) // a test walks every field
	}
	return nil
}

// describe says what a value like v is, as an operator calls it.
func describe(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a number"
	case reflect.Slice:
		return "a list"
	case reflect.Struct:
		return "fields (" + strings.Join(names(fieldsOf(v)), ", ") + ")"
	}
	return "a text"
}
