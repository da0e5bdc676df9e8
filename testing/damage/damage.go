// Package damage breaks files as bad disks do, for the tests of what notices it.
package damage

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
)

// Bytes overwrites n bytes of a file from an offset on with random ones.
func Bytes(file string, offset, n int64) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	junk := make([]byte, n)
	_, _ = rand.Read(junk) // never fails
	if _, err := f.WriteAt(junk, offset); err != nil {
		return err
	}
	return f.Close()
}

// Record overwrites the end of the record in the middle of one of etcd's
// write-ahead logs: frames of 8 bytes, whose lower 56 bits are the length, and
// data up to the next multiple of 8. Only what a checksum guards: a length that
// leads beyond the file stands for a record that was being written when the power
// went, which etcd leaves out.
func Record(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	type frame struct{ start, length int64 }
	var all []frame
	for at := int64(0); at+8 <= int64(len(data)); {
		length := int64(binary.LittleEndian.Uint64(data[at:]) &^ (0xff << 56))
		if length == 0 || at+8+length > int64(len(data)) {
			break
		}
		if length >= 100 { // short ones are not of what somebody wrote
			all = append(all, frame{at + 8, length})
		}
		at += 8 + (length+7)&^7
	}
	if len(all) < 3 {
		return fmt.Errorf("%s has only %d records", file, len(all))
	}
	f := all[len(all)/2]
	return Bytes(file, f.start+f.length-32, 32)
}
