package client

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/multipaas/multipaas/modules/internal/archive"
)

// summaryTail is how far from its end a file's summary begins at most: 20 paths of 1,000 bytes, of which each may be
// six in JSON, and two small members.
const summaryTail = 256 << 10

// leftOut says what is not in a whole file of a volume, from the summary at its end. Nothing if all is in it.
func leftOut(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	length, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	tail := make([]byte, min(length, summaryTail))
	if _, err := f.ReadAt(tail, length-int64(len(tail))); err != nil {
		return "", err
	}
	// The last is the platform's: what stands behind it has no line ends in its texts.
	name := []byte("path=" + archive.SummaryName + "\n")
	at := bytes.LastIndex(tail, name)
	if at < 0 {
		return "", archive.ErrFormat
	}
	tail = tail[at+len(name):]
	begin := bytes.IndexByte(tail, '{')
	if begin < 0 {
		return "", archive.ErrFormat
	}
	var sum archive.Summary
	if err := json.NewDecoder(bytes.NewReader(tail[begin:])).Decode(&sum); err != nil {
		return "", err
	}
	var kinds []string
	for _, what := range slices.Sorted(maps.Keys(sum.LeftOut)) {
		kinds = append(kinds, fmt.Sprintf("%s: %d", printable(what), sum.LeftOut[what]))
	}
	if len(kinds) == 0 {
		return "", nil
	}
	text := strings.Join(kinds, ", ")
	if len(sum.Examples) > 0 {
		text += "; the first is of " + printable(sum.Examples[0])
	}
	return text, nil
}

// noteLeftOut tells what is not in a whole file.
func (c *call) noteLeftOut(file string) {
	switch text, err := leftOut(file); {
	case err != nil:
		c.note("mp: what was left out is not known: %s", printable(err.Error()))
	case text != "":
		c.note("mp: not in %s are %s. %s in it has more of them.", printable(file), text, archive.SummaryName)
	}
}
