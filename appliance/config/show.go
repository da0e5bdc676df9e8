package config

import (
	"reflect"

	"go.yaml.in/yaml/v3"
)

// Print is all of c, a struct, as YAML, with what each setting is for.
func Print(c any) (string, error) {
	return marshal(node(reflect.ValueOf(c), reflect.Value{}))
}

// Diff is what of c differs from the defaults, a struct of the same type, as
// YAML that can be used as a configuration.
func Diff(c, defaults any) (string, error) {
	n := node(reflect.ValueOf(c), reflect.ValueOf(defaults))
	if n == nil {
		return "# all default\n", nil
	}
	return marshal(n)
}

func marshal(n *yaml.Node) (string, error) {
	data, err := yaml.Marshal(n)
	return string(data), err
}

// node is a YAML mapping, in the order of the fields: with what each is for or,
// if there are defaults, of what differs from them; nil if nothing does.
func node(v, def reflect.Value) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode}
	for i, f := range fieldsOf(v) {
		a, b := f.value, reflect.Value{}
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: f.name}
		if def.IsValid() {
			b = fieldsOf(def)[i].value
			if a.Kind() == reflect.Slice && a.Len() == 0 && b.Len() == 0 || reflect.DeepEqual(a.Interface(), b.Interface()) {
				continue
			}
		} else {
			key.HeadComment = f.doc
		}
		var value *yaml.Node
		if a.Kind() == reflect.Struct {
			if value = node(a, b); value == nil {
				continue // a list of it is empty here and missing there
			}
		} else {
			value = &yaml.Node{}
			if err := value.Encode(a.Interface()); err != nil {
				continue // texts, numbers and lists of them encode
			}
		}
		out.Content = append(out.Content, key, value)
	}
	if len(out.Content) == 0 {
		return nil
	}
	return out
}
