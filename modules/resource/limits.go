package resource

import (
	"cmp"
	"strconv"
)

// Limits is how much of each thing an account may have, or has, or asks for. As
// a limit 0 stands for the platform's own.
//
// A new dimension is one field here and one row of Dimensions; the API, the
// configuration and the client follow.
type Limits struct {
	Users         int64 `json:"users,omitempty" minimum:"0" doc:"That were made for it"`
	Organizations int64 `json:"organizations,omitempty" minimum:"0"`
	Workspaces    int64 `json:"workspaces,omitempty" minimum:"0"`
	Machines      int64 `json:"machines,omitempty" minimum:"0"`
	Apps          int64 `json:"apps,omitempty" minimum:"0"`
	MilliCPU      int64 `json:"milliCPU,omitempty" minimum:"0" doc:"Thousandths of a CPU, of all machines"`
	MemoryBytes   int64 `json:"memoryBytes,omitempty" minimum:"0" doc:"Of all machines"`
	DiskBytes     int64 `json:"diskBytes,omitempty" minimum:"0" doc:"Of all machines"`
	ImageBytes    int64 `json:"imageBytes,omitempty" minimum:"0" doc:"Of all images in the registry"`
}

// Dimension is one thing that accounts have limits of, and all that is said
// about it.
type Dimension struct {
	Name    string               // in JSON
	Setting string               // below `limits:` in the configuration; the client's flag is --max-SETTING
	Unit    Unit                 //
	Default string               // of the configuration; a text as an operator writes it
	Noun    string               // for people: "CPUs"
	Doc     string               // a line that begins with the noun
	Of      func(*Limits) *int64 // its field
}

// Dimensions lists them.
func Dimensions() []Dimension {
	return []Dimension{
		{"users", "users", Count, "1000", "users", "users that were made for it", func(l *Limits) *int64 { return &l.Users }},
		{"organizations", "organizations", Count, "50", "organizations", "organizations", func(l *Limits) *int64 { return &l.Organizations }},
		// A workspace's plane takes 250 MB of the server.
		{"workspaces", "workspaces", Count, "25", "workspaces", "workspaces", func(l *Limits) *int64 { return &l.Workspaces }},
		{"machines", "machines", Count, "100", "machines", "machines in all workspaces", func(l *Limits) *int64 { return &l.Machines }},
		{"apps", "apps", Count, "500", "apps", "apps in all workspaces", func(l *Limits) *int64 { return &l.Apps }},
		{"milliCPU", "cpu", Thousandths, "400", "CPUs", "CPUs of all machines", func(l *Limits) *int64 { return &l.MilliCPU }},
		{"memoryBytes", "memory", Bytes, "1600Gi", "memory", "memory of all machines", func(l *Limits) *int64 { return &l.MemoryBytes }},
		{"diskBytes", "disk", Bytes, "10Ti", "disk", "disk of all machines", func(l *Limits) *int64 { return &l.DiskBytes }},
		{"imageBytes", "images", Bytes, "200Gi", "images", "images in the registry", func(l *Limits) *int64 { return &l.ImageBytes }},
	}
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
		return strconv.FormatInt(n>>20, 10) + " MiB"
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
