package resource

import (
	"reflect"
	"strings"
	"testing"
)

func TestDimensionsAreAllOfLimits(t *testing.T) {
	fields := reflect.TypeFor[Limits]()
	rows := Dimensions()
	if len(rows) != fields.NumField() {
		t.Errorf("%d rows for %d fields", len(rows), fields.NumField())
	}
	seen := map[string]bool{}
	for i, d := range rows {
		var l Limits
		*d.Of(&l) = 1
		if name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ","); name != d.Name || reflect.ValueOf(l).Field(i).Int() != 1 {
			t.Errorf("row %d is of %q, field %d is %q", i, d.Name, i, name)
		}
		for _, name := range []string{d.Name + " in JSON", d.Setting + " as a setting"} {
			if seen[name] {
				t.Errorf("%s is there twice", name)
			}
			seen[name] = true
		}
		if d.Setting == "" || d.Default == "" || d.SettingDoc == "" || !strings.HasPrefix(d.Doc, d.Noun) {
			t.Errorf("%s lacks something: %+v", d.Name, d)
		}
	}
}

func TestLimits(t *testing.T) {
	x, y := Limits{Users: 1, DiskBytes: 2}, Limits{Users: 3, Apps: 4}
	if got, want := x.Or(y), (Limits{Users: 1, Apps: 4, DiskBytes: 2}); got != want {
		t.Errorf("or: got %+v, want %+v", got, want)
	}
	if got, want := x.Add(y), (Limits{Users: 4, Apps: 4, DiskBytes: 2}); got != want {
		t.Errorf("add: got %+v, want %+v", got, want)
	}
	for want, got := range map[string]string{"1500": Count.Text(1500), "1.5": Thousandths.Text(1500), "1536Mi": Bytes.Text(1536 << 20), "3Gi": Bytes.Text(3 << 30), "2Ki": Bytes.Text(2048)} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
