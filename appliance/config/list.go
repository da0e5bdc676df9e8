package config

import (
	"fmt"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
)

// List makes a section of the struct that embeds it and nothing else: its
// settings are listed here instead of being fields.
type List []Listed

// Listed is a setting of a List.
type Listed struct {
	Name  string
	Doc   string
	Value any // a pointer to what a field would hold, at first to the default
}

type lister interface{ fields() []setting }

func (l List) fields() (all []setting) {
	for _, s := range l {
		all = append(all, setting{name: s.Name, doc: s.Doc, value: reflect.ValueOf(s.Value).Elem()})
	}
	return all
}

// UnmarshalYAML is for the YAML library. It is as strict as Parse, and explains
// mistakes itself: no type tells Parse the names in a list.
func (l List) UnmarshalYAML(n *yaml.Node) error {
	section := map[string]yaml.Node{}
	errs := []error{n.Decode(&section)} // no section, or a name twice
	for i := 0; errs[0] == nil && i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if at := slices.IndexFunc(l, func(s Listed) bool { return s.Name == key.Value }); at >= 0 {
			errs = append(errs, value.Decode(l[at].Value))
			continue
		}
		errs = append(errs, &yaml.TypeError{Errors: []string{
			fmt.Sprintf("line %d: field %s not found in type %T", key.Line, key.Value, section),
		}})
	}
	self := reflect.ValueOf(struct{ List }{l})
	types := map[string]reflect.Value{reflect.TypeOf(section).String(): self}
	typesIn(self, types)
	var all yaml.TypeError
	for _, err := range errs {
		typed, ok := err.(*yaml.TypeError)
		switch {
		case ok:
			for _, e := range typed.Errors {
				all.Errors = append(all.Errors, explain(e, types))
			}
		case err != nil:
			return err
		}
	}
	if all.Errors == nil {
		return nil
	}
	return &all
}
