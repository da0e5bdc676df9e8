package resource

import (
	"fmt"
	"regexp"
	"strings"
)

var label = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// MaxName is the longest name of anything that becomes part of a host name. A
// DNS label (RFC 1123) may have 63 octets; a machine is called after its
// workspace with "-" and up to five digits behind it.
const MaxName = 57

// CheckName says what is wrong with name as the name of a what ("workspace"),
// or nil.
func CheckName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s: a name is missing; use lower-case letters, digits and '-'", what)
	case len(name) > MaxName:
		return fmt.Errorf("%s %q: the name is too long: use at most %d characters", what, name, MaxName)
	case !label.MatchString(name):
		return fmt.Errorf("%s %q: not a valid name: "+
			"use lower-case letters, digits and '-', and begin and end with a letter or digit", what, name)
	}
	return nil
}

var domain = regexp.MustCompile(`^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// CheckDomain says what is wrong with the domain of e-mail addresses, or nil.
func CheckDomain(name string) error {
	if len(name) > 180 || !domain.MatchString(name) {
		return fmt.Errorf("%q is not a domain of e-mail addresses: give one like acme.example", name)
	}
	return nil
}

// InDomain says whether a domain is another, or below it.
func InDomain(name, other string) bool { return name == other || strings.HasSuffix(name, "."+other) }
