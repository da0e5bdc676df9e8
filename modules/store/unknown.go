package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// keepUnknown returns after, the new encoding of a resource, with what is in
// stored and this program does not know. While servers are upgraded one by one,
// an older program writes back what a newer one has written; without this each of its
// writes would take away what it can't read.
//
// before is stored as this program encodes it: what is in stored and not there
// is unknown. Lists are followed by the type or name of their elements, as of
// conditions; elements that have neither are the writer's own.
func keepUnknown(stored, before, after []byte) ([]byte, error) {
	if bytes.Equal(stored, before) {
		return after, nil
	}
	merged, err := mergeUnknown(stored, before, after)
	if err == nil && len(merged) > MaxBytes {
		err = fmt.Errorf("%w: %d bytes, at most %d are possible", ErrTooLarge, len(merged), MaxBytes)
	}
	return merged, err
}

type members = map[string]json.RawMessage

func mergeUnknown(stored, before, after json.RawMessage) (json.RawMessage, error) {
	if bytes.Equal(stored, before) {
		return after, nil
	}
	if was, now, ok := both[members](before, after); ok {
		var all members
		if json.Unmarshal(stored, &all) != nil {
			return after, nil // written as something else once
		}
		changed := false
		for name, value := range all {
			known, isKnown := was[name]
			if !isKnown {
				// Go reads "NAME" as "name": such a member is known, and must not
				// stand behind the right one.
				if !hasFold(was, name) && !hasFold(now, name) {
					now[name], changed = value, true
				}
				continue
			}
			if _, still := now[name]; !still {
				continue
			}
			merged, err := mergeUnknown(value, known, now[name])
			if err != nil {
				return nil, err
			}
			changed = changed || !bytes.Equal(merged, now[name])
			now[name] = merged
		}
		return encoded(now, after, changed)
	}
	if was, now, ok := both[[]json.RawMessage](before, after); ok {
		var all []json.RawMessage
		if json.Unmarshal(stored, &all) != nil {
			return after, nil
		}
		old, known := byIdentity(all), byIdentity(was)
		changed := false
		for i, element := range now {
			id := identityOf(element)
			if id == "" || old[id] == nil || known[id] == nil {
				continue
			}
			merged, err := mergeUnknown(old[id], known[id], element)
			if err != nil {
				return nil, err
			}
			changed = changed || !bytes.Equal(merged, element)
			now[i] = merged
		}
		return encoded(now, after, changed)
	}
	return after, nil
}

// both decodes x and y if both are of the shape T; null is none.
func both[T members | []json.RawMessage](x, y json.RawMessage) (a, b T, ok bool) {
	ok = json.Unmarshal(x, &a) == nil && json.Unmarshal(y, &b) == nil && a != nil && b != nil
	return a, b, ok
}

// encoded is v, or same if nothing has changed: then its members keep their order.
func encoded(v any, same json.RawMessage, changed bool) (json.RawMessage, error) {
	if !changed {
		return same, nil
	}
	return json.Marshal(v)
}

func hasFold(m members, name string) bool {
	for known := range m {
		if strings.EqualFold(known, name) {
			return true
		}
	}
	return false
}

func byIdentity(list []json.RawMessage) members {
	found := members{}
	for _, element := range list {
		if id := identityOf(element); id != "" && found[id] == nil {
			found[id] = element
		}
	}
	return found
}

func identityOf(element json.RawMessage) string {
	var v struct{ Type, Name string }
	if json.Unmarshal(element, &v) != nil {
		return ""
	}
	if v.Type != "" {
		return "type " + v.Type
	}
	if v.Name != "" {
		return "name " + v.Name
	}
	return ""
}
