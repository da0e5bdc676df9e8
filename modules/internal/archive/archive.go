// Package archive is the form that a volume has as a file: a tar (pax), which any tar reads. Its members, in order:
//
//	volume.json   what it is of: About
//	data/...      what is in the volume. A folder stands before what is in it, and once more behind that
//	summary.json  Summary: how much that was, and what was left out
//	end.json      End: the SHA-256 of all before its header, so that a file that is cut off or damaged is known
//
// Owners are numbers of the workspace, as its machines have them. Files with holes are as GNU tar
// has them (sparse format 1.0). archive/tar of the standard library was tried: it writes no holes, and fills those that it reads.
//
// It promises that the same members are the same octets, so that who was cut off can go on at an offset; and that what
// it reads, which anybody may have written, takes bounded memory.
//
// Parties: hosts write and read volumes, the client adds the end. Any module may import it; it imports nothing of ours.
package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Format is what About.Format says.
const Format = "multipaas-volume/1"

// The names of members.
const (
	AboutName   = "volume.json"
	Root        = "data"
	SummaryName = "summary.json"
	EndName     = "end.json"
)

// About says what a file is of.
type About struct {
	Format    string    `json:"format"`
	Volume    string    `json:"volume"` // ACCOUNT/ORGANIZATION/WORKSPACE/NAME
	UID       string    `json:"uid"`    // of the snapshot
	Class     string    `json:"class"`
	SizeBytes int64     `json:"sizeBytes"` // what a volume has at least that takes it
	TakenAt   time.Time `json:"takenAt"`
}

// Summary is how much there was.
type Summary struct {
	Members int64 `json:"members"`
	Bytes   int64 `json:"bytes"` // of files, without holes
	// LeftOut counts what is not in it, by what it is, and Examples are paths of some.
	LeftOut  map[string]int64 `json:"leftOut,omitempty"`
	Examples []string         `json:"examples,omitempty"`
}

// End is the last member.
type End struct {
	SHA256 string `json:"sha256"` // of all octets before it, in hex
}

// The kinds of members.
const (
	File    = '0'
	Link    = '1' // another name of a file
	Symlink = '2'
	Folder  = '5'
	Pipe    = '6'
)

const (
	block = 512
	// maxRecords is how large the pax records of a member are, as other readers have it.
	maxRecords = 1 << 20
	// MaxExtents is how many parts between holes a file has: their list takes 16 bytes for each in memory, and up to 34 in the file.
	MaxExtents = 1 << 16
	maxMap     = MaxExtents * 40
	// MaxXattrs is how large the extended attributes of a member are, names included.
	MaxXattrs = 768 << 10
)

// Extent is a part of a file that is no hole.
type Extent struct{ Offset, Size int64 }

// Xattr is an extended attribute.
type Xattr struct{ Name, Value string }

// Header is a member, without what is in it.
type Header struct {
	Path     string // without a slash at its ends
	Kind     byte
	Target   string // of a Link, a path as Path, or Symlink
	Mode     uint32 // 07777 at most
	UID, GID uint32
	ModTime  time.Time
	Size     int64 // of a File
	// Extents are in order, and what is between them is holes. Nil: the file has none.
	Extents []Extent
	Xattrs  []Xattr
}

// sparse says whether a file has holes.
func (h *Header) sparse() bool { return h.Kind == File && h.Extents != nil }

// Parts are the parts of a file that follow its header, in order.
func (h *Header) Parts() []Extent {
	switch {
	case h.Kind != File:
		return nil
	case h.sparse():
		return h.Extents
	}
	return []Extent{{0, h.Size}}
}

// DataBytes is how much follows the header.
func (h *Header) DataBytes() (n int64) {
	for _, e := range h.Parts() {
		n += e.Size
	}
	return n
}

// padding is what follows n octets, to the end of a block.
func padding(n int64) int64 { return -n & (block - 1) }

// Padding is what follows the data.
func (h *Header) Padding() int64 { return padding(h.DataBytes()) }

// Encode is all that stands before the data. The error is of one that can't be said.
func (h *Header) Encode() ([]byte, error) {
	records := map[string]string{"path": h.Path, "mtime": paxTime(h.ModTime)}
	size, list := h.DataBytes(), []byte(nil)
	if h.Kind == Folder {
		records["path"] += "/"
	}
	if h.Target != "" {
		records["linkpath"] = h.Target
	}
	if h.sparse() {
		// The last part is empty, and where the file ends: others make no hole there else.
		list = strconv.AppendInt(nil, int64(len(h.Extents))+1, 10)
		for _, e := range append(slices.Clip(h.Extents), Extent{Offset: h.Size}) {
			list = strconv.AppendInt(append(list, '\n'), e.Offset, 10)
			list = strconv.AppendInt(append(list, '\n'), e.Size, 10)
		}
		list = append(list, '\n')
		list = append(list, make([]byte, padding(int64(len(list))))...)
		size += int64(len(list))
		records["GNU.sparse.major"], records["GNU.sparse.minor"] = "1", "0"
		records["GNU.sparse.name"], records["GNU.sparse.realsize"] = h.Path, strconv.FormatInt(h.Size, 10)
		records["path"] = "GNUSparseFile.0/" + h.Path // to those who know no holes it is no file of this name
	}
	if size > maxOctal {
		records["size"] = strconv.FormatInt(size, 10)
	}
	for _, x := range h.Xattrs {
		if x.Name == "" || strings.ContainsAny(x.Name, "=\x00") {
			return nil, fmt.Errorf("attribute %q can't be written", x.Name)
		}
		records[xattrKey+x.Name] = x.Value
	}
	var pax []byte
	for _, key := range sorted(records) {
		pax = append(pax, record(key, records[key])...)
	}
	if len(pax) > maxRecords {
		return nil, fmt.Errorf("%d octets of attributes are too many", len(pax))
	}
	out := encodeBlock('x', 0o644, 0, 0, int64(len(pax)), 0)
	out = append(append(out, pax...), make([]byte, padding(int64(len(pax))))...)
	out = append(out, encodeBlock(h.Kind, h.Mode, h.UID, h.GID, min(size, maxOctal), max(h.ModTime.Unix(), 0))...)
	return append(out, list...), nil
}

const (
	xattrKey = "SCHILY.xattr."
	maxOctal = 1<<33 - 1 // eleven digits
)

func sorted(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// record is a pax record, whose length counts its own digits.
func record(key, value string) string {
	rest := len(key) + len(value) + 3
	n := rest + len(strconv.Itoa(rest))
	if len(strconv.Itoa(n)) > len(strconv.Itoa(rest)) {
		n++
	}
	return strconv.Itoa(n) + " " + key + "=" + value + "\n"
}

func paxTime(t time.Time) string {
	s, n := t.Unix(), t.Nanosecond()
	sign := ""
	if s < 0 { // nanoseconds count towards the future, and digits away from 0
		sign = "-"
		if s = -s; n > 0 {
			s, n = s-1, 1e9-n
		}
	}
	if n == 0 {
		return sign + strconv.FormatInt(s, 10)
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, s, n), "0")
}

func encodeBlock(kind byte, mode, uid, gid uint32, size, mtime int64) []byte {
	b := make([]byte, block)
	copy(b, "member") // its path is a record
	octal := func(at, digits int, n int64) { copy(b[at:], fmt.Sprintf("%0*o", digits, n)) }
	octal(100, 7, int64(mode))
	octal(108, 7, int64(uid))
	octal(116, 7, int64(gid))
	octal(124, 11, size)
	octal(136, 11, min(mtime, maxOctal))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// JSON is a whole member with a value in it.
func JSON(name string, at time.Time, value any) ([]byte, error) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return nil, err
	}
	text = append(text, '\n')
	h := Header{Path: name, Kind: File, Mode: 0o644, ModTime: at, Size: int64(len(text))}
	out, err := h.Encode()
	return append(append(out, text...), make([]byte, h.Padding())...), err
}

// Trailer is what stands behind all else, of which this is the sum.
func Trailer(sum []byte, at time.Time) ([]byte, error) {
	out, err := JSON(EndName, at, End{SHA256: fmt.Sprintf("%x", sum)})
	return append(out, make([]byte, 2*block)...), err
}

// ErrFormat is returned for what is no file of a volume, or a damaged one.
var ErrFormat = errors.New("it is no file of a volume, or damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// parseRecords reads pax records.
func parseRecords(data []byte) (map[string]string, error) {
	records := map[string]string{}
	for len(data) > 0 {
		digits, _, ok := bytes.Cut(data[:min(len(data), 10)], []byte(" "))
		n, err := strconv.Atoi(string(digits))
		if !ok || err != nil || n <= len(digits)+1 || n > len(data) || data[n-1] != '\n' {
			return nil, damaged("a record has no length")
		}
		key, value, ok := bytes.Cut(data[len(digits)+1:n-1], []byte("="))
		if !ok || len(key) == 0 {
			return nil, damaged("a record has no name")
		}
		if _, twice := records[string(key)]; twice {
			return nil, damaged("a record is there twice")
		}
		records[string(key)] = string(value)
		data = data[n:]
	}
	return records, nil
}

func parseTime(text string) (time.Time, error) {
	whole, part, _ := strings.Cut(text, ".")
	s, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(part) > 9 || strings.Trim(part, "0123456789") != "" || s == math.MinInt64 {
		return time.Time{}, damaged("a time can't be read")
	}
	n, _ := strconv.ParseInt((part + "000000000")[:9], 10, 64)
	if strings.HasPrefix(whole, "-") {
		n = -n
	}
	return time.Unix(s, n), nil
}
