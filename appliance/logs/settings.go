package logs

import (
	"slices"
	"strings"
)

// Settings are what an operator writes about the log.
type Settings struct {
	Level  string `yaml:"level" doc:"the least that is logged: debug, info, warn or error"`
	Format string `yaml:"format" doc:"text for people or json for programs"`
}

// DefaultSettings are the settings of an operator who says nothing.
func DefaultSettings() Settings { return Settings{Level: "info", Format: Text} }

// Check says what is wrong with s.
func (s Settings) Check(fail func(field, value, wrong, remedy string)) {
	if _, err := ParseLevel(s.Level); err != nil {
		fail("level", s.Level, "unknown", "use "+strings.Join(Levels(), ", "))
	}
	if !slices.Contains(Formats(), s.Format) {
		fail("format", s.Format, "unknown", "use "+strings.Join(Formats(), ", "))
	}
}
