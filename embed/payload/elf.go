package payload

import (
	"archive/zip"
	"debug/elf"
	"errors"
	"os"
)

// elfSize is where the ELF part of a file ends, by its own tables: a payload
// behind it is no part of it.
func elfSize(f *os.File) (int64, error) {
	program, err := elf.NewFile(f)
	if err != nil {
		return 0, errors.New("not an ELF executable")
	}
	if program.Class != elf.ELFCLASS64 {
		return 0, errors.New("not a 64-bit executable")
	}
	// debug/elf keeps to itself where the table of sections begins: its offset
	// stands at byte 40.
	var raw [8]byte
	if _, err := f.ReadAt(raw[:], 40); err != nil {
		return 0, err
	}
	const sectionHeaderBytes = 64
	end := int64(program.ByteOrder.Uint64(raw[:])) + int64(len(program.Sections))*sectionHeaderBytes
	for _, segment := range program.Progs {
		end = max(end, int64(segment.Off+segment.Filesz))
	}
	for _, section := range program.Sections {
		if section.Type != elf.SHT_NOBITS {
			end = max(end, int64(section.Offset+section.FileSize))
		}
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if end > info.Size() {
		return 0, errors.New("cut off within its ELF part")
	}
	return end, nil
}

// payloadOffset is where the archive in a file begins: behind the ELF part
// if there is one, else at its beginning.
func payloadOffset(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if _, err := zip.NewReader(f, info.Size()); err != nil {
		return 0, ErrNone
	}
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil {
		return 0, err
	}
	if string(magic[:]) != elf.ELFMAG {
		return 0, nil
	}
	return elfSize(f)
}
