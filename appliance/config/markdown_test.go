package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Markdown is a table of all settings of the defaults, a struct.
func Markdown(defaults any) string {
	var b strings.Builder
	b.WriteString("| setting | default | what it is |\n|---|---|---|\n")
	rows(&b, "", reflect.ValueOf(defaults))
	return b.String()
}

func rows(b *strings.Builder, prefix string, v reflect.Value) {
	for _, f := range fieldsOf(v) {
		name, t := prefix+f.name, f.value.Type()
		switch {
		case t.Kind() == reflect.Struct:
			fmt.Fprintf(b, "| **%s** | | %s |\n", name, f.doc)
			rows(b, name+".", f.value)
		case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
			fmt.Fprintf(b, "| **%s** | | %s |\n", name, f.doc)
			rows(b, name+"[].", reflect.Zero(t.Elem()))
		case f.value.IsZero():
			fmt.Fprintf(b, "| `%s` | | %s |\n", name, f.doc)
		default:
			fmt.Fprintf(b, "| `%s` | `%v` | %s |\n", name, f.value, f.doc)
		}
	}
}
