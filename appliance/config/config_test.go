package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

type everything struct {
	Text    string   `yaml:"text" doc:"a text"`
	Number  int64    `yaml:"number"`
	Flag    bool     `yaml:"flag"`
	Texts   []string `yaml:"texts"`
	Numbers []int    `yaml:"numbers"`
	Section struct {
		Flag  bool `yaml:"flag"`
		Inner struct {
			Number int `yaml:"number"`
		} `yaml:"inner"`
	} `yaml:"section"`
	Entries []entry `yaml:"entries"`
	Hidden  string  `yaml:"hidden" env:"-"`
}

type entry struct {
	Name string `yaml:"name"`
	On   bool   `yaml:"on"`
}

func (e entry) Check(fail func(field, value, wrong, remedy string)) {
	if e.Name == "" {
		fail("name", e.Name, "empty", "write one")
	}
}

// TestEnvironment sets a field of every type, and one wrongly.
func TestEnvironment(t *testing.T) {
	var want everything
	want.Text, want.Number, want.Flag = "x, y", 5, true
	want.Texts, want.Numbers = []string{"a", "b"}, []int{1, 2}
	want.Section.Flag, want.Section.Inner.Number = true, -7
	want.Entries = []entry{{"one", true}, {"two", false}}
	env := []string{
		"MULTIPAAS_TEXT=x, y", "MULTIPAAS_NUMBER=5", "MULTIPAAS_FLAG=true", "MULTIPAAS_TEXTS=a, b,", "MULTIPAAS_NUMBERS=1,2",
		"MULTIPAAS_SECTION_FLAG=1", "MULTIPAAS_SECTION_INNER_NUMBER=-7", "MULTIPAAS_ENTRIES=[{name: one, on: true}, {name: two}]",
		"MULTIPAAS_HIDDEN=x", "=x", "UNRELATED=x", "MULTIPAAS_OTHER=x",
	}
	var got everything
	if err := Load(&got, Sources{Env: env}); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	err := Load(&got, Sources{Env: []string{
		"MULTIPAAS_NUMBER=x", "MULTIPAAS_FLAG=maybe", "MULTIPAAS_NUMBERS=1,x", "MULTIPAAS_SECTION_INNER_NUMBER=1e99", "MULTIPAAS_ENTRIES=[{on: 5}]",
	}})
	for _, want := range []string{
		`MULTIPAAS_NUMBER: "x": is not a number`, `MULTIPAAS_FLAG: "maybe": is not true or false`, `MULTIPAAS_NUMBERS: "x": is not a number`,
		`MULTIPAAS_SECTION_INNER_NUMBER: "1e99": is not a number`, "MULTIPAAS_ENTRIES: line 1: `5` is a number; write true or false",
	} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("no word like %s in:\n%v", want, err)
		}
	}
	if err := Load(&got, Sources{Flags: map[string]string{"section.inner.number": "x"}}); !strings.Contains(fmt.Sprint(err), "flag section.inner.number") {
		t.Errorf("a flag: got %v", err)
	}
}

func TestCheckNamesTheWholeField(t *testing.T) {
	c := everything{Entries: []entry{{Name: "ok"}, {}}}
	if got, want := fmt.Sprint(Check(c)), `entries[1].name: "": empty: write one`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestList: what a list says is told like what fields say.
func TestList(t *testing.T) {
	type section struct{ List }
	type fields struct {
		Number int64  `yaml:"number" doc:"a number"`
		Text   string `yaml:"text" doc:"a text"`
	}
	type file struct {
		Listed section `yaml:"listed" doc:"a list"`
		Fields fields  `yaml:"struct" doc:"a struct"`
	}
	defaults := func() file {
		f := file{Listed: section{List{
			{Name: "number", Doc: "a number", Value: new(int64(1))},
			{Name: "text", Doc: "a text", Value: new("2")},
		}}}
		f.Fields.Number, f.Fields.Text = 1, "2"
		return f
	}
	told := func(section, text string) string {
		f := defaults()
		err := Load(&f, Sources{Env: []string{"MULTIPAAS_" + strings.ToUpper(section) + "_NUMBER=" + text}})
		for _, yaml := range []string{
			text, "", "{number: " + text + "}", "\n  text: x\n  nope:\n  - 1\n  number: [1]", "{number: 1, number: 2}", "{number: ~, text: ~}", "[1]",
		} {
			err = errors.Join(err, Parse([]byte(section+": "+yaml+"\n"), &f, "file"))
		}
		all, perr := Print(f)
		diff, derr := Diff(f, defaults())
		_, of, _ := strings.Cut(all, section+":")
		of, _, _ = strings.Cut(of, "# a struct")
		return strings.NewReplacer(section, "SECTION", strings.ToUpper(section), "SECTION").Replace(fmt.Sprintln(err, perr, derr, of, diff))
	}
	for _, text := range []string{"5", "many"} {
		got, want := told("listed", text), told("struct", text)
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
	got, want, _ := strings.Cut(Markdown(defaults()), "| **struct** | | a struct |\n")
	if _, got, _ = strings.Cut(got, "| **listed** | | a list |\n"); strings.ReplaceAll(got, "listed", "struct") != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
