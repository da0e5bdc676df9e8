package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// disk does what volumes are tried with.
func disk(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s: want one file or folder", args[0])
	}
	switch args[0] {
	case "write":
		return write(ctx, args[1])
	case "read":
		return read(args[1])
	case "fill":
		return fill(args[1])
	}
	return space(args[1])
}

// A record is a block of a file that shows what it is: its number, and the sum of the
// one before and of that. So a block that is lost, old, doubled or another's is seen.
const record = 4096

func recordOf(number uint64, before [sha256.Size]byte) (block []byte, sum [sha256.Size]byte) {
	block = make([]byte, record)
	binary.BigEndian.PutUint64(block, number)
	copy(block[8:], before[:])
	for i := 8 + len(before); i < record; i++ {
		block[i] = byte(number) ^ byte(i*7)
	}
	sum = sha256.Sum256(block)
	return block, sum
}

// records counts the whole records from the beginning of a file, and the sum of the last.
func records(file string) (n uint64, sum [sha256.Size]byte, size int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, sum, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, sum, 0, err
	}
	have := make([]byte, record)
	for {
		if _, err := io.ReadFull(f, have); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return n, sum, info.Size(), nil
		} else if err != nil {
			return n, sum, info.Size(), err
		}
		want, next := recordOf(n+1, sum)
		if string(have) != string(want) {
			fmt.Fprintf(os.Stderr, "after %d of %d bytes comes %x...\n", n, info.Size(), have[:16])
			return n, sum, info.Size(), nil
		}
		n, sum = n+1, next
	}
}

// write goes on with a file of records, each on the disk before its number is printed, and so are all before it.
func write(ctx context.Context, file string) error {
	n, sum, size, err := records(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if size > int64(n)*record { // half of one
		if err := f.Truncate(int64(n) * record); err != nil {
			return err
		}
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return err
	}
	fmt.Println("found", n)
	// The last one may have been written by who died before he knew that it is on the disk: one of several copies may have it
	// alone, and it goes when they are made the same. So it is written again.
	if n > 0 {
		last := make([]byte, record)
		if _, err := f.ReadAt(last, int64(n-1)*record); err != nil {
			return err
		}
		if sha256.Sum256(last) != sum {
			return fmt.Errorf("record %d is another than a moment ago", n)
		}
		if _, err := f.WriteAt(last, int64(n-1)*record); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		block, next := recordOf(n+1, sum)
		if _, err := f.WriteAt(block, int64(n)*record); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		n, sum = n+1, next
		fmt.Println("wrote", n)
	}
	return nil
}

// read says how many records a file has.
func read(file string) error {
	n, _, size, err := records(file)
	if err == nil {
		fmt.Println("has", n, "of", size)
	}
	return err
}

// fill writes a file until the disk is full, and says how much it took.
func fill(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	block, total := make([]byte, 1<<20), 0
	for i := range block {
		block[i] = byte(i * 31)
	}
	for {
		n, err := f.Write(block)
		total += n
		if errors.Is(err, syscall.ENOSPC) {
			fmt.Println("full", total)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// space says what a file system has, and as whom its root is seen.
func space(dir string) error {
	var s syscall.Statfs_t
	var st syscall.Stat_t
	if err := errors.Join(syscall.Statfs(dir, &s), syscall.Stat(dir, &st)); err != nil {
		return err
	}
	fmt.Println("space", int64(s.Blocks)*s.Bsize, "free", int64(s.Bavail)*s.Bsize, "owner", st.Uid, st.Gid)
	return nil
}
