package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// setting is one value of a configuration.
type setting struct {
	name  string // "log.level"
	field reflect.StructField
	value reflect.Value
}

// settings are the values of the struct that c points to, in their order.
func settings(c any) []setting { return settingsOf("", reflect.ValueOf(c).Elem()) }

func settingsOf(prefix string, v reflect.Value) (all []setting) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Type.Kind() == reflect.Struct {
			all = append(all, settingsOf(prefix+fieldName(f)+".", v.Field(i))...)
			continue
		}
		all = append(all, setting{prefix + fieldName(f), f, v.Field(i)})
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
	if s.field.Tag.Get("env") == "-" {
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
	fail := func() error { return Mistake(where, text, "is not "+describe(v.Type()), "write "+example(v.Type())) }
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fail()
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return fail()
		}
		v.SetInt(n)
	default:
		panic(fmt.Sprintf("config: no setting can be a %s", v.Type())) // a test walks every field
	}
	return nil
}

// describe says what a value of a type is, as an operator calls it.
func describe(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a number"
	case reflect.Slice:
		return "a list"
	case reflect.Struct:
		return "fields (" + strings.Join(fieldsOf(t), ", ") + ")"
	}
	return "a text"
}

func example(t reflect.Type) string {
	if t.Kind() == reflect.Bool {
		return "true or false"
	}
	return "digits only, 25 for one"
}

func fieldsOf(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		out = append(out, fieldName(t.Field(i)))
	}
	return out
}
