package resource

import (
	"cmp"
	"strconv"
)

// Dimension is one thing that accounts have limits of, and all that is said
// about it.
type Dimension struct {
	Name       string               // in JSON
	Setting    string               // below `limits:` in the configuration; the client's flag is --max-SETTING
	Unit       Unit                 //
	Default    string               // of the configuration; a text as an operator writes it
	Noun       string               // for people: "CPUs"
	Doc        string               // of the client's flag; begins with the noun
	SettingDoc string               // of the configuration: "how many apps"
	Of         func(*Limits) *int64 // its field
}

// Unit is what the numbers of a dimension count.
type Unit int

// The units. People write Count as a number, the others as amounts: 1.5, 64Gi.
const (
	Count Unit = iota
	Thousandths
	Bytes
)

// Text is n for people.
func (u Unit) Text(n int64) string {
	switch u {
	case Thousandths:
		return strconv.FormatFloat(float64(n)/1000, 'f', -1, 64)
	case Bytes:
		// To the MiB: a limit of 10Gi and 10209Mi in use must not look the same.
		if mib := n >> 20; mib%1024 != 0 {
			return strconv.FormatInt(mib, 10) + "Mi"
		}
		return bytesText(n)
	}
	return strconv.FormatInt(n, 10)
}

// Or returns l with what is 0 in it taken from other.
func (l Limits) Or(other Limits) Limits {
	for _, d := range Dimensions() {
		*d.Of(&l) = cmp.Or(*d.Of(&l), *d.Of(&other))
	}
	return l
}

// Add returns l + other.
func (l Limits) Add(other Limits) Limits {
	for _, d := range Dimensions() {
		*d.Of(&l) += *d.Of(&other)
	}
	return l
}

// Sub returns l - other, which may be negative.
func (l Limits) Sub(other Limits) Limits {
	for _, d := range Dimensions() {
		*d.Of(&l) -= *d.Of(&other)
	}
	return l
}
