package store

import "testing"

func TestKeepUnknown(t *testing.T) {
	for _, tt := range []struct{ name, stored, before, after, want string }{
		{"nothing unknown", `{"a":1}`, `{"a":1}`, `{"a":2}`, `{"a":2}`},
		{"at the top", `{"a":1,"new":true}`, `{"a":1}`, `{"a":2}`, `{"a":2,"new":true}`},
		{"inside", `{"spec":{"a":1,"size":{"b":1,"new":[1]}}}`, `{"spec":{"a":1,"size":{"b":1}}}`, `{"spec":{"size":{"b":3}}}`, `{"spec":{"size":{"b":3,"new":[1]}}}`},
		{"taken away with what it is in", `{"a":1,"size":{"b":1,"new":2}}`, `{"a":1,"size":{"b":1}}`, `{"a":2}`, `{"a":2}`},
		{"in conditions", `{"c":[{"type":"A","new":1},{"type":"B"}]}`, `{"c":[{"type":"A"},{"type":"B"}]}`, `{"c":[{"type":"B"},{"type":"A"},{"type":"C"}]}`,
			`{"c":[{"type":"B"},{"new":1,"type":"A"},{"type":"C"}]}`},
		{"known members go for good", `{"env":{"A":"1","B":"2"},"new":1}`, `{"env":{"A":"1","B":"2"}}`, `{"env":{"B":"2"}}`, `{"env":{"B":"2"},"new":1}`},
		{"written in capitals", `{"NAME":"x","name":"y"}`, `{"name":"y"}`, `{"name":"z"}`, `{"name":"z"}`},
		{"known and set later", `{"off":false,"a":1}`, `{"a":1}`, `{"a":1,"off":true}`, `{"a":1,"off":true}`},
		{"null", `{"spec":null,"new":1}`, `{"spec":{}}`, `{"spec":{"a":1}}`, `{"new":1,"spec":{"a":1}}`},
		{"another shape", `{"s":{"a":1}}`, `{"s":[1]}`, `{"s":[2]}`, `{"s":[2]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := keepUnknown([]byte(tt.stored), []byte(tt.before), []byte(tt.after))
			if err != nil || string(got) != tt.want {
				t.Errorf("got %s, %v, want %s", got, err, tt.want)
			}
		})
	}
}
